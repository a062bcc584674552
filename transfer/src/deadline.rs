//! Points in time that cannot overflow, however patient somebody was configured to be.

use std::time::{Duration, Instant};

/// Longer than any process lives.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

pub(crate) fn after(start: Instant, patience: Duration) -> Instant {
    start + patience.min(FOREVER)
}

pub(crate) fn within(patience: Duration) -> Instant {
    after(Instant::now(), patience)
}
