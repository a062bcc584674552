//! The admission queue's state, without tasks or clocks.

use std::collections::VecDeque;
use std::time::Instant;

use super::rate::DrainRate;
use crate::config::AdmissionLimits;

/// Names a place in the queue; never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WaiterId(u64);

/// What asks to be let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub sequences: u32,
    /// Prompt tokens of all of them.
    pub prompt_tokens: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Runs now and must `leave` with this weight.
    Admitted { weight: u32 },
    /// Will be named by a later `leave` or `abandon`, unless abandoned before.
    Queued(WaiterId),
    Refused {
        full: Full,
        retry_after_seconds: u32,
    },
}

/// Which bound refused a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    Sequences,
    Tokens,
}

impl Full {
    pub const ALL: [Full; 2] = [Full::Sequences, Full::Tokens];

    pub fn as_str(self) -> &'static str {
        match self {
            Full::Sequences => "too many requests are waiting",
            Full::Tokens => "too many prompt tokens are waiting",
        }
    }

    pub fn label(self) -> &'static str {
        match self {
            Full::Sequences => "queue_full",
            Full::Tokens => "queue_tokens_full",
        }
    }
}

#[derive(Debug)]
struct Waiter {
    id: WaiterId,
    weight: u32,
    prompt_tokens: u64,
}

/// Who runs and who waits.
///
/// Invariant: whenever somebody waits, the first of them does not fit.
#[derive(Debug)]
pub struct Queue {
    limits: AdmissionLimits,
    running: u32,
    waiting: VecDeque<Waiter>,
    waiting_sequences: u32,
    waiting_tokens: u64,
    next: u64,
    rate: DrainRate,
}

impl Queue {
    pub fn new(limits: AdmissionLimits) -> Queue {
        Queue {
            limits: AdmissionLimits {
                max_running: limits.max_running.max(1),
                ..limits
            },
            running: 0,
            waiting: VecDeque::new(),
            waiting_sequences: 0,
            waiting_tokens: 0,
            next: 0,
            rate: DrainRate::default(),
        }
    }

    pub fn running(&self) -> u32 {
        self.running
    }

    /// In sequences.
    pub fn waiting(&self) -> u32 {
        self.waiting_sequences
    }

    pub fn ask(&mut self, entry: Entry, now: Instant) -> Decision {
        // A request larger than the house would never fit: it gets the whole house.
        let weight = entry.sequences.clamp(1, self.limits.max_running);
        if self.waiting.is_empty() && self.running + weight <= self.limits.max_running {
            self.running += weight;
            return Decision::Admitted { weight };
        }
        let tokens = self.waiting_tokens.saturating_add(entry.prompt_tokens);
        // An empty queue takes any one request, so that no request is refused for ever.
        let full = if self.waiting.is_empty() && self.limits.max_waiting > 0 {
            None
        } else if self.waiting_sequences + weight > self.limits.max_waiting {
            Some(Full::Sequences)
        } else if tokens > self.limits.max_waiting_tokens {
            Some(Full::Tokens)
        } else {
            None
        };
        if let Some(full) = full {
            let ahead = self.waiting_sequences + weight;
            return Decision::Refused {
                full,
                retry_after_seconds: self.rate.wait(ahead, now),
            };
        }
        let id = WaiterId(self.next);
        self.next += 1;
        self.waiting_sequences += weight;
        self.waiting_tokens = tokens;
        self.waiting.push_back(Waiter {
            id,
            weight,
            prompt_tokens: entry.prompt_tokens,
        });
        Decision::Queued(id)
    }

    /// A request of this weight ended. Returns whose turn it is now, with their weights.
    #[must_use]
    pub fn leave(&mut self, weight: u32, now: Instant) -> Vec<(WaiterId, u32)> {
        self.running -= weight;
        self.rate.left(weight, now);
        self.advance()
    }

    /// Takes a place out of the queue, if it is still there. The one behind it may now fit.
    #[must_use]
    pub fn abandon(&mut self, id: WaiterId) -> Vec<(WaiterId, u32)> {
        // Ids ascend, so a place that has been granted is found to be gone without a walk.
        if let Ok(at) = self.waiting.binary_search_by_key(&id, |w| w.id)
            && let Some(waiter) = self.waiting.remove(at)
        {
            self.forget(&waiter);
        }
        self.advance()
    }

    fn advance(&mut self) -> Vec<(WaiterId, u32)> {
        let mut granted = Vec::new();
        while let Some(first) = self.waiting.front()
            && self.running + first.weight <= self.limits.max_running
            && let Some(waiter) = self.waiting.pop_front()
        {
            self.forget(&waiter);
            self.running += waiter.weight;
            granted.push((waiter.id, waiter.weight));
        }
        granted
    }

    fn forget(&mut self, waiter: &Waiter) {
        self.waiting_sequences -= waiter.weight;
        self.waiting_tokens -= waiter.prompt_tokens;
    }
}
