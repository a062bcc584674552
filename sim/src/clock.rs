//! Virtual time: whole nanoseconds from the start of a run, so that sums are exact and order is total.

use std::time::{Duration, Instant};

/// Nanoseconds since the start of the run.
pub type Nanos = u64;

pub const SECOND: Nanos = 1_000_000_000;

/// Seconds to nanoseconds, rounded. Negative ones are none.
pub fn nanos(seconds: f64) -> Nanos {
    (seconds * 1e9).round() as Nanos
}

pub fn seconds(nanos: Nanos) -> f64 {
    nanos as f64 / 1e9
}

/// What the code under test is told instead of the time of day. It only ever compares and subtracts, so
/// which instant the run starts at does not matter.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    pub fn start() -> Clock {
        Clock {
            start: Instant::now(),
        }
    }

    pub fn at(&self, now: Nanos) -> Instant {
        self.start + Duration::from_nanos(now)
    }

    /// The other way round.
    pub fn nanos(&self, at: Instant) -> Nanos {
        at.saturating_duration_since(self.start).as_nanos() as Nanos
    }
}
