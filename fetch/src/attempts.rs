//! When to try again, and when to give up.

use std::time::Duration;

use rand::{Rng, SeedableRng, rngs::SmallRng};

use crate::{
    Event, Observer, RetryPolicy,
    error::{FetchError, Passing},
};

/// The attempts at one file. They start anew whenever the file got further than ever before, so that a
/// large file comes over a bad line; a server that always ends at the same byte is given up.
pub(crate) struct Attempts<'a> {
    policy: RetryPolicy,
    observer: Observer<'a>,
    url: String,
    made: u32,
    furthest: u64,
}

impl<'a> Attempts<'a> {
    pub fn new(policy: RetryPolicy, observer: Observer<'a>, url: String) -> Attempts<'a> {
        Attempts {
            policy,
            observer,
            url,
            made: 0,
            furthest: 0,
        }
    }

    /// An attempt ended with the file at byte `at`. Waits for the next.
    ///
    /// # Errors
    /// `GaveUp`, when there is no next.
    pub async fn pause(&mut self, at: u64, why: Passing) -> Result<(), FetchError> {
        if at > self.furthest {
            self.furthest = at;
            self.made = 0;
        }
        self.made += 1;
        if self.made >= self.policy.attempts {
            let (url, attempts) = (self.url.clone(), self.made);
            return Err(FetchError::GaveUp {
                url,
                attempts,
                at,
                last: why.to_string(),
            });
        }
        let delay = self.delay(&why);
        (self.observer)(Event::Retrying {
            url: &self.url,
            why: &why.to_string(),
            delay,
        });
        tokio::time::sleep(delay).await;
        Ok(())
    }

    fn delay(&self, why: &Passing) -> Duration {
        let grown = self
            .policy
            .first_delay
            .saturating_mul(1 << (self.made - 1).min(16));
        let capped = grown.min(self.policy.most_delay);
        // Up to half off: pods that failed together do not come back together.
        let delay = capped.mul_f64(SmallRng::from_os_rng().random_range(0.5..=1.0));
        match why {
            Passing::Status {
                retry_after: Some(asked),
                ..
            } => (*asked).min(self.policy.most_delay).max(delay),
            _ => delay,
        }
    }
}
