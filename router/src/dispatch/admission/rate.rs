//! How fast sequences leave, to tell a refused client when to come back.

use std::time::Instant;

/// Weight of the newest interval.
const SMOOTHING: f64 = 0.1;
/// Nobody is told to wait longer: a guess that far ahead is worth nothing.
const MAX_WAIT_SECONDS: f64 = 60.0;

/// A moving average of the time between two departures.
#[derive(Debug, Default)]
pub struct DrainRate {
    last: Option<Instant>,
    seconds_between: Option<f64>,
}

impl DrainRate {
    /// `sequences` left at `now`.
    pub fn left(&mut self, sequences: u32, now: Instant) {
        if let Some(last) = self.last.replace(now) {
            let between =
                now.saturating_duration_since(last).as_secs_f64() / f64::from(sequences.max(1));
            let old = self.seconds_between.unwrap_or(between);
            self.seconds_between = Some(old + SMOOTHING * (between - old));
        }
    }

    /// Seconds until `ahead` sequences will have left: 1 to 60. When none has left for longer than
    /// the average says, the rate has dropped, and that time counts instead.
    pub fn wait(&self, ahead: u32, now: Instant) -> u32 {
        let since_last = self.last.map_or(0.0, |last| {
            now.saturating_duration_since(last).as_secs_f64()
        });
        let between = self.seconds_between.unwrap_or(0.0).max(since_last);
        // Never zero: a client that is refused and returns at once only adds load.
        (between * f64::from(ahead))
            .ceil()
            .clamp(1.0, MAX_WAIT_SECONDS) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_wait_follows_the_rate() {
        let start = Instant::now();
        let mut rate = DrainRate::default();
        assert_eq!(rate.wait(1000, start), 1, "nothing is known yet");
        for i in 0..100 {
            rate.left(1, start + Duration::from_millis(100 * i));
        }
        let now = start + Duration::from_millis(9900);
        assert_eq!(rate.wait(100, now), 10);
        assert_eq!(rate.wait(1, now), 1);
        assert_eq!(rate.wait(1_000_000, now), 60);
        assert_eq!(
            rate.wait(10, now + Duration::from_secs(3)),
            30,
            "it has stalled"
        );
    }
}
