//! Who was refused lately, and why.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Role;

/// A refused worker tries again several times in this time, so one that is not remembered is gone.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Bounds what anybody who says hello may make a router remember.
const MOST: usize = 256;

/// A worker that was not admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedWorker {
    pub worker_id: String,
    /// `None`: it did not say.
    pub role: Option<Role>,
    pub reason: String,
}

/// Refusals of the last minute. Plain state: time is passed in.
#[derive(Debug, Default)]
pub struct Refused {
    /// One for a worker, oldest first.
    workers: VecDeque<(Instant, RefusedWorker)>,
}

impl Refused {
    pub fn add(&mut self, worker: RefusedWorker, now: Instant) {
        self.forget(&worker.worker_id);
        if self.workers.len() == MOST {
            self.workers.pop_front();
        }
        self.workers.push_back((now, worker));
    }

    /// It came in.
    pub fn forget(&mut self, worker_id: &str) {
        self.workers
            .retain(|(_, worker)| worker.worker_id != worker_id);
    }

    /// Oldest first.
    pub fn recent(&self, now: Instant) -> impl Iterator<Item = &RefusedWorker> {
        let remembered = move |at: Instant| now.saturating_duration_since(at) < REMEMBERED;
        self.workers
            .iter()
            .filter(move |(at, _)| remembered(*at))
            .map(|(_, worker)| worker)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_remembered_once_for_a_minute_or_until_the_worker_comes_in() {
        let start = Instant::now();
        let mut refused = Refused::default();
        let worker = |id: &str, reason: &str| RefusedWorker {
            worker_id: id.into(),
            role: None,
            reason: reason.into(),
        };
        refused.add(worker("a", "old"), start);
        refused.add(worker("b", ""), start);
        refused.add(worker("a", "new"), start + REMEMBERED / 2);
        let seen = |refused: &Refused, at: Instant| -> Vec<String> {
            let line = |w: &RefusedWorker| format!("{} {}", w.worker_id, w.reason);
            refused.recent(at).map(line).collect()
        };
        assert_eq!(seen(&refused, start + REMEMBERED / 2), ["b ", "a new"]);
        assert_eq!(seen(&refused, start + REMEMBERED), ["a new"]);
        refused.forget("a");
        assert!(seen(&refused, start + REMEMBERED).is_empty());
        for n in 0..2 * MOST {
            refused.add(worker(&n.to_string(), ""), start);
        }
        assert_eq!(seen(&refused, start).len(), MOST);
    }
}
