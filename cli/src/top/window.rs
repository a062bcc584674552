//! From a router's sums to what happened lately. Pure.

use std::{collections::VecDeque, time::Duration};

use millrace_router::metrics::{Distribution, Traffic};
use millrace_router::overview::view::TrafficView;

/// The last sums of one router.
pub struct Window {
    span: f64,
    /// Oldest first; only the first of them is older than the span, or none.
    seen: VecDeque<TrafficView>,
}

/// What came in and went out over some time.
#[derive(Debug, Clone, PartialEq)]
pub struct Rates {
    /// How much time. 0: nothing can be said yet.
    pub seconds: f64,
    /// A second.
    pub arrived: f64,
    pub refused: f64,
    pub prompt_tokens: f64,
    pub generated_tokens: f64,
    /// Share of prompt tokens found in a prefix cache. `None`: there were none.
    pub cached: Option<f64>,
    /// Tokens an update: 1, or more where drafts are right.
    pub tokens_an_update: Option<f64>,
    pub prompt_length: Option<f64>,
    pub generation_length: Option<f64>,
    /// In seconds.
    pub queue: Quantiles,
    pub first_token: Quantiles,
    pub inter_token: Quantiles,
}

/// The 50th, 95th and 99th percentile. `None`: nothing was seen.
pub type Quantiles = Option<[f64; 3]>;

const QUANTILES: [f64; 3] = [0.5, 0.95, 0.99];

impl Window {
    pub fn new(span: Duration) -> Window {
        Window {
            span: span.as_secs_f64(),
            seen: VecDeque::new(),
        }
    }

    /// Adds what the router says now; gives what happened within the span.
    pub fn push(&mut self, now: TrafficView) -> Rates {
        let same_life = |before: &TrafficView| {
            before.incarnation == now.incarnation && before.seconds <= now.seconds
        };
        if !self.seen.back().is_none_or(same_life) {
            self.seen.clear();
        }
        while self
            .seen
            .get(1)
            .is_some_and(|second| now.seconds - second.seconds >= self.span)
        {
            self.seen.pop_front();
        }
        let rates = match self.seen.front() {
            Some(before) => between(before, &now),
            // Another router's life, or the first look: what it did before is of no use as "lately",
            // unless it is as young as that.
            None if now.seconds <= self.span => Window::whole(&now),
            None => between(&now, &now),
        };
        self.seen.push_back(now);
        rates
    }

    /// Everything since the router started.
    pub fn whole(now: &TrafficView) -> Rates {
        let nothing = |of: &Distribution| Distribution {
            bounds: of.bounds.clone(),
            counts: vec![0; of.counts.len()],
            sum: 0.0,
        };
        let sums = &now.sums;
        let start = TrafficView {
            incarnation: now.incarnation.clone(),
            seconds: 0.0,
            sums: Traffic {
                arrived: 0,
                refused: 0,
                prompt_tokens: 0,
                cached_prompt_tokens: 0,
                generated_tokens: 0,
                updates: 0,
                queue_seconds: nothing(&sums.queue_seconds),
                first_token_seconds: nothing(&sums.first_token_seconds),
                inter_token_seconds: nothing(&sums.inter_token_seconds),
                prompt_length: nothing(&sums.prompt_length),
                generation_length: nothing(&sums.generation_length),
            },
        };
        between(&start, now)
    }
}

fn between(before: &TrafficView, now: &TrafficView) -> Rates {
    let seconds = now.seconds - before.seconds;
    let (old, new) = (&before.sums, &now.sums);
    let sum = |new: u64, old: u64| new.saturating_sub(old) as f64;
    let rate = |new, old| {
        if seconds > 0.0 {
            sum(new, old) / seconds
        } else {
            0.0
        }
    };
    let share = |part: f64, whole: f64| (whole > 0.0).then(|| part / whole);
    Rates {
        seconds,
        arrived: rate(new.arrived, old.arrived),
        refused: rate(new.refused, old.refused),
        prompt_tokens: rate(new.prompt_tokens, old.prompt_tokens),
        generated_tokens: rate(new.generated_tokens, old.generated_tokens),
        cached: share(
            sum(new.cached_prompt_tokens, old.cached_prompt_tokens),
            sum(new.prompt_tokens, old.prompt_tokens),
        ),
        tokens_an_update: share(
            sum(new.generated_tokens, old.generated_tokens),
            sum(new.updates, old.updates),
        ),
        prompt_length: mean(&old.prompt_length, &new.prompt_length),
        generation_length: mean(&old.generation_length, &new.generation_length),
        queue: quantiles(&old.queue_seconds, &new.queue_seconds),
        first_token: quantiles(&old.first_token_seconds, &new.first_token_seconds),
        inter_token: quantiles(&old.inter_token_seconds, &new.inter_token_seconds),
    }
}

/// What was counted from `old` to `new`, bucket by bucket.
fn counted(old: &Distribution, new: &Distribution) -> Vec<u64> {
    let buckets = new.counts.iter().zip(&old.counts);
    buckets.map(|(new, old)| new.saturating_sub(*old)).collect()
}

fn mean(old: &Distribution, new: &Distribution) -> Option<f64> {
    let count: u64 = counted(old, new).iter().sum();
    (count > 0).then(|| (new.sum - old.sum) / count as f64)
}

/// Straight lines within a bucket, as Prometheus draws them; above the last bound, infinite.
fn quantiles(old: &Distribution, new: &Distribution) -> Quantiles {
    let counts = counted(old, new);
    let all: u64 = counts.iter().sum();
    if all == 0 {
        return None;
    }
    Some(QUANTILES.map(|quantile| {
        let rank = quantile * all as f64;
        let mut below = 0.0;
        for (bucket, count) in counts.iter().enumerate() {
            let count = *count as f64;
            if count > 0.0 && below + count >= rank {
                let Some(upper) = new.bounds.get(bucket) else {
                    break;
                };
                let lower = bucket.checked_sub(1).map_or(0.0, |at| new.bounds[at]);
                return lower + (upper - lower) * (rank - below) / count;
            }
            below += count;
        }
        f64::INFINITY
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn distribution(counts: [u64; 3], sum: f64) -> Distribution {
        Distribution {
            bounds: vec![0.1, 1.0],
            counts: counts.to_vec(),
            sum,
        }
    }

    fn view(incarnation: &str, seconds: f64, requests: u64) -> TrafficView {
        let short = distribution([requests, 0, 0], 0.05 * requests as f64);
        TrafficView {
            incarnation: incarnation.to_owned(),
            seconds,
            sums: Traffic {
                arrived: requests,
                refused: 0,
                prompt_tokens: 100 * requests,
                cached_prompt_tokens: 25 * requests,
                generated_tokens: 30 * requests,
                updates: 20 * requests,
                queue_seconds: short.clone(),
                first_token_seconds: short.clone(),
                inter_token_seconds: short.clone(),
                prompt_length: distribution([0, 0, requests], 100.0 * requests as f64),
                generation_length: distribution([0, 0, requests], 30.0 * requests as f64),
            },
        }
    }

    #[test]
    fn rates_are_of_the_last_seconds() {
        let mut window = Window::new(Duration::from_secs(10));
        // What a router did in the hours before says nothing of now.
        let first = window.push(view("a", 5000.0, 9000));
        assert_eq!(
            (first.seconds, first.arrived, first.queue),
            (0.0, 0.0, None)
        );
        for second in 1..=30 {
            let rates = window.push(view(
                "a",
                5000.0 + f64::from(second),
                9000 + 2 * u64::from(second as u32),
            ));
            assert_eq!(rates.arrived, 2.0);
            assert!(rates.seconds <= 11.0);
            assert_eq!(rates.cached, Some(0.25));
            assert_eq!(rates.tokens_an_update, Some(1.5));
            assert_eq!(rates.prompt_length, Some(100.0));
        }
        let rates = window.push(view("a", 5040.0, 9060));
        assert_eq!(rates.arrived, 0.0);
        assert_eq!((rates.cached, rates.first_token), (None, None));
    }

    #[test]
    fn another_life_of_a_router_begins_anew() {
        let mut window = Window::new(Duration::from_secs(10));
        window.push(view("a", 100.0, 500));
        let young = window.push(view("b", 4.0, 8));
        assert_eq!((young.seconds, young.arrived), (4.0, 2.0));
    }

    #[test]
    fn quantiles_are_drawn_within_buckets() {
        let none = distribution([0; 3], 0.0);
        assert_eq!(quantiles(&none, &none), None);
        let [p50, p95, p99] = quantiles(&none, &distribution([50, 48, 2], 0.0)).unwrap();
        assert!((p50 - 0.1).abs() < 1e-9);
        assert!((p95 - (0.1 + 0.9 * 45.0 / 48.0)).abs() < 1e-9);
        assert_eq!(p99, f64::INFINITY);
    }
}
