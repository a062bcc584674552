//! Loads that forget.

use std::time::Duration;

use crate::Loads;

/// Sums of windows in which a token counts half as much after each half-life: long enough to see
/// through the noise of one window, short enough to follow what users now ask.
///
/// Time is the caller's, from any beginning; it may stand still but not go back.
#[derive(Debug, Clone)]
pub struct History {
    experts: usize,
    half_life: Duration,
    /// As of `at`.
    counts: Vec<f64>,
    at: Duration,
}

/// The resolution of [`History::loads`]: fractions of a token that is only half remembered.
const SCALE: f64 = 16.0;

impl History {
    pub fn new(layers: usize, experts: usize, half_life: Duration) -> History {
        History {
            experts,
            half_life,
            counts: vec![0.0; layers * experts],
            at: Duration::ZERO,
        }
    }

    /// Adds a window that ended at `now`.
    ///
    /// # Panics
    /// It is of another model.
    pub fn add(&mut self, now: Duration, window: &Loads) {
        assert_eq!(
            (self.experts, self.counts.len()),
            (window.experts, window.counts.len()),
            "loads of different models"
        );
        let past = now.saturating_sub(self.at);
        // A half-life of nothing remembers the last window alone.
        let kept = if self.half_life.is_zero() {
            0.0
        } else {
            (-past.as_secs_f64() / self.half_life.as_secs_f64()).exp2()
        };
        self.at = self.at.max(now);
        for (sum, &count) in self.counts.iter_mut().zip(&window.counts) {
            *sum = *sum * kept + count as f64;
        }
    }

    /// Tokens remembered, over all layers: too few, and a plan would follow noise.
    pub fn total(&self) -> f64 {
        self.counts.iter().sum()
    }

    /// In proportion to what is remembered.
    pub fn loads(&self) -> Loads {
        let scaled = self.counts.iter().map(|count| (count * SCALE) as u64);
        Loads {
            experts: self.experts,
            counts: scaled.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_old_counts_less() {
        let window = |counts: &[u64]| Loads {
            experts: 2,
            counts: counts.to_vec(),
        };
        let mut history = History::new(1, 2, Duration::from_secs(10));
        history.add(Duration::from_secs(1), &window(&[80, 0]));
        history.add(Duration::from_secs(11), &window(&[0, 40]));
        assert_eq!(history.loads().counts, [640, 640]);
        history.add(Duration::from_secs(31), &window(&[0, 0]));
        assert_eq!(history.loads().counts, [160, 160]);
        assert_eq!(history.total(), 20.0);
        // A clock that went back forgets nothing.
        history.add(Duration::from_secs(3), &window(&[1, 0]));
        assert_eq!(history.loads().counts, [176, 160]);
    }
}
