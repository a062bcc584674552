//! How long a sequence goes on trying, and with whom.
//!
//! A worker that dies may be the sequence's doing, so attempts that bring no token are bounded in
//! number. A worker that cannot be reached is not, so those are bounded in time.

use std::time::Instant;

use super::failure::{Failure, Reason};
use crate::config::RetryLimits;
use crate::fleet::WorkerKey;

/// What a sequence has been through. Plain state: time is passed in.
#[derive(Debug)]
pub struct Patience {
    limits: RetryLimits,
    attempts: u32,
    /// Since the last token: attempts that a worker took on, and attempts that none did.
    fruitless: u32,
    refused: u32,
    /// When it first had to look for a worker since the last token.
    looking_since: Option<Instant>,
    not_decode: Vec<(WorkerKey, Instant)>,
    not_prefill: Vec<WorkerKey>,
}

impl Patience {
    pub fn new(limits: RetryLimits) -> Patience {
        Patience {
            limits,
            attempts: 0,
            fruitless: 0,
            refused: 0,
            looking_since: None,
            not_decode: Vec::new(),
            not_prefill: Vec::new(),
        }
    }

    /// Attempts begun so far.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Another attempt begins.
    pub fn attempt(&mut self) {
        self.attempts += 1;
    }

    /// Tokens came.
    pub fn progress(&mut self) {
        self.fruitless = 0;
        self.refused = 0;
        self.looking_since = None;
    }

    /// An attempt at these workers failed at `now`. True if there may be another.
    pub fn failed(
        &mut self,
        failure: &Failure,
        decode: WorkerKey,
        prefill: Option<WorkerKey>,
        now: Instant,
    ) -> bool {
        match failure {
            Failure::Final(_) => return false,
            Failure::Prefill { .. } => {
                self.fruitless += 1;
                self.not_prefill.extend(prefill);
            }
            Failure::Decode { reason, .. } => {
                match reason {
                    Reason::Refused => self.refused += 1,
                    _ => self.fruitless += 1,
                }
                let tries = (self.fruitless + self.refused).clamp(1, 16);
                let leave_out = self.limits.leave_out * (1 << (tries - 1));
                self.not_decode.push((decode, now + leave_out));
            }
        }
        self.fruitless < self.limits.max_fruitless_attempts
            && self.attempts < self.limits.max_attempts
            && now < self.give_up_at(now)
    }

    /// A search for workers at `now` ends without success at this time. It counts from when the
    /// first search since the last token began.
    pub fn give_up_at(&mut self, now: Instant) -> Instant {
        *self.looking_since.get_or_insert(now) + self.limits.worker_wait
    }

    /// Decode workers to leave out at `now`.
    pub fn not_decode(&mut self, now: Instant) -> Vec<WorkerKey> {
        self.not_decode.retain(|&(_, until)| until > now);
        self.not_decode.iter().map(|&(worker, _)| worker).collect()
    }

    /// When the first of those may be tried again.
    pub fn next_return(&self) -> Option<Instant> {
        self.not_decode.iter().map(|&(_, until)| until).min()
    }

    /// Prefill workers to leave out: for good, since the decode worker can do their work.
    pub fn not_prefill(&self) -> &[WorkerKey] {
        &self.not_prefill
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const A: WorkerKey = WorkerKey(1);
    const P: WorkerKey = WorkerKey(2);

    fn patience() -> Patience {
        Patience::new(RetryLimits {
            max_fruitless_attempts: 3,
            max_attempts: 8,
            worker_wait: Duration::from_secs(30),
            leave_out: Duration::from_millis(200),
        })
    }

    fn decode(reason: Reason) -> Failure {
        Failure::Decode {
            reason,
            message: String::new(),
        }
    }

    #[test]
    fn attempts_without_a_token_are_bounded_and_a_token_begins_anew() {
        let now = Instant::now();
        let mut patience = patience();
        let fail = |patience: &mut Patience| {
            patience.attempt();
            patience.failed(&decode(Reason::Unavailable), A, None, now)
        };
        assert!(fail(&mut patience) && fail(&mut patience) && !fail(&mut patience));
        patience.progress();
        assert!(fail(&mut patience) && fail(&mut patience) && !fail(&mut patience));
        patience.progress();
        assert!(fail(&mut patience));
        assert!(!fail(&mut patience), "the eighth in all");
    }

    #[test]
    fn unreachable_workers_cost_time_only() {
        let start = Instant::now();
        let mut patience = patience();
        let refused = decode(Reason::Refused);
        for at in [0, 1, 5, 29] {
            let now = start + Duration::from_secs(at);
            assert!(patience.failed(&refused, A, None, now));
        }
        assert!(!patience.failed(&refused, A, None, start + Duration::from_secs(30)));
        patience.progress();
        assert!(patience.failed(&refused, A, None, start + Duration::from_secs(40)));
    }

    #[test]
    fn a_decode_worker_is_left_out_for_longer_each_time() {
        let now = Instant::now();
        let mut patience = patience();
        for expected in [200, 400, 800] {
            patience.failed(&decode(Reason::Refused), A, None, now);
            let until = now + Duration::from_millis(expected);
            assert_eq!(patience.not_decode.last(), Some(&(A, until)));
            assert!(
                patience
                    .not_decode(until - Duration::from_millis(1))
                    .contains(&A)
            );
            assert!(!patience.not_decode(until).contains(&A));
        }
    }

    #[test]
    fn a_prefill_worker_is_left_out_for_good() {
        let now = Instant::now();
        let mut patience = patience();
        let failure = Failure::Prefill {
            message: String::new(),
        };
        assert!(patience.failed(&failure, A, Some(P), now));
        patience.progress();
        assert_eq!(patience.not_prefill(), [P]);
        assert!(patience.not_decode(now).is_empty());
    }
}
