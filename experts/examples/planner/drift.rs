//! Made-up loads: zipf popularity that drifts from window to window. The same seed, the same loads.

use millrace_experts::Loads;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

/// Tokens a window times the experts each chooses.
const CHOICES: f64 = 65_536.0 * 8.0;

/// What becomes of popularity in one window: each expert's is scaled by about this much up or down,
const WOBBLE: f64 = 0.1;

/// and this part of the experts trade places with another.
const TRADE: f64 = 0.02;

pub struct Drift {
    rng: SmallRng,
    /// `[layer][expert]`.
    popularity: Vec<Vec<f64>>,
}

impl Drift {
    /// The k-th most popular expert of a layer is chosen in proportion to k^-`exponent`.
    pub fn new(seed: u64, layers: usize, experts: usize, exponent: f64) -> Drift {
        let mut rng = SmallRng::seed_from_u64(seed);
        let layer = |_| {
            let mut layer: Vec<f64> = (1..=experts).map(|k| (k as f64).powf(-exponent)).collect();
            layer.shuffle(&mut rng);
            layer
        };
        let popularity = (0..layers).map(layer).collect();
        Drift { rng, popularity }
    }

    /// The counts of the next window, noise of sampling included.
    pub fn window(&mut self) -> Loads {
        let experts = self.popularity[0].len();
        let mut counts = Vec::new();
        for layer in &mut self.popularity {
            for popularity in layer.iter_mut() {
                *popularity *= (WOBBLE * normal(&mut self.rng)).exp();
            }
            for expert in 0..experts {
                if self.rng.random_bool(TRADE) {
                    layer.swap(expert, self.rng.random_range(0..experts));
                }
            }
            let sum: f64 = layer.iter().sum();
            counts.extend(layer.iter().map(|popularity| {
                let expected = popularity / sum * CHOICES;
                let count = expected + expected.sqrt() * normal(&mut self.rng);
                count.max(0.0).round() as u64
            }));
        }
        Loads { experts, counts }
    }
}

/// Nearly: the sum of twelve uniform numbers has variance 1.
fn normal(rng: &mut SmallRng) -> f64 {
    (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0
}
