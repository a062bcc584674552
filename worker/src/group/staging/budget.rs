//! How fast staging may go.

use std::time::Duration;

use tokio::time::Instant;

/// Spent ahead of time at most: what one chunk needs, so that a pause saves nothing up.
const BURST: Duration = Duration::from_millis(20);

/// Bytes a second, evenly.
#[derive(Debug)]
pub struct Budget {
    bytes_per_second: u64,
    /// When all that was spent is paid for.
    paid: Instant,
}

impl Budget {
    pub fn new(bytes_per_second: u64) -> Budget {
        Budget {
            bytes_per_second: bytes_per_second.max(1),
            paid: Instant::now(),
        }
    }

    /// Returns when `bytes` more may be moved.
    pub async fn spend(&mut self, bytes: u64) {
        tokio::time::sleep_until(self.due(bytes, Instant::now())).await;
    }

    fn due(&mut self, bytes: u64, now: Instant) -> Instant {
        let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        self.paid = self.paid.max(now) + cost;
        self.paid.checked_sub(BURST).map_or(now, |due| due.max(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_spread_over_time_and_a_pause_saves_nothing_up() {
        let mut budget = Budget::new(1_000_000);
        let start = Instant::now();
        budget.paid = start;
        let chunk = |budget: &mut Budget, now| budget.due(100_000, now) - start;
        assert_eq!(chunk(&mut budget, start), Duration::from_millis(80));
        assert_eq!(chunk(&mut budget, start), Duration::from_millis(180));
        // A minute later, the next two are as far apart as any.
        let later = start + Duration::from_secs(60);
        assert_eq!(chunk(&mut budget, later), Duration::from_millis(60_080));
        assert_eq!(chunk(&mut budget, later), Duration::from_millis(60_180));
    }
}
