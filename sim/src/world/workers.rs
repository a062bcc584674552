//! What workers are told, what they do, and what they say.

use millrace_autoscaler::Role;
use millrace_engine::RequestId;
use millrace_router::fleet::{self, Compatibility, Delta, Description, WorkerKey};

use super::requests::Lost;
use super::{Event, REVISION, World};
use crate::clock::{Nanos, SECOND, nanos};
use crate::worker::{Command, StepEnd, Told, Worker};

/// A worker tells of its load at most this often (`worker/src/attach/feed.rs`).
const REPORT_PERIOD: Nanos = SECOND / 50;

/// A worker's place, which outlives it.
pub(super) struct Slot {
    pub role: Role,
    pub replica: usize,
    /// `None`: not started yet, dead or gone.
    pub worker: Option<Worker>,
    /// While it is attached.
    pub key: Option<WorkerKey>,
    /// Requests that the router has there.
    pub requests: u32,
    /// Deltas since the snapshot.
    deltas: u64,
    reported: Nanos,
    report_asked: bool,
}

impl Slot {
    pub fn new(role: Role, replica: usize) -> Slot {
        Slot {
            role,
            replica,
            worker: None,
            key: None,
            requests: 0,
            deltas: 0,
            reported: 0,
            report_asked: false,
        }
    }
}

impl World {
    /// A worker is up: it attaches to the router and sends a snapshot.
    pub(super) fn attach(&mut self, number: usize) {
        let now = self.now();
        let slot = &self.workers[number];
        if self.replicas[slot.replica].draining || slot.key.is_some() {
            return;
        }
        let engine = match slot.role {
            Role::Prefill => self.profile.prefill,
            Role::Decode => self.profile.decode,
        };
        let longest = self.scenario.max_model_len;
        let description = Description {
            worker_id: format!("w{number}"),
            role: match slot.role {
                Role::Prefill => fleet::Role::Prefill,
                Role::Decode => fleet::Role::Decode,
            },
            address: format!("w{number}:1"),
            revision: REVISION.to_owned(),
            aggregated: false,
            compatibility: Compatibility {
                model_revision: REVISION.to_owned(),
                page_tokens: 64,
                ..Compatibility::default()
            },
            text_revision: REVISION.to_owned(),
            max_model_len: longest,
            vocab_size: 1,
            kv_pages: engine.kv_pages as u64,
            max_running: engine.max_running as u32,
            group: None,
        };
        let worker = self.workers[number]
            .worker
            .get_or_insert_with(|| Worker::new(self.profile.clone(), engine, self.prefix_cache));
        if !self.router_up {
            return;
        }
        let key = self
            .fleet
            .attach(description)
            .expect("all workers are alike");
        let blocks = worker.snapshot();
        self.fleet
            .snapshot(key, worker.load(), blocks, self.clock.at(now));
        debug_assert_eq!(key.0 as usize, self.keys.len());
        self.keys.push(number);
        let slot = &mut self.workers[number];
        slot.key = Some(key);
        slot.deltas = 0;
        self.search_all();
    }

    pub(super) fn deliver(&mut self, number: usize, command: Command) {
        let now = self.now();
        let Some(worker) = &mut self.workers[number].worker else {
            self.not_reached(number, command);
            return;
        };
        worker.send(command);
        let mut told = Vec::new();
        let end = worker.wake(now, &mut self.random, &mut told);
        self.after(number, end, told);
    }

    /// The message came too late: its worker is gone. Whoever sent it learns that.
    fn not_reached(&mut self, number: usize, command: Command) {
        let Command::Submit(submission) = command else {
            return;
        };
        let id = submission.id;
        let is_prefill = self.workers[number].role == Role::Prefill;
        let lost = match is_prefill {
            true => Lost::Prefill,
            false => Lost::Refused,
        };
        self.lost_after_hop(id, lost);
    }

    pub(super) fn lost_after_hop(&mut self, id: RequestId, lost: Lost) {
        self.events.after(self.hop(), Event::Lost { id, lost });
    }

    pub(super) fn step_ends(&mut self, number: usize, end: StepEnd) {
        let Some(worker) = &mut self.workers[number].worker else {
            return;
        };
        let mut told = Vec::new();
        let next = worker.end(end, &mut self.random, &mut told);
        if let Some((tokens, apart)) = worker.take_generated() {
            self.tally.tokens(tokens, apart);
        }
        self.after(number, next, told);
    }

    /// Takes what a worker had to say to where it belongs, and goes on with its next step.
    fn after(&mut self, number: usize, end: Option<StepEnd>, told: Vec<Told>) {
        if let Some(end) = end {
            let event = Event::StepEnd {
                worker: number,
                end,
            };
            self.events.at(end.at, event);
        }
        for told in told {
            match told {
                Told::Reserved { id, first_page } => self.call_prefill(id, first_page),
                Told::Prefilled { id, at } => {
                    let Some(request) = self.request(id) else {
                        continue;
                    };
                    if let Some(decode) = request.decode {
                        let event = Event::Deliver {
                            worker: decode.worker,
                            command: Command::Prefilled(id),
                        };
                        self.events.at(at, event);
                    }
                }
                Told::FirstToken { .. } | Told::Finished { .. } => {
                    self.events.after(self.hop(), Event::Heard(told));
                }
            }
        }
        let slot = &mut self.workers[number];
        if !std::mem::replace(&mut slot.report_asked, true) {
            let at = slot.reported + REPORT_PERIOD;
            self.events.at(at, Event::Report { worker: number });
        }
    }

    pub(super) fn report_load(&mut self, number: usize) {
        let now = self.now();
        let slot = &mut self.workers[number];
        slot.report_asked = false;
        slot.reported = now;
        if let (Some(worker), Some(key)) = (&slot.worker, slot.key) {
            slot.deltas += 1;
            let changes = worker.take_changes();
            let delta = Delta {
                sequence: slot.deltas,
                load: worker.load(),
                cleared: false,
                removed: changes.removed,
                stored: changes.stored,
            };
            let followed = self.fleet.delta(key, delta, self.clock.at(now));
            followed.expect("no delta is lost on the way");
        }
        self.leave_if_drained(number);
    }

    /// A worker dies. Whoever has a request there learns it when the connection breaks.
    pub(super) fn kill(&mut self, number: usize) {
        let now = self.now();
        let slot = &mut self.workers[number];
        let Some(worker) = slot.worker.take() else {
            return;
        };
        if let Some(key) = slot.key.take() {
            self.fleet.detach(key);
        }
        self.tally.count_worker(&worker);
        let mut lost = Vec::new();
        for request in self.requests.iter().flatten() {
            if request.decode.is_some_and(|at| at.worker == number) {
                let output = worker.output(request.id, now);
                let output = output.map(|output| output as u32);
                lost.push((request.id, Lost::Decode { output }));
            } else if request.prefill.is_some_and(|at| at.worker == number) {
                lost.push((request.id, Lost::Prefill));
            }
        }
        for (id, lost) in lost {
            self.lost_after_hop(id, lost);
        }
    }

    /// From the order for a replica to when its workers attach.
    pub(super) fn start_time(&mut self) -> Nanos {
        let (mean, deviation) = (self.profile.start, self.profile.start_deviation);
        nanos(mean + deviation * self.random.normal().clamp(-2.0, 3.0))
    }
}
