//! Faults begin and end.

use millrace_autoscaler::Role;

use super::{Event, World};
use crate::clock::{SECOND, nanos};
use crate::faults::{Fault, What};

impl World {
    pub(super) fn fault(&mut self, number: usize, begins: bool) {
        let fault = self.scenario.faults[number];
        if begins && fault.what != What::RouterRestart {
            let ends = Event::Fault {
                number,
                begins: false,
            };
            self.events.after(nanos(fault.lasts), ends);
        }
        match (fault.what, begins) {
            (What::PrefillDeath, true) => self.kill_some(Role::Prefill, fault),
            (What::DecodeDeath, true) => self.kill_some(Role::Decode, fault),
            (What::PrefillDeath | What::DecodeDeath, false) => self.revive(),
            (What::PrefillSlow, true) => self.slow_down(Role::Prefill, fault, fault.factor),
            (What::PrefillSlow, false) => self.slow_down(Role::Prefill, fault, 1.0),
            (What::DecodeSlow, true) => self.slow_down(Role::Decode, fault, fault.factor),
            (What::DecodeSlow, false) => self.slow_down(Role::Decode, fault, 1.0),
            (What::MetricsGap, true) => self.gap_until = self.now() + nanos(fault.lasts),
            (What::MetricsGap, false) => {}
            (What::RouterRestart, true) => self.restart_router(fault),
            (What::RouterRestart, false) => {}
        }
    }

    /// The first workers of a role that are up, as many as the share says and one at least.
    fn some(&self, role: Role, share: f64) -> Vec<usize> {
        let up: Vec<usize> = (0..self.workers.len())
            .filter(|&n| self.workers[n].role == role && self.workers[n].worker.is_some())
            .collect();
        let hit = (up.len() as f64 * share).round().max(1.0) as usize;
        up.into_iter().take(hit).collect()
    }

    fn kill_some(&mut self, role: Role, fault: Fault) {
        for worker in self.some(role, fault.share) {
            self.kill(worker);
        }
    }

    /// Whoever died and is still wanted comes back, with empty memory.
    fn revive(&mut self) {
        let now = self.now();
        for worker in 0..self.workers.len() {
            let replica = &self.replicas[self.workers[worker].replica];
            let started = replica.starts.is_some_and(|at| at <= now) && !replica.gone;
            if started && self.workers[worker].worker.is_none() {
                self.attach(worker);
            }
        }
    }

    fn slow_down(&mut self, role: Role, fault: Fault, factor: f64) {
        let workers = match factor > 1.0 {
            true => self.some(role, fault.share),
            false => (0..self.workers.len()).collect(),
        };
        for number in workers {
            let slot = &mut self.workers[number];
            if let Some(worker) = slot.worker.as_mut().filter(|_| slot.role == role) {
                worker.slowdown = factor;
            }
        }
    }

    /// All clients' connections break with it. It knows nothing of workers until they attach again.
    fn restart_router(&mut self, fault: Fault) {
        self.router_up = false;
        for slot in 0..self.requests.len() {
            let Some(request) = self.requests[slot].take() else {
                continue;
            };
            self.free.push(slot);
            self.tally.fail(request.arrival.at);
            for placed in request.decode.iter().chain(&request.prefill) {
                self.workers[placed.worker].requests -= 1;
                let abort = crate::worker::Command::Abort(request.id);
                self.deliver(placed.worker, abort);
            }
        }
        for slot in &mut self.workers {
            slot.key = None;
        }
        self.forget_router();
        self.events.after(nanos(fault.lasts), Event::RouterBack);
    }

    /// Workers find it within a second, at random.
    pub(super) fn router_back(&mut self) {
        self.router_up = true;
        for worker in 0..self.workers.len() {
            if self.workers[worker].worker.is_some() {
                let after = self.random.below(SECOND);
                self.events.after(after, Event::Attach { worker });
            }
        }
    }
}
