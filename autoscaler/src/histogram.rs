//! What can be read off a histogram whose buckets are wide: a bucket may hold everything between 20 and
//! 50 ms. Its sum is exact, so that means are; quantiles between two bounds are a guess, and whether an
//! objective is violated is asked of whole buckets alone.

use crate::observation::Distribution;

/// More buckets than this are no histogram of ours.
const MOST_BUCKETS: usize = 256;

/// Points that a bucket's samples are taken for.
const PARTS: f64 = 3.0;

/// A consistent one: bounds ascend, there is one count more than bounds, the sum is finite and not
/// negative. Without counts: nothing was ever counted, and it takes the buckets of the first one added.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Histogram {
    bounds: Vec<f64>,
    counts: Vec<u64>,
    sum: f64,
}

/// Samples of one bucket, all taken to be at one value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    pub count: f64,
    pub value: f64,
}

impl Histogram {
    /// `None` if it is inconsistent.
    pub fn of(told: &Distribution) -> Option<Histogram> {
        let Distribution {
            bounds,
            counts,
            sum,
        } = told;
        if bounds.is_empty() && counts.is_empty() {
            return Some(Histogram::default());
        }
        let ascending = bounds.windows(2).all(|pair| pair[0] < pair[1]);
        let sane = bounds
            .iter()
            .all(|bound| bound.is_finite() && *bound >= 0.0)
            && ascending
            && !bounds.is_empty()
            && bounds.len() <= MOST_BUCKETS
            && counts.len() == bounds.len() + 1
            && sum.is_finite()
            && *sum >= 0.0;
        sane.then(|| Histogram {
            bounds: bounds.clone(),
            counts: counts.clone(),
            sum: *sum,
        })
    }

    /// What was counted after `earlier`. `None` if it cannot have been earlier.
    pub fn since(&self, earlier: &Histogram) -> Option<Histogram> {
        if earlier.counts.is_empty() {
            return Some(self.clone());
        }
        if self.bounds != earlier.bounds {
            return None;
        }
        let counts = self.counts.iter().zip(&earlier.counts);
        let counts = counts.map(|(now, then)| now.checked_sub(*then));
        Some(Histogram {
            bounds: self.bounds.clone(),
            counts: counts.collect::<Option<_>>()?,
            sum: (self.sum - earlier.sum).max(0.0),
        })
    }

    /// Of other buckets: samples count where their bucket's upper bound is.
    pub fn add(&mut self, other: &Histogram) {
        if self.counts.is_empty() {
            *self = other.clone();
            return;
        }
        let last = self.counts.len() - 1;
        for (i, &count) in other.counts.iter().enumerate() {
            let to = if self.bounds == other.bounds {
                i
            } else {
                other.bounds.get(i).map_or(last, |upper| {
                    self.bounds.partition_point(|bound| bound < upper)
                })
            };
            self.counts[to] = self.counts[to].saturating_add(count);
        }
        self.sum += other.sum;
    }

    pub fn count(&self) -> f64 {
        self.counts.iter().map(|&count| count as f64).sum()
    }

    pub fn mean(&self) -> Option<f64> {
        let count = self.count();
        (count > 0.0).then(|| self.sum / count)
    }

    /// Samples in buckets that are wholly above `value`.
    pub fn surely_above(&self, value: f64) -> f64 {
        self.buckets()
            .filter(|&(_, lower, _)| lower >= value)
            .map(|(count, ..)| count)
            .sum()
    }

    /// Share of samples at or below `value`. `None` if there are none.
    pub fn share_within(&self, value: f64) -> Option<f64> {
        let all = self.count();
        let exponent = self.exponent();
        let within: f64 = self
            .buckets()
            .map(|(count, lower, upper)| {
                let part = ((value - lower) / (upper - lower)).clamp(0.0, 1.0);
                count * part.powf(1.0 / exponent)
            })
            .sum();
        (all > 0.0).then(|| (within / all).clamp(0.0, 1.0))
    }

    /// `None` if there are no samples.
    pub fn quantile(&self, quantile: f64) -> Option<f64> {
        let mut left = quantile * self.count();
        let exponent = self.exponent();
        let mut last = None;
        for (count, lower, upper) in self.buckets().filter(|bucket| bucket.0 > 0.0) {
            if left <= count {
                return Some(lower + (upper - lower) * (left.max(0.0) / count).powf(exponent));
            }
            left -= count;
            last = Some(upper);
        }
        last
    }

    /// A few for each bucket with samples. Their mean is the histogram's, as far as the buckets allow.
    pub fn points(&self) -> Vec<Point> {
        let exponent = self.exponent();
        // Means of thirds of a bucket's samples: of u^exponent between two u.
        let up_to = |part: f64| part.powf(exponent + 1.0) / (exponent + 1.0) * PARTS;
        let parts = || (0..PARTS as u32).map(|i| f64::from(i) / PARTS);
        let within: Vec<f64> = parts().map(|u| up_to(u + 1.0 / PARTS) - up_to(u)).collect();
        let filled = self.buckets().filter(|bucket| bucket.0 > 0.0);
        filled
            .flat_map(|(count, lower, upper)| {
                within.iter().map(move |within| Point {
                    count: count / PARTS,
                    value: lower + within * (upper - lower),
                })
            })
            .collect()
    }

    /// Squared coefficient of variation.
    pub fn variation(&self) -> f64 {
        let points = self.points();
        let count: f64 = points.iter().map(|p| p.count).sum();
        let mean = points.iter().map(|p| p.count * p.value).sum::<f64>() / count;
        let square = points.iter().map(|p| p.count * (p.value - mean).powi(2));
        let variation = square.sum::<f64>() / count / (mean * mean);
        if variation.is_finite() {
            variation
        } else {
            0.0
        }
    }

    /// (samples, lower, upper). The open bucket ends where the sum says, at twice its lower bound if that
    /// is no help.
    fn buckets(&self) -> impl Iterator<Item = (f64, f64, f64)> + '_ {
        self.counts.iter().enumerate().map(|(i, &count)| {
            let lower = if i == 0 { 0.0 } else { self.bounds[i - 1] };
            let upper = self.bounds.get(i).copied();
            (
                count as f64,
                lower,
                upper.unwrap_or_else(|| self.open(lower)),
            )
        })
    }

    fn open(&self, lower: f64) -> f64 {
        let closed = self.counts.iter().zip(&self.bounds);
        let most: f64 = closed.map(|(&count, upper)| count as f64 * upper).sum();
        let count = self.counts.last().map_or(0.0, |&count| count as f64);
        let mean = (self.sum - most) / count;
        let far = if mean.is_finite() {
            mean.min(1e12)
        } else {
            0.0
        };
        far.max(lower * 2.0).max(1e-9)
    }

    /// A bucket's samples are taken to lie at `lower + width * u^exponent`, u even between 0 and 1: of
    /// all exponents the one that makes the mean come out right.
    fn exponent(&self) -> f64 {
        let count = self.count();
        let (mut lowest, mut width) = (0.0, 0.0);
        for (count, lower, upper) in self.buckets() {
            lowest += count * lower;
            width += count * (upper - lower);
        }
        if count <= 0.0 || width <= 0.0 {
            return 1.0;
        }
        let within = ((self.sum - lowest) / width).clamp(0.05, 0.95);
        1.0 / within - 1.0
    }
}

#[cfg(test)]
#[path = "histogram_tests.rs"]
mod tests;
