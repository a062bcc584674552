//! Waiting for one of several equal servers, closed forms only: a pool may have thousands.

/// Waiting times in M/G/c: none with some probability, else exponential. The probability is
/// Sakasegawa's (1977), the mean Allen and Cunneen's correction of it for how much service times vary.
/// Exact in the mean for one server.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Wait {
    /// Of waiting at all.
    pub probability: f64,
    /// One over the mean of those that wait, 1/s.
    pub rate: f64,
}

impl Wait {
    pub const NONE: Wait = Wait {
        probability: 0.0,
        rate: f64::INFINITY,
    };

    /// `utilization` is the share of the servers that is busy, `service` the mean seconds of one, and
    /// `variation` its squared coefficient of variation. `None`: the queue grows without bound.
    pub fn of(servers: f64, utilization: f64, service: f64, variation: f64) -> Option<Wait> {
        if utilization <= 0.0 || service <= 0.0 {
            return Some(Wait::NONE);
        }
        if utilization >= 1.0 || servers <= 0.0 {
            return None;
        }
        let exponent = (2.0 * (servers + 1.0)).sqrt() - 1.0;
        let mean = service * (1.0 + variation) / 2.0 / (servers * (1.0 - utilization));
        Some(Wait {
            probability: utilization.powf(exponent),
            rate: 1.0 / mean,
        })
    }

    pub fn mean(&self) -> f64 {
        self.probability / self.rate
    }

    /// P(wait > `seconds`).
    pub fn beyond(&self, seconds: f64) -> f64 {
        if seconds < 0.0 {
            return 1.0;
        }
        self.probability * tail(self.rate, seconds)
    }

    /// P(this wait + `other` > `seconds`), the two independent.
    pub fn sum_beyond(&self, other: &Wait, seconds: f64) -> f64 {
        if seconds < 0.0 {
            return 1.0;
        }
        let (one, two) = (self.probability, other.probability);
        let (a, b) = (tail(self.rate, seconds), tail(other.rate, seconds));
        let both = one * two;
        let together = if both == 0.0 {
            0.0
        } else if self.rate.is_infinite() {
            b
        } else if other.rate.is_infinite() {
            a
        } else if (self.rate - other.rate).abs() < 1e-6 * self.rate {
            a * (1.0 + self.rate * seconds)
        } else {
            (other.rate * a - self.rate * b) / (other.rate - self.rate)
        };
        one * (1.0 - two) * a + two * (1.0 - one) * b + both * together
    }
}

fn tail(rate: f64, seconds: f64) -> f64 {
    if rate.is_infinite() {
        0.0
    } else {
        (-rate * seconds).exp()
    }
}

/// The standard normal distribution's quantile, to 0.0005 (Abramowitz and Stegun 26.2.23).
/// `quantile` is 0.5 to 1.
pub fn normal(quantile: f64) -> f64 {
    let t = (-2.0 * (1.0 - quantile.clamp(0.5, 0.999_999)).ln()).sqrt();
    let above = 2.515517 + t * (0.802853 + t * 0.010328);
    let below = 1.0 + t * (1.432788 + t * (0.189269 + t * 0.001308));
    t - above / below
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_server_waits_as_pollaczek_and_khinchine_say() {
        // rho / (1 - rho) * s * (1 + cv²) / 2
        let wait = Wait::of(1.0, 0.8, 0.5, 0.0).unwrap();
        assert!((wait.mean() - 0.8 / 0.2 * 0.5 / 2.0).abs() < 1e-12);
    }

    #[test]
    fn two_waits_add_up_as_their_sum_integrated() {
        let (one, two) = (
            Wait {
                probability: 0.7,
                rate: 2.0,
            },
            Wait {
                probability: 0.4,
                rate: 5.0,
            },
        );
        let t = 0.6;
        let steps = 100_000;
        let width = t / f64::from(steps);
        // P(one > t - x) over two's density, its atom at 0 and its tail.
        let mut integral = (1.0 - two.probability) * one.beyond(t) + two.beyond(t);
        for i in 0..steps {
            let x = (f64::from(i) + 0.5) * width;
            let density = two.probability * two.rate * (-two.rate * x).exp();
            integral += width * density * one.beyond(t - x);
        }
        assert!((one.sum_beyond(&two, t) - integral).abs() < 1e-6);
        assert!(
            (one.sum_beyond(&one, t) - {
                let near = Wait { rate: 2.001, ..one };
                one.sum_beyond(&near, t)
            })
            .abs()
                < 1e-3
        );
    }

    #[test]
    fn a_full_pool_has_no_wait_to_tell() {
        assert_eq!(Wait::of(4.0, 1.0, 1.0, 1.0), None);
        assert_eq!(Wait::of(0.0, 0.5, 1.0, 1.0), None);
        assert_eq!(Wait::of(0.0, 0.0, 1.0, 1.0), Some(Wait::NONE));
    }

    #[test]
    fn normal_quantiles() {
        assert!((normal(0.95) - 1.6449).abs() < 1e-3);
        assert!(normal(0.5).abs() < 1e-3);
        assert!((normal(0.999) - 3.0902).abs() < 1e-3);
    }
}
