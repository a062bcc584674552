//! A deployment in virtual time: every sequence arrives, waits, is prefilled, decodes and ends. Prefill
//! workers compute one prompt after the other; a decode worker's sequences share its steps.

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, VecDeque};

use millrace_autoscaler::model::PerformanceModel;
use millrace_autoscaler::observation::{Distribution, Observation, Pool, Router, Traffic, Worker};
use millrace_autoscaler::{ByRole, Role};

use crate::counters::Counters;
use crate::load::{Arrivals, Sequence};

pub struct Truth {
    pub model: PerformanceModel,
    pub cold_start: f64,
    pub tokens_per_update: f64,
    pub hit_rate: f64,
}

#[derive(Clone, Copy, PartialEq)]
enum Event {
    Arrival,
    /// Of a prefill worker.
    Prefilled(u64),
    /// Of a decode worker, if nothing changed there since.
    Ended(u64, u64),
    Ready,
}

struct At(f64, u64, Event);

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

struct Prefill {
    id: u64,
    ready_at: f64,
    draining: bool,
    /// With the decode worker that waits for it; the first is being computed.
    queue: VecDeque<(Sequence, u64)>,
    tokens: f64,
}

struct Decode {
    id: u64,
    ready_at: f64,
    draining: bool,
    /// Sequences that have a turn, being prefilled or decoded.
    held: u32,
    /// (progress at its end, context, tokens it generates).
    running: BinaryHeap<Reverse<(Float, Float, Float)>>,
    context: f64,
    /// Tokens that each of its sequences has had, since it began.
    progress: f64,
    since: f64,
    version: u64,
}

#[derive(Clone, Copy, PartialEq, PartialOrd)]
struct Float(f64);
impl Eq for Float {}
impl Ord for Float {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

pub struct Fleet {
    pub now: f64,
    truth: Truth,
    arrivals: Arrivals,
    events: BinaryHeap<Reverse<At>>,
    events_made: u64,
    workers_made: u64,
    prefill: Vec<Prefill>,
    decode: Vec<Decode>,
    waiting: VecDeque<Sequence>,
    wanted: ByRole<u32>,
    pub counters: Counters,
    pub incarnation: u64,
    /// When the router started.
    router_since: f64,
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
    fn progress(&mut self, i: usize) {
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

    fn schedule_end(&mut self, i: usize) {
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

    pub fn observe(&mut self) -> Observation {
        for i in 0..self.decode.len() {
            self.progress(i);
            self.schedule_end(i);
        }
        let now = self.now;
        let mut workers = Vec::new();
        for w in self.prefill.iter().filter(|w| w.ready_at <= now) {
            workers.push(Worker {
                role: Role::Prefill,
                available: !w.draining,
                draining: w.draining,
                running: u32::from(!w.queue.is_empty()),
                waiting: (w.queue.len() as u32).saturating_sub(1),
                max_running: 0,
                waiting_tokens: w.tokens.max(0.0) as u64,
                kv_pages: 0,
                free_pages: 0,
            });
        }
        let pages = self.truth.model.kv_tokens / 64;
        for w in self.decode.iter().filter(|w| w.ready_at <= now) {
            workers.push(Worker {
                role: Role::Decode,
                available: !w.draining,
                draining: w.draining,
                // Those that are prefilled hold a place.
                running: w.held,
                waiting: 0,
                max_running: self.truth.model.max_running,
                waiting_tokens: 0,
                kv_pages: pages,
                free_pages: pages.saturating_sub((w.context / 64.0) as u64),
            });
        }
        let pool = |wanted, ready: &mut dyn Iterator<Item = bool>| {
            let all: Vec<bool> = ready.collect();
            Pool {
                wanted,
                ready: all.iter().filter(|&&ready| ready).count() as u32,
                existing: all.len() as u32,
            }
        };
        Observation {
            now,
            unix_seconds: now as u64,
            routers: vec![Router {
                name: "router-0".to_owned(),
                waiting: self.waiting.len() as u64,
                traffic: self.traffic(),
            }],
            routers_expected: 1,
            workers,
            pools: ByRole {
                prefill: pool(
                    self.wanted.prefill,
                    &mut self
                        .prefill
                        .iter()
                        .map(|w| w.ready_at <= now && !w.draining),
                ),
                decode: pool(
                    self.wanted.decode,
                    &mut self.decode.iter().map(|w| w.ready_at <= now && !w.draining),
                ),
            },
            rollout: false,
        }
    }

    fn traffic(&self) -> Traffic {
        let seen = &self.counters;
        let told = |d: &crate::counters::Buckets| Distribution {
            bounds: d.bounds.to_vec(),
            counts: d.counts.iter().map(|&count| count as u64).collect(),
            sum: d.sum,
        };
        Traffic {
            incarnation: self.incarnation,
            seconds: self.now - self.router_since,
            arrived: seen.arrived,
            refused: 0,
            prompt_tokens: seen.prompt_tokens as u64,
            cached_prompt_tokens: seen.cached_prompt_tokens as u64,
            generated_tokens: seen.generated_tokens as u64,
            updates: seen.updates as u64,
            queue_seconds: told(&seen.queue),
            first_token_seconds: told(&seen.ttft),
            inter_token_seconds: told(&seen.itl),
            prompt_length: told(&seen.prompts),
            generation_length: told(&seen.generations),
        }
    }
}
