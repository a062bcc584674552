//! A request's way to workers: admission, pairing, the call. As the dispatcher does it.

use millrace_engine::{Kind, RequestId};
use millrace_model::blocks::BlockHash;
use millrace_router::dispatch::admission::queue::{Decision, Entry};
use millrace_router::dispatch::pairing::{self, Ask, Blocks, Chosen};
use millrace_router::dispatch::patience::Patience;
use millrace_router::fleet::{Ticket, WorkerKey};

use super::{Event, REVISION, World};
use crate::clock::Nanos;
use crate::trace::Arrival;
use crate::worker::{Command, Submission};

pub(super) struct Request {
    pub arrival: Arrival,
    /// The current attempt.
    pub id: RequestId,
    pub(super) blocks: Blocks,
    pub(super) patience: Patience,
    /// Has a turn: a place among those that admission lets run.
    pub(super) admitted: bool,
    pub decode: Option<Placed>,
    pub prefill: Option<Placed>,
    /// Tokens found in the prefill worker's cache, as pairing expected.
    pub(super) overlap: u32,
    /// Tokens that the client has.
    pub(super) output: u32,
    pub(super) first: Option<Nanos>,
}

/// Counted into a worker's load at the router.
#[derive(Debug, Clone, Copy)]
pub(super) struct Placed {
    pub worker: usize,
    pub(super) key: WorkerKey,
    pub(super) ticket: Ticket,
}

/// Why an attempt failed, and how many tokens of the output there are in all.
#[derive(Debug, Clone, Copy)]
pub(super) enum Lost {
    Prefill,
    Decode {
        output: Option<u32>,
    },
    /// It could not be reached.
    Refused,
}

/// Attempts are numbered; the low half says whose it is.
pub(super) fn slot_of(id: RequestId) -> usize {
    (id.0 & 0xffff_ffff) as usize
}

/// Names of a sequence's blocks, where anybody asks for them.
fn names(wanted: bool, arrival: &Arrival, tokens: u32) -> Vec<BlockHash> {
    match wanted {
        true => arrival.origin.blocks(tokens),
        false => Vec::new(),
    }
}

impl World {
    pub(super) fn next_arrival(&mut self) {
        self.next = self.trace.next();
        if let Some(next) = self.next {
            self.events.at(next.at, Event::Arrive);
        }
    }

    pub(super) fn arrive(&mut self) {
        let Some(arrival) = self.next.take() else {
            return;
        };
        self.next_arrival();
        self.tally.arrives(arrival.at, arrival.prompt);
        if !self.router_up {
            self.tally.fail(arrival.at);
            return;
        }
        let entry = Entry {
            sequences: 1,
            prompt_tokens: u64::from(arrival.prompt),
        };
        let now = self.now();
        match self.queue.ask(entry, self.clock.at(now)) {
            Decision::Refused { .. } => self.tally.refuse(arrival.at),
            Decision::Admitted { .. } => {
                let slot = self.keep(arrival);
                self.admitted(slot);
            }
            Decision::Queued(waiter) => {
                let slot = self.keep(arrival);
                self.waiters.insert(waiter, slot);
            }
        }
    }

    fn keep(&mut self, arrival: Arrival) -> usize {
        let slot = self.free.pop().unwrap_or(self.requests.len());
        if slot == self.requests.len() {
            self.requests.push(None);
        }
        let hashes = names(self.prefix_cache, &arrival, arrival.prompt);
        self.requests[slot] = Some(Request {
            arrival,
            id: RequestId(0),
            blocks: Blocks::named(REVISION, hashes),
            patience: Patience::new(self.limits.retry),
            admitted: false,
            decode: None,
            prefill: None,
            overlap: 0,
            output: 0,
            first: None,
        });
        self.next_attempt(slot);
        slot
    }

    /// Whatever is still said about an earlier attempt is no longer heard.
    pub(super) fn next_attempt(&mut self, slot: usize) {
        self.attempts += 1;
        if let Some(request) = &mut self.requests[slot] {
            request.id = RequestId(self.attempts << 32 | slot as u64);
        }
    }

    /// The request, if this is its current attempt.
    pub(super) fn request(&mut self, id: RequestId) -> Option<&mut Request> {
        let request = self.requests.get_mut(slot_of(id))?.as_mut();
        request.filter(|request| request.id == id)
    }

    pub(super) fn admitted(&mut self, slot: usize) {
        let now = self.now();
        if let Some(request) = &mut self.requests[slot] {
            request.admitted = true;
            self.tally.queued(now - request.arrival.at);
            self.place(slot);
        }
    }

    /// Finds workers and calls them, or waits for some.
    pub(super) fn place(&mut self, slot: usize) {
        let now = self.now();
        let at = self.clock.at(now);
        let Some(request) = &mut self.requests[slot] else {
            return;
        };
        let give_up = request.patience.give_up_at(at);
        let not_decode = request.patience.not_decode(at);
        let arrival = request.arrival;
        let ask = Ask {
            tokens: arrival.prompt + request.output,
            blocks: &request.blocks,
            max_output: arrival.output - request.output,
            model: None,
            not_decode: &not_decode,
            not_prefill: request.patience.not_prefill(),
        };
        let id = request.id;
        let Some(pair) = pairing::choose(&self.fleet, &ask) else {
            if at >= give_up {
                self.fail(slot);
                return;
            }
            let again = request.patience.next_return().into_iter().chain([give_up]);
            let again = again.min().unwrap_or(give_up);
            self.searching.push(id);
            self.events
                .at(self.clock.nanos(again), Event::Search { id });
            return;
        };
        request.patience.attempt();
        let mut placed = |chosen: Chosen| Placed {
            worker: self.keys[chosen.worker.0 as usize],
            key: chosen.worker,
            ticket: self.fleet.assign(chosen.worker, chosen.demand, at),
        };
        let decode = placed(pair.decode);
        let prefill = pair.prefill.map(&mut placed);
        request.decode = Some(decode);
        request.prefill = prefill;
        request.overlap = pair
            .prefill
            .map_or(pair.decode.overlap, |p| p.overlap.max(pair.decode.overlap));
        let named = names(self.prefix_cache, &arrival, arrival.prompt + arrival.output);
        let submission = Submission {
            id,
            prompt: arrival.prompt as usize,
            output: request.output as usize,
            max_tokens: arrival.output as usize,
            kind: match prefill {
                Some(_) => Kind::Decode,
                None => Kind::Whole,
            },
            blocks: named,
        };
        for placed in prefill.iter().chain([&decode]) {
            self.workers[placed.worker].requests += 1;
        }
        let deliver = Event::Deliver {
            worker: decode.worker,
            command: Command::Submit(Box::new(submission)),
        };
        self.events.after(self.hop(), deliver);
    }

    /// A decode worker has reserved pages from `first_page` on: it calls its prefill worker.
    pub(super) fn call_prefill(&mut self, id: RequestId, first_page: usize) {
        let hop = self.hop();
        let Some(request) = self.request(id) else {
            return;
        };
        let Some(prefill) = request.prefill else {
            return;
        };
        let (arrival, known) = (request.arrival, request.arrival.prompt + request.output);
        let submission = Submission {
            id,
            prompt: known as usize,
            output: 0,
            max_tokens: usize::MAX,
            kind: Kind::Prefill { first_page },
            blocks: names(self.prefix_cache, &arrival, known),
        };
        let deliver = Event::Deliver {
            worker: prefill.worker,
            command: Command::Submit(Box::new(submission)),
        };
        self.events.after(hop, deliver);
    }
}
