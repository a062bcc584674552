//! What comes back of a request: tokens, its end, or a failure and another attempt.

use millrace_engine::RequestId;
use millrace_router::dispatch::admission::queue::WaiterId;
use millrace_router::dispatch::{Failure, Reason};

use super::requests::{Lost, Placed, slot_of};
use super::{Event, World};
use crate::tally::Timeline;
use crate::worker::{Command, Told};

impl World {
    /// The router hears from a decode worker.
    pub(super) fn hear(&mut self, told: Told) {
        let now = self.now();
        match told {
            Told::FirstToken { id } => {
                let Some(request) = self.request(id) else {
                    return;
                };
                request.patience.progress();
                let prefill = request.prefill.take();
                let (arrival, overlap) = (request.arrival, request.overlap);
                let is_first = request.first.is_none();
                request.first.get_or_insert(now);
                self.release(prefill);
                if is_first {
                    self.tally
                        .first_token(arrival.prompt, overlap, now - arrival.at);
                }
            }
            Told::Finished { id } => {
                let Some(request) = self.request(id) else {
                    return;
                };
                let timeline = Timeline {
                    arrived: request.arrival.at,
                    first: request.first.unwrap_or(now),
                    last: now,
                    output: request.arrival.output,
                };
                let prompt = request.arrival.prompt;
                self.tally.answer(timeline, prompt);
                self.leave(slot_of(id));
            }
            Told::Reserved { .. } | Told::Prefilled { .. } => {}
        }
    }

    /// The router learns of a failed attempt, and tries again if there is patience left.
    pub(super) fn lose(&mut self, id: RequestId, lost: Lost) {
        let at = self.clock.at(self.now());
        let Some(request) = self.request(id) else {
            return;
        };
        let slot = slot_of(id);
        let decode = request.decode.take();
        let prefill = request.prefill.take();
        let message = String::new();
        let failure = match lost {
            Lost::Prefill => Failure::Prefill { message },
            Lost::Decode { output } => {
                if let Some(output) = output.filter(|&output| output > request.output) {
                    request.output = output.min(request.arrival.output - 1);
                    request.patience.progress();
                }
                let reason = Reason::Unavailable;
                Failure::Decode { reason, message }
            }
            Lost::Refused => {
                let reason = Reason::Refused;
                Failure::Decode { reason, message }
            }
        };
        let patient = decode.is_some_and(|decode| {
            let prefill = prefill.map(|prefill| prefill.key);
            request.patience.failed(&failure, decode.key, prefill, at)
        });
        self.release(decode);
        self.release(prefill);
        // Dropping an attempt cancels it on both workers.
        for placed in decode.iter().chain(&prefill) {
            let deliver = Event::Deliver {
                worker: placed.worker,
                command: Command::Abort(id),
            };
            self.events.after(self.hop(), deliver);
        }
        if !patient {
            self.fail(slot);
            return;
        }
        self.tally.replays += 1;
        self.next_attempt(slot);
        self.place(slot);
    }

    pub(super) fn search_again(&mut self, id: RequestId) {
        let Some(at) = self.searching.iter().position(|&other| other == id) else {
            return;
        };
        self.searching.remove(at);
        if self.request(id).is_some() {
            self.place(slot_of(id));
        }
    }

    /// Somebody attached: all who wait look again, in order.
    pub(super) fn search_all(&mut self) {
        for id in std::mem::take(&mut self.searching) {
            if self.request(id).is_some() {
                self.place(slot_of(id));
            }
        }
    }

    pub(super) fn fail(&mut self, slot: usize) {
        if let Some(request) = &self.requests[slot] {
            self.tally.fail(request.arrival.at);
            self.leave(slot);
        }
    }

    /// A request is over, and others may have its turn.
    fn leave(&mut self, slot: usize) {
        let Some(request) = self.requests[slot].take() else {
            return;
        };
        self.free.push(slot);
        self.release(request.decode);
        self.release(request.prefill);
        if request.admitted {
            let at = self.clock.at(self.now());
            let granted = self.queue.leave(1, at);
            self.grant(granted);
        }
    }

    fn grant(&mut self, granted: Vec<(WaiterId, u32)>) {
        for (waiter, _) in granted {
            if let Some(slot) = self.waiters.remove(&waiter) {
                self.admitted(slot);
            }
        }
    }

    fn release(&mut self, placed: Option<Placed>) {
        if let Some(placed) = placed {
            self.fleet.release(placed.key, placed.ticket);
            self.workers[placed.worker].requests -= 1;
            self.leave_if_drained(placed.worker);
        }
    }
}
