//! Random numbers by purpose. Each purpose draws from a stream of its own, so that one more draw for
//! one thing does not change all others: policies are compared under the same arrivals.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

#[derive(Debug, Clone)]
pub struct Random(SmallRng);

impl Random {
    /// The stream of `purpose` under `seed`.
    pub fn new(seed: u64, purpose: &str) -> Random {
        let mixed = purpose
            .bytes()
            .fold(mix(seed), |sum, byte| mix(sum ^ u64::from(byte)));
        Random(SmallRng::seed_from_u64(mixed))
    }

    /// From 0 up to 1.
    pub fn uniform(&mut self) -> f64 {
        self.0.random()
    }

    /// A whole number below `bound`, which is at least 1.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0.random_range(0..bound)
    }

    /// Of mean 1.
    pub fn exponential(&mut self) -> f64 {
        -(1.0 - self.uniform()).ln()
    }

    /// Of mean 0 and deviation 1 (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (2.0 * self.exponential()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// A gamma variate of this shape and scale 1 (Marsaglia and Tsang, 2000).
    pub fn gamma(&mut self, shape: f64) -> f64 {
        if shape < 1.0 {
            let below = 1.0 - self.uniform();
            return self.gamma(shape + 1.0) * below.powf(1.0 / shape);
        }
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            let u = 1.0 - self.uniform();
            if v > 0.0 && u.ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d * v;
            }
        }
    }
}

/// A 64-bit value to another that looks unrelated (splitmix64's finish).
pub fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(mut draw: impl FnMut() -> f64) -> (f64, f64) {
        let values: Vec<f64> = (0..200_000).map(|_| draw()).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let square = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>();
        (mean, square / values.len() as f64)
    }

    fn close(found: (f64, f64), expected: (f64, f64)) {
        assert!((found.0 - expected.0).abs() < 0.02, "{found:?}");
        assert!(
            (found.1 - expected.1).abs() < 0.05 * expected.1,
            "{found:?}"
        );
    }

    #[test]
    fn draws_have_the_moments_of_their_distributions() {
        let mut random = Random::new(1, "moments");
        close(moments(|| random.exponential()), (1.0, 1.0));
        close(moments(|| random.normal()), (0.0, 1.0));
        for shape in [0.25, 1.0, 4.0] {
            close(moments(|| random.gamma(shape) / shape), (1.0, 1.0 / shape));
        }
    }

    #[test]
    fn purposes_have_streams_of_their_own() {
        let first = |seed, purpose| Random::new(seed, purpose).uniform();
        assert_eq!(first(1, "a"), first(1, "a"));
        assert_ne!(first(1, "a"), first(1, "b"));
        assert_ne!(first(1, "a"), first(2, "a"));
    }
}
