//! Arrivals: a Poisson process whose rate changes, and sequences whose lengths scatter.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

#[derive(Clone, Copy)]
pub struct Sequence {
    pub arrived: f64,
    /// Tokens.
    pub prompt: f64,
    pub generation: f64,
}

pub struct Arrivals {
    rng: SmallRng,
    rate: Box<dyn Fn(f64) -> f64>,
    /// No rate is above it.
    most: f64,
    until: f64,
}

impl Arrivals {
    pub fn new(seed: u64, most: f64, until: f64, rate: impl Fn(f64) -> f64 + 'static) -> Arrivals {
        Arrivals {
            rng: SmallRng::seed_from_u64(seed),
            rate: Box::new(rate),
            most,
            until,
        }
    }

    /// The time of the next one. `None`: there is no more.
    pub fn next(&mut self, mut now: f64) -> Option<f64> {
        if self.most <= 0.0 {
            return None;
        }
        loop {
            now -= (1.0 - self.rng.random::<f64>()).ln() / self.most;
            if now > self.until {
                return None;
            }
            if self.rng.random::<f64>() * self.most < (self.rate)(now) {
                return Some(now);
            }
        }
    }

    pub fn sequence(&mut self, arrived: f64) -> Sequence {
        let prompt = self.lognormal(1500.0, 1.0).clamp(16.0, 16_000.0).round();
        let generation = self.lognormal(250.0, 0.8).clamp(2.0, 4000.0).round();
        Sequence {
            arrived,
            prompt,
            generation,
        }
    }

    /// By mean and coefficient of variation.
    fn lognormal(&mut self, mean: f64, variation: f64) -> f64 {
        let sigma = (1.0 + variation * variation).ln().sqrt();
        let (one, two) = (1.0 - self.rng.random::<f64>(), self.rng.random::<f64>());
        let normal = (-2.0 * one.ln()).sqrt() * (std::f64::consts::TAU * two).cos();
        mean * (sigma * normal - sigma * sigma / 2.0).exp()
    }
}
