//! How long to wait before a guess becomes a decision.

use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// After this coordinator began: nobody is evicted before for not having come (back) to this
    /// router, so that a router that restarts does not evict everyone.
    pub attach_grace: Duration,
    /// A rank that left this router, and that no other rank lost, is given this long to return.
    pub detach_grace: Duration,
    /// A link between two ranks that both live is given this long to heal.
    pub partition_grace: Duration,
    /// A plan that not everyone has staged by then is given up.
    pub plan_deadline: Duration,
    /// Before staging that failed is tried again; doubled each time, up to `retry_most`.
    pub retry_first: Duration,
    pub retry_most: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            attach_grace: Duration::from_secs(3),
            detach_grace: Duration::from_secs(3),
            partition_grace: Duration::from_millis(500),
            plan_deadline: Duration::from_secs(60),
            retry_first: Duration::from_secs(1),
            retry_most: Duration::from_secs(60),
        }
    }
}

/// The time of one decision, which also finds out when the next one is due.
#[derive(Debug)]
pub(super) struct Clock {
    pub now: Duration,
    pub next: Option<Duration>,
}

impl Clock {
    pub fn at(now: Duration) -> Clock {
        Clock { now, next: None }
    }

    /// Whether `at` is not in the future; if it is, then is when to ask again.
    pub fn reached(&mut self, at: Duration) -> bool {
        if at <= self.now {
            return true;
        }
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
        false
    }
}
