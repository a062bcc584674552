//! Prometheus' native histograms: buckets whose bounds are powers of one base, of which only those
//! exist that something fell into.
//!
//! <https://prometheus.io/docs/specs/native_histograms/>

use std::collections::BTreeMap;

/// Observations up to this are counted as zeros; the format wants such a bound, and none of ours lies
/// between 0 and it.
pub(crate) const ZERO_THRESHOLD: f64 = f64::from_bits(0x37f0_0000_0000_0000); // 2^-128
/// Bounds are powers of 2^(1/8) at first, so that no quantile is off by more than half of 9 %.
const FINEST: i32 = 3;
/// More are merged, pair by pair. At the finest, 160 reach from a microsecond to a second.
const MOST_BUCKETS: usize = 160;

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Native {
    /// Bucket `i` is above `2^((i - 1) / 2^schema)` and at most `2^(i / 2^schema)`.
    schema: i32,
    zeros: u64,
    /// None is empty.
    buckets: BTreeMap<i32, u64>,
}

/// A run of buckets without a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// From the end of the run before; of the first, its index.
    pub offset: i32,
    pub length: u32,
}

impl Default for Native {
    fn default() -> Native {
        Native {
            schema: FINEST,
            zeros: 0,
            buckets: BTreeMap::new(),
        }
    }
}

impl Native {
    /// `value` is finite and not negative.
    pub fn count(&mut self, value: f64) {
        if value <= ZERO_THRESHOLD {
            self.zeros += 1;
            return;
        }
        let index = (value.log2() * f64::from(self.schema).exp2()).ceil() as i32;
        *self.buckets.entry(index).or_default() += 1;
        while self.buckets.len() > MOST_BUCKETS {
            self.widen();
        }
    }

    /// Makes one bucket of every two.
    fn widen(&mut self) {
        self.schema -= 1;
        for (index, count) in std::mem::take(&mut self.buckets) {
            *self.buckets.entry((index + 1) >> 1).or_default() += count;
        }
    }

    pub fn schema(&self) -> i32 {
        self.schema
    }

    pub fn zeros(&self) -> u64 {
        self.zeros
    }

    /// As the format has them: where there are buckets, and by how much each count is more than the
    /// one before.
    pub fn runs(&self) -> (Vec<Run>, Vec<i64>) {
        let (mut runs, mut deltas) = (Vec::<Run>::new(), Vec::new());
        let (mut next, mut before) = (0, 0);
        for (&index, &count) in &self.buckets {
            match runs.last_mut() {
                Some(run) if index == next => run.length += 1,
                _ => runs.push(Run {
                    offset: index - next,
                    length: 1,
                }),
            }
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            deltas.push(count - before);
            (next, before) = (index + 1, count);
        }
        (runs, deltas)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: impl IntoIterator<Item = f64>) -> Native {
        let mut native = Native::default();
        values.into_iter().for_each(|value| native.count(value));
        native
    }

    /// By the definition, from a bucket's index.
    fn holds(schema: i32, index: i32, value: f64) -> bool {
        let bound = |index: i32| (f64::from(index) / f64::from(schema).exp2()).exp2();
        bound(index - 1) < value && value <= bound(index)
    }

    #[test]
    fn a_value_is_in_the_bucket_whose_bounds_hold_it() {
        for exponent in -100..=100 {
            let bound = f64::from(exponent).exp2();
            // A bound is its own bucket's, whatever is a little more the next one's.
            assert_eq!(of([bound]).buckets, BTreeMap::from([(exponent * 8, 1)]));
            let above = of([bound * 1.000_001]);
            assert_eq!(above.buckets, BTreeMap::from([(exponent * 8 + 1, 1)]));
        }
        let mut value = 1e-6;
        while value < 1e6 {
            let native = of([value]);
            let (&index, _) = native.buckets.first_key_value().unwrap();
            assert!(holds(3, index, value), "{value} in {index}");
            value *= 1.013;
        }
    }

    #[test]
    fn zeros_are_apart_and_what_is_hardly_more_is_one() {
        let native = of([0.0, ZERO_THRESHOLD, 2.0 * ZERO_THRESHOLD]);
        assert_eq!(ZERO_THRESHOLD, (-128f64).exp2());
        assert_eq!(native.zeros(), 2);
        assert_eq!(native.buckets, BTreeMap::from([(-127 * 8, 1)]));
    }

    #[test]
    fn buckets_become_wider_and_never_many() {
        // Every double there is room for: no schema of eight a power would do.
        let values: Vec<f64> = (-1000..=1000)
            .map(|tenth| (f64::from(tenth) / 10.0).exp2() * 1.01)
            .collect();
        let mut native = Native::default();
        for (seen, &value) in values.iter().enumerate() {
            native.count(value);
            assert!(native.buckets.len() <= MOST_BUCKETS);
            assert_eq!(native.buckets.values().sum::<u64>(), seen as u64 + 1);
        }
        assert_eq!(native.schema(), -1);
        // Widened on the way or counted so wide from the start: the same.
        let mut wide = Native {
            schema: native.schema(),
            ..Native::default()
        };
        values.iter().for_each(|&value| wide.count(value));
        assert_eq!(native, wide);
        assert_eq!(of([f64::MAX, f64::from_bits(1)]).buckets.len(), 1);
    }

    #[test]
    fn runs_say_where_buckets_are() {
        let native = of([1.0, 1.0, 1.0, 1.05, 2.0, 0.25]);
        let (runs, deltas) = native.runs();
        let run = |offset, length| Run { offset, length };
        assert_eq!(runs, [run(-16, 1), run(15, 2), run(6, 1)]);
        assert_eq!(deltas, [1, 2, -2, 0]);
        assert_eq!(Native::default().runs(), (vec![], vec![]));
    }
}
