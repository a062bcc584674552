//! Which rank of a group this one waits for most.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// By rank, over all steps.
pub type Waits = BTreeMap<usize, Duration>;

/// What was waited lately: longer than a scraper's interval, so that all scrapers are told the same.
const LATELY: Duration = Duration::from_secs(30);

/// Names a rank for some time, then looks again.
#[derive(Default)]
pub struct Slowest {
    /// Where the time began that is looked at.
    began: Option<(Instant, Waits)>,
    named: Option<usize>,
}

impl Slowest {
    /// The rank that most was waited for in the time before. `None`: for nobody so far.
    pub fn look(&mut self, now: Instant, waits: &Waits) -> Option<usize> {
        let over = match &self.began {
            Some((began, _)) => now.saturating_duration_since(*began) >= LATELY,
            None => true,
        };
        // The first time need not be over for one to be named.
        if over || self.named.is_none() {
            let before = |rank: &usize| {
                let began = self.began.as_ref().and_then(|(_, then)| then.get(rank));
                began.copied().unwrap_or_default()
            };
            let lately = waits
                .iter()
                .map(|(rank, waited)| (waited.saturating_sub(before(rank)), *rank));
            self.named = lately
                .filter(|(waited, _)| !waited.is_zero())
                .max()
                .map(|(_, rank)| rank);
        }
        if over {
            self.began = Some((now, waits.clone()));
        }
        self.named
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits<const N: usize>(milliseconds: [u64; N]) -> Waits {
        let ranks = milliseconds.into_iter().enumerate();
        ranks
            .map(|(rank, ms)| (rank, Duration::from_millis(ms)))
            .collect()
    }

    #[test]
    fn the_slowest_of_late_is_named() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut slowest = Slowest::default();
        assert_eq!(slowest.look(at(0), &Waits::new()), None);
        assert_eq!(slowest.look(at(1), &waits([0, 0])), None);
        assert_eq!(slowest.look(at(2), &waits([5, 80, 7])), Some(1));
        // Whoever asks meanwhile is told the same.
        assert_eq!(slowest.look(at(3), &waits([500, 80, 7])), Some(1));
        assert_eq!(slowest.look(at(30), &waits([500, 600, 7])), Some(1));
        // From here on what was waited before does not count.
        assert_eq!(slowest.look(at(59), &waits([500, 600, 200])), Some(1));
        assert_eq!(slowest.look(at(60), &waits([501, 600, 200])), Some(2));
        // Nobody, if nothing was waited.
        assert_eq!(slowest.look(at(90), &waits([501, 600, 200])), None);
    }
}
