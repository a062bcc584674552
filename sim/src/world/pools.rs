//! Replicas of both roles: started, drained, gone. As the operator and the cluster do it.

use millrace_autoscaler::{ByRole, Role};

use super::workers::Slot;
use super::{Event, World};
use crate::clock::{Nanos, nanos};

/// Some workers that come and go together.
pub(super) struct Replica {
    pub role: Role,
    /// Numbers of its workers, one after another.
    pub workers: std::ops::Range<usize>,
    /// When its workers attach. `None`: there are no GPUs for it yet.
    pub starts: Option<Nanos>,
    pub draining: bool,
    pub gone: bool,
}

impl World {
    /// A look: what there should be, and what follows from it.
    pub(super) fn decide(&mut self) {
        let observation = self.observe();
        let wanted = self.policy.decide(&observation);
        let now = self.now();
        let counted = now >= nanos(self.scenario.warmup);
        for role in [Role::Prefill, Role::Decode] {
            let (old, new) = (*self.wanted.of(role), *wanted.of(role));
            if counted && new != old {
                let changes = match new > old {
                    true => &mut self.tally.ups,
                    false => &mut self.tally.downs,
                };
                *changes.of_mut(role) += 1;
            }
            for _ in old..new {
                let start = self.start_time();
                self.start_replica(role, start);
            }
            for _ in new..old {
                self.drain_replica(role);
            }
        }
        self.wanted = wanted;
        self.note_pools();
        let interval = nanos(self.policy.period());
        self.events.after(interval, Event::Decide);
    }

    /// What a plot shows from now on.
    pub(super) fn note_pools(&mut self) {
        let now = self.now();
        let existing = self.existing();
        let (waiting, gpus) = (u64::from(self.queue.waiting()), self.tally.gpus_now());
        let bin = self.tally.bin_at(now);
        bin.looked = true;
        bin.replicas = existing;
        bin.waiting = waiting;
        bin.gpus = gpus;
    }

    fn existing(&self) -> ByRole<u32> {
        let mut existing = ByRole::default();
        for replica in self.replicas.iter().filter(|r| !r.gone) {
            *existing.of_mut(replica.role) += 1;
        }
        existing
    }

    /// Asks for one replica more, which is up `after` GPUs were found for it.
    pub(super) fn start_replica(&mut self, role: Role, after: Nanos) {
        let first = self.workers.len();
        let count = self.scenario.replica_gpus() as usize;
        let number = self.replicas.len();
        self.workers
            .extend((0..count).map(|_| Slot::new(role, number)));
        self.replicas.push(Replica {
            role,
            workers: first..first + count,
            starts: None,
            draining: false,
            gone: false,
        });
        self.schedule_replica(number, after);
    }

    /// Where there are GPUs, it starts; otherwise it waits for those of one that drains.
    fn schedule_replica(&mut self, number: usize, after: Nanos) {
        let count = self.scenario.replica_gpus();
        if self.tally.gpus_now() + count > self.scenario.gpus {
            return;
        }
        let at = self.now() + after;
        let replica = &mut self.replicas[number];
        replica.starts = Some(at);
        let (role, workers) = (replica.role, replica.workers.clone());
        for worker in workers {
            self.events.at(at, Event::Attach { worker });
        }
        self.count_gpus(role);
    }

    fn count_gpus(&mut self, role: Role) {
        let here = |r: &&super::Replica| r.role == role && r.starts.is_some() && !r.gone;
        let replicas = self.replicas.iter().filter(here).count() as u32;
        let gpus = replicas * self.scenario.replica_gpus();
        let now = self.now();
        self.tally.gpus(now, role, gpus);
    }

    /// The newest goes: it is the one that has cached least, or is not up yet.
    fn drain_replica(&mut self, role: Role) {
        let newest = self
            .replicas
            .iter()
            .rposition(|r| r.role == role && !r.draining && !r.gone);
        let Some(number) = newest else {
            return;
        };
        self.replicas[number].draining = true;
        for worker in self.replicas[number].workers.clone() {
            if let Some(key) = self.workers[worker].key {
                self.fleet.drain(key);
            }
        }
        self.end_if_drained(number);
    }

    pub(super) fn leave_if_drained(&mut self, worker: usize) {
        let replica = self.workers[worker].replica;
        if self.replicas[replica].draining {
            self.end_if_drained(replica);
        }
    }

    /// A draining replica ends when nothing is left on any of its workers.
    fn end_if_drained(&mut self, number: usize) {
        let replica = &self.replicas[number];
        let (role, workers) = (replica.role, replica.workers.clone());
        let busy = |slot: &Slot| {
            slot.requests > 0 || slot.worker.as_ref().is_some_and(|worker| !worker.is_idle())
        };
        if replica.gone || self.workers[workers.clone()].iter().any(busy) {
            return;
        }
        self.replicas[number].gone = true;
        for worker in workers {
            let slot = &mut self.workers[worker];
            if let Some(worker) = slot.worker.take() {
                assert_eq!(worker.held_pages(), 0, "an idle worker has lost pages");
                self.tally.count_worker(&worker);
            }
            if let Some(key) = slot.key.take() {
                self.fleet.detach(key);
            }
        }
        self.count_gpus(role);
        let waiting = |r: &Replica| r.starts.is_none() && !r.draining && !r.gone;
        if let Some(next) = self.replicas.iter().position(waiting) {
            let start = self.start_time();
            self.schedule_replica(next, start);
        }
    }

    /// Nothing is lost: what waits for a turn and what has one is what the queue counts, and workers where nothing
    /// runs hold no pages.
    pub(super) fn check_conservation(&self) {
        let requests = self.requests.iter().flatten().count() as u32;
        assert_eq!(requests, self.queue.running() + self.queue.waiting());
        for slot in &self.workers {
            if let Some(worker) = slot.worker.as_ref().filter(|worker| worker.is_idle()) {
                assert_eq!(worker.held_pages(), 0, "an idle worker has lost pages");
            }
        }
    }

    pub(super) fn count_workers(&mut self) {
        for slot in &self.workers {
            if let Some(worker) = &slot.worker {
                self.tally.count_worker(worker);
            }
        }
    }
}
