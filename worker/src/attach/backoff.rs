//! How long to wait before the next attempt.

use std::{
    hash::{BuildHasher as _, Hasher as _, RandomState},
    time::Duration,
};

/// A router that is restarting is back within seconds.
const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);
/// A router that refuses this worker will do so until someone changes one of them.
const REFUSED: Duration = Duration::from_secs(15);

/// Doubles from try to try, with jitter, so that workers that lost a router together do not come
/// back together.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The connection worked; the next failure is a first one.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    pub fn after_failure(&mut self) -> Duration {
        let wait = FIRST
            .saturating_mul(1 << self.failures.min(16))
            .min(LONGEST);
        self.failures += 1;
        jittered(wait, random())
    }

    pub fn after_refusal(&mut self) -> Duration {
        self.failures = 0;
        jittered(REFUSED, random())
    }
}

/// Half of `wait` to all of it.
fn jittered(wait: Duration, random: u64) -> Duration {
    wait.mul_f64(0.5 + 0.5 * (random as f64 / u64::MAX as f64))
}

/// The standard library's only source of randomness: good enough to spread retries and tell
/// workers apart, not for secrets.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_limit_and_start_over_after_success() {
        let mut backoff = Backoff::default();
        let waits: Vec<Duration> = (0..40).map(|_| backoff.after_failure()).collect();
        assert!(waits[0] <= FIRST && waits[0] >= FIRST / 2, "{waits:?}");
        assert!(waits.iter().all(|wait| *wait <= LONGEST), "{waits:?}");
        assert!(waits[39] >= LONGEST / 2, "{waits:?}");
        backoff.reset();
        assert!(backoff.after_failure() <= FIRST);
        assert!(backoff.after_refusal() >= REFUSED / 2);
    }

    #[test]
    fn jitter_keeps_within_half_of_the_wait() {
        let wait = Duration::from_secs(2);
        assert_eq!(jittered(wait, 0), Duration::from_secs(1));
        assert_eq!(jittered(wait, u64::MAX), wait);
    }
}
