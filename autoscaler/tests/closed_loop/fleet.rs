//! A deployment in virtual time: every sequence arrives, waits, is prefilled, decodes and ends. Prefill
//! workers compute one prompt after the other; a decode worker's sequences share its steps.

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, VecDeque};

use millrace_autoscaler::ByRole;
use millrace_autoscaler::model::PerformanceModel;

use crate::counters::Counters;
use crate::load::{Arrivals, Sequence};

pub struct Truth {
    pub model: PerformanceModel,
    pub cold_start: f64,
    pub tokens_per_update: f64,
    pub hit_rate: f64,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Event {
    Arrival,
    /// Of a prefill worker.
    Prefilled(u64),
    /// Of a decode worker, if nothing changed there since.
    Ended(u64, u64),
    Ready,
}

pub(super) struct At(f64, u64, Event);

impl PartialEq for At {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for At {}
impl PartialOrd for At {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for At {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0).then(self.1.cmp(&other.1))
    }
}

pub(super) struct Prefill {
    pub(super) id: u64,
    pub(super) ready_at: f64,
    pub(super) draining: bool,
    /// With the decode worker that waits for it; the first is being computed.
    pub(super) queue: VecDeque<(Sequence, u64)>,
    pub(super) tokens: f64,
}

pub(super) struct Decode {
    pub(super) id: u64,
    pub(super) ready_at: f64,
    pub(super) draining: bool,
    /// Sequences that have a turn, being prefilled or decoded.
    pub(super) held: u32,
    /// (progress at its end, context, tokens it generates).
    pub(super) running: BinaryHeap<Reverse<(Float, Float, Float)>>,
    pub(super) context: f64,
    /// Tokens that each of its sequences has had, since it began.
    pub(super) progress: f64,
    pub(super) since: f64,
    pub(super) version: u64,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) struct Float(f64);
impl Eq for Float {}
impl PartialOrd for Float {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Float {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

pub struct Fleet {
    pub now: f64,
    pub(super) truth: Truth,
    pub(super) arrivals: Arrivals,
    pub(super) events: BinaryHeap<Reverse<At>>,
    pub(super) events_made: u64,
    pub(super) workers_made: u64,
    pub(super) prefill: Vec<Prefill>,
    pub(super) decode: Vec<Decode>,
    pub(super) waiting: VecDeque<Sequence>,
    pub(super) wanted: ByRole<u32>,
    pub counters: Counters,
    pub incarnation: u64,
    /// When the router started.
    pub(super) router_since: f64,
    /// Replica-seconds, starting and draining ones included.
    pub used: ByRole<f64>,
}

impl Fleet {
    pub fn new(truth: Truth, arrivals: Arrivals, replicas: ByRole<u32>) -> Fleet {
        let mut fleet = Fleet {
            now: 0.0,
            truth,
            arrivals,
            events: BinaryHeap::new(),
            events_made: 0,
            workers_made: 0,
            prefill: Vec::new(),
            decode: Vec::new(),
            waiting: VecDeque::new(),
            wanted: ByRole::default(),
            counters: Counters::default(),
            incarnation: 1,
            router_since: 0.0,
            used: ByRole::default(),
        };
        fleet.scale(replicas);
        for worker in &mut fleet.prefill {
            worker.ready_at = 0.0;
        }
        for worker in &mut fleet.decode {
            worker.ready_at = 0.0;
        }
        fleet.next_arrival();
        fleet
    }

    fn at(&mut self, time: f64, event: Event) {
        self.events_made += 1;
        self.events.push(Reverse(At(time, self.events_made, event)));
    }

    fn next_arrival(&mut self) {
        if let Some(time) = self.arrivals.next(self.now) {
            self.at(time, Event::Arrival);
        }
    }

    pub fn run_until(&mut self, until: f64) {
        while self.events.peek().is_some_and(|next| next.0.0 <= until) {
            let Reverse(At(time, _, event)) = self.events.pop().expect("just seen");
            self.advance(time);
            match event {
                Event::Arrival => {
                    let sequence = self.arrivals.sequence(self.now);
                    self.counters.arrived += 1;
                    self.waiting.push_back(sequence);
                    self.next_arrival();
                    self.dispatch();
                }
                Event::Prefilled(id) => self.prefilled(id),
                Event::Ended(id, version) => self.ended(id, version),
                Event::Ready => self.dispatch(),
            }
        }
        self.advance(until);
    }

    fn advance(&mut self, to: f64) {
        let seconds = to - self.now;
        self.used.prefill += seconds * self.prefill.len() as f64;
        self.used.decode += seconds * self.decode.len() as f64;
        self.now = to;
    }

    fn dispatch(&mut self) {
        let slots = self.truth.model.max_running;
        while let Some(&sequence) = self.waiting.front() {
            let now = self.now;
            let open = |ready_at: f64, draining: bool| ready_at <= now && !draining;
            let decode = (self.decode.iter_mut())
                .filter(|w| open(w.ready_at, w.draining) && w.held < slots)
                .min_by_key(|w| w.held);
            let prefill = (self.prefill.iter_mut())
                .filter(|w| open(w.ready_at, w.draining))
                .min_by(|a, b| a.tokens.total_cmp(&b.tokens));
            let (Some(decode), Some(prefill)) = (decode, prefill) else {
                return;
            };
            self.waiting.pop_front();
            decode.held += 1;
            self.counters.begun(&sequence, now, self.truth.hit_rate);
            prefill.queue.push_back((sequence, decode.id));
            prefill.tokens += sequence.prompt * (1.0 - self.truth.hit_rate);
            if prefill.queue.len() == 1 {
                let id = prefill.id;
                self.start_prefill(id, &sequence);
            }
        }
    }

    fn start_prefill(&mut self, id: u64, sequence: &Sequence) {
        let cached = sequence.prompt * self.truth.hit_rate;
        let seconds = (self.truth.model.prefill).seconds(sequence.prompt - cached, cached);
        self.at(self.now + seconds, Event::Prefilled(id));
    }

    fn prefilled(&mut self, id: u64) {
        let i = self.prefill.iter().position(|w| w.id == id).expect("works");
        let worker = &mut self.prefill[i];
        let (sequence, decode) = worker.queue.pop_front().expect("being computed");
        worker.tokens -= sequence.prompt * (1.0 - self.truth.hit_rate);
        if let Some((next, _)) = worker.queue.front().copied() {
            self.start_prefill(id, &next);
        } else if worker.draining {
            self.prefill.swap_remove(i);
        }
        self.counters.first_token(self.now - sequence.arrived);
        let i = self
            .decode
            .iter()
            .position(|w| w.id == decode)
            .expect("holds a turn");
        self.progress(i);
        let worker = &mut self.decode[i];
        let context = sequence.prompt + sequence.generation / 2.0;
        worker.context += context;
        let end = worker.progress + (sequence.generation - 1.0).max(0.0);
        let tokens = Float(sequence.generation);
        worker
            .running
            .push(Reverse((Float(end), Float(context), tokens)));
        self.schedule_end(i);
    }

    /// Brings a decode worker up to now.
    pub(super) fn progress(&mut self, i: usize) {
        let step = self.step(i);
        let worker = &mut self.decode[i];
        let batch = worker.running.len() as f64;
        let tokens = (self.now - worker.since) / step * self.truth.tokens_per_update;
        worker.since = self.now;
        if batch > 0.0 {
            worker.progress += tokens;
            self.counters
                .decoded(tokens * batch, step, self.truth.tokens_per_update);
        }
    }

    fn step(&self, i: usize) -> f64 {
        let worker = &self.decode[i];
        let batch = (worker.running.len() as f64).max(1.0);
        self.truth
            .model
            .decode
            .step_seconds(batch, worker.context / batch)
    }

    pub(super) fn schedule_end(&mut self, i: usize) {
        let rate = self.truth.tokens_per_update / self.step(i);
        let worker = &mut self.decode[i];
        worker.version += 1;
        if let Some(Reverse((Float(end), ..))) = worker.running.peek() {
            let after = (end - worker.progress).max(0.0) / rate;
            let event = Event::Ended(worker.id, worker.version);
            self.at(self.now + after, event);
        }
    }

    fn ended(&mut self, id: u64, version: u64) {
        let Some(i) = self
            .decode
            .iter()
            .position(|w| w.id == id && w.version == version)
        else {
            return;
        };
        self.progress(i);
        let worker = &mut self.decode[i];
        let Reverse((_, Float(context), Float(tokens))) = worker.running.pop().expect("one ends");
        worker.context -= context;
        worker.held -= 1;
        self.counters.ended(tokens);
        if self.decode[i].draining && self.decode[i].held == 0 {
            self.decode.swap_remove(i);
        } else {
            self.schedule_end(i);
        }
        self.dispatch();
    }

    /// As an operator does: new ones start, superfluous ones drain, those that start go first.
    pub fn scale(&mut self, wanted: ByRole<u32>) {
        self.wanted = wanted;
        let ready_at = self.now + self.truth.cold_start;
        let live = |draining: &bool| !draining;
        let mut there = self.prefill.iter().filter(|w| live(&w.draining)).count() as u32;
        while there < wanted.prefill {
            self.workers_made += 1;
            self.prefill.push(Prefill {
                id: self.workers_made,
                ready_at,
                draining: false,
                queue: VecDeque::new(),
                tokens: 0.0,
            });
            self.at(ready_at, Event::Ready);
            there += 1;
        }
        while there > wanted.prefill {
            let latest = self.prefill.iter_mut().filter(|w| !w.draining);
            let worker = latest.max_by(|a, b| a.ready_at.total_cmp(&b.ready_at));
            worker.expect("counted").draining = true;
            there -= 1;
        }
        self.prefill.retain(|w| !(w.draining && w.queue.is_empty()));
        let mut there = self.decode.iter().filter(|w| live(&w.draining)).count() as u32;
        while there < wanted.decode {
            self.workers_made += 1;
            self.decode.push(Decode {
                id: self.workers_made,
                ready_at,
                draining: false,
                held: 0,
                running: BinaryHeap::new(),
                context: 0.0,
                progress: 0.0,
                since: self.now,
                version: 0,
            });
            self.at(ready_at, Event::Ready);
            there += 1;
        }
        while there > wanted.decode {
            let latest = self.decode.iter_mut().filter(|w| !w.draining);
            let worker = latest.max_by(|a, b| a.ready_at.total_cmp(&b.ready_at));
            worker.expect("counted").draining = true;
            there -= 1;
        }
        self.decode.retain(|w| !(w.draining && w.held == 0));
    }

    /// Its counters begin anew; what it passes on goes on.
    pub fn restart_router(&mut self) {
        self.incarnation += 1;
        self.router_since = self.now;
        self.counters.forget();
    }
}
