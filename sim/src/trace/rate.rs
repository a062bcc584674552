//! When requests come: a rate that changes over time, and gaps that are more or less even.

use serde::{Deserialize, Serialize};

use crate::random::Random;

/// The rate is looked at this often, in seconds.
const GRID: f64 = 0.25;

/// Requests a second, or a second and GPU: whoever reads it says.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Seconds and the rate then; in between it goes in straight lines. Two entries of one time are a step.
    pub points: Vec<(f64, f64)>,
    #[serde(default)]
    pub wave: Option<Wave>,
    #[serde(default)]
    pub bursts: Option<Bursts>,
}

/// Multiplies the rate by `1 + amplitude * sin`, lowest at the start.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wave {
    /// Seconds.
    pub period: f64,
    /// 0 to 1.
    pub amplitude: f64,
}

/// A process of two states (Markov-modulated): in a burst the rate is `factor` times as high.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bursts {
    /// Mean seconds from the end of a burst to the next one's start, and mean seconds of one.
    pub every: f64,
    pub length: f64,
    pub factor: f64,
}

impl Rate {
    fn line(&self, at: f64) -> f64 {
        let after = self.points.iter().position(|&(time, _)| time > at);
        match after {
            Some(0) => self.points[0].1,
            Some(next) => {
                let ((from, low), (to, high)) = (self.points[next - 1], self.points[next]);
                low + (high - low) * (at - from) / (to - from)
            }
            None => self.points.last().map_or(0.0, |&(_, rate)| rate),
        }
    }

    fn at(&self, at: f64) -> f64 {
        let wave = self.wave.map_or(1.0, |wave| {
            1.0 - wave.amplitude * (std::f64::consts::TAU * at / wave.period).cos()
        });
        self.line(at) * wave
    }
}

/// Times of arrivals. Gaps are gamma-distributed in the time that runs as fast as the rate is high.
#[derive(Debug, Clone)]
pub struct Arrivals {
    rate: Rate,
    /// All rates are multiplied by it.
    scale: f64,
    /// Of the gamma distribution.
    shape: f64,
    random: Random,
    now: f64,
    until: f64,
    bursting: bool,
    /// When that changes.
    turns_at: f64,
}

impl Arrivals {
    /// `variation`: of gaps, 1 for Poisson.
    pub fn new(rate: Rate, scale: f64, variation: f64, until: f64, seed: u64) -> Arrivals {
        let mut random = Random::new(seed, "arrivals");
        let turns_at = rate
            .bursts
            .map_or(f64::INFINITY, |bursts| bursts.every * random.exponential());
        Arrivals {
            rate,
            scale,
            shape: 1.0 / (variation * variation),
            random,
            now: 0.0,
            until,
            bursting: false,
            turns_at,
        }
    }

    fn rate_now(&mut self) -> f64 {
        if let Some(bursts) = self.rate.bursts {
            while self.turns_at <= self.now {
                self.bursting = !self.bursting;
                let mean = if self.bursting {
                    bursts.length
                } else {
                    bursts.every
                };
                self.turns_at += mean * self.random.exponential();
            }
        }
        let factor = match (self.bursting, self.rate.bursts) {
            (true, Some(bursts)) => bursts.factor,
            _ => 1.0,
        };
        self.rate.at(self.now) * self.scale * factor
    }
}

impl Iterator for Arrivals {
    type Item = f64;

    fn next(&mut self) -> Option<f64> {
        let mut gap = self.random.gamma(self.shape) / self.shape;
        while self.now < self.until {
            let rate = self.rate_now();
            let edge = ((self.now / GRID).floor() + 1.0) * GRID;
            let in_cell = rate * (edge - self.now);
            if gap <= in_cell {
                self.now += gap / rate;
                return (self.now < self.until).then_some(self.now);
            }
            gap -= in_cell;
            self.now = edge;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(points: &[(f64, f64)]) -> Rate {
        Rate {
            points: points.to_vec(),
            wave: None,
            bursts: None,
        }
    }

    fn count(arrivals: Arrivals, from: f64, to: f64) -> f64 {
        arrivals.filter(|at| (from..to).contains(at)).count() as f64
    }

    #[test]
    fn as_many_come_as_the_rate_says() {
        let step = rate(&[(0.0, 10.0), (500.0, 10.0), (500.0, 40.0)]);
        for variation in [1.0, 3.0] {
            let arrivals = Arrivals::new(step.clone(), 1.0, variation, 1000.0, 1);
            let (low, high) = (
                count(arrivals.clone(), 0.0, 500.0),
                count(arrivals, 500.0, 1000.0),
            );
            assert!((low / 5_000.0 - 1.0).abs() < 0.1, "{low}");
            assert!((high / 20_000.0 - 1.0).abs() < 0.1, "{high}");
        }
    }

    #[test]
    fn gaps_vary_as_asked() {
        for variation in [0.5, 1.0, 2.0] {
            let mut last = 0.0;
            let gaps: Vec<f64> = Arrivals::new(rate(&[(0.0, 5.0)]), 1.0, variation, 10_000.0, 2)
                .map(|at| at - std::mem::replace(&mut last, at))
                .collect();
            let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
            let square = gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>();
            let found = (square / gaps.len() as f64).sqrt() / mean;
            assert!(
                (found / variation - 1.0).abs() < 0.05,
                "{variation}: {found}"
            );
        }
    }

    #[test]
    fn bursts_add_what_they_should() {
        let mut bursty = rate(&[(0.0, 1.0)]);
        bursty.bursts = Some(Bursts {
            every: 90.0,
            length: 10.0,
            factor: 11.0,
        });
        let found = Arrivals::new(bursty, 1.0, 1.0, 100_000.0, 3).count() as f64;
        assert!((found / 200_000.0 - 1.0).abs() < 0.1, "{found}");
    }
}
