//! How long to wait before a crashed child is started again.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(10);
/// A child that ran this long was healthy; its next crash counts as the first again.
const HEALTHY: Duration = Duration::from_secs(30);

/// Doubles from 0.2 s to 10 s while crashes follow each other.
#[derive(Debug, Default)]
pub struct Backoff {
    crashes: u32,
}

impl Backoff {
    /// The delay after a crash that came `uptime` after the start.
    pub fn after(&mut self, uptime: Duration) -> Duration {
        if uptime >= HEALTHY {
            self.crashes = 0;
        }
        let delay = FIRST.saturating_mul(1 << self.crashes.min(16)).min(LONGEST);
        self.crashes += 1;
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_a_limit_and_starts_over_after_a_healthy_run() {
        let mut backoff = Backoff::default();
        let soon = Duration::from_secs(1);
        let delays: Vec<u128> = (0..8).map(|_| backoff.after(soon).as_millis()).collect();
        assert_eq!(delays, [200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert_eq!(backoff.after(HEALTHY), FIRST);
    }
}
