//! The numbers of rotary position embedding: plain, YaRN, Llama-3 and linear.
//!
//! Computed in float64 and then narrowed; transformers computes in float32, which differs by at
//! most about 1e-7 of each value (checked against `modeling_rope_utils` in the tests).

use crate::config::{RopeConfig, RopeScaling};

impl RopeConfig {
    /// Angles a position, in radians: `dim / 2` values, the fastest first.
    pub fn inv_freq(&self) -> Vec<f32> {
        let plain = plain_inv_freq(f64::from(self.theta), self.dim);
        let scaled: Vec<f64> = match self.scaling {
            RopeScaling::None => plain,
            RopeScaling::Linear { factor } => {
                plain.into_iter().map(|f| f / f64::from(factor)).collect()
            }
            RopeScaling::Yarn {
                factor,
                original_max_position,
                beta_fast,
                beta_slow,
                ..
            } => {
                let (low, high) = yarn_ramp(
                    self.theta,
                    self.dim,
                    original_max_position,
                    f64::from(beta_fast),
                    f64::from(beta_slow),
                );
                let blend = |(i, f): (usize, f64)| {
                    let stretched = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    f * (1.0 - stretched) + f / f64::from(factor) * stretched
                };
                plain.into_iter().enumerate().map(blend).collect()
            }
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position,
            } => {
                let (low, high) = (f64::from(low_freq_factor), f64::from(high_freq_factor));
                let context = original_max_position as f64;
                plain
                    .into_iter()
                    .map(|f| llama3_freq(f, f64::from(factor), low, high, context))
                    .collect()
            }
        };
        scaled.into_iter().map(|f| f as f32).collect()
    }

    /// What cosines and sines are multiplied by. 1 but for YaRN, where DeepSeek's equal `mscale`
    /// and `mscale_all_dim` give 1 again.
    pub fn cos_sin_factor(&self) -> f32 {
        match self.scaling {
            RopeScaling::Yarn {
                attention_factor: Some(explicit),
                ..
            } => explicit,
            RopeScaling::Yarn {
                factor,
                mscale: Some(m),
                mscale_all_dim: Some(all),
                ..
            } => {
                let factor = f64::from(factor);
                (yarn_mscale(factor, f64::from(m)) / yarn_mscale(factor, f64::from(all))) as f32
            }
            RopeScaling::Yarn { factor, .. } => yarn_mscale(f64::from(factor), 1.0) as f32,
            _ => 1.0,
        }
    }
}

/// YaRN's attention scale for a context `factor` times as long (paper, section 3.4).
pub(crate) fn yarn_mscale(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 {
        1.0
    } else {
        0.1 * mscale * factor.ln() + 1.0
    }
}

fn plain_inv_freq(theta: f64, dim: usize) -> Vec<f64> {
    (0..dim / 2)
        .map(|i| theta.powf(-((2 * i) as f64) / dim as f64))
        .collect()
}

/// Indexes between which frequencies pass from kept (they turn more than `beta_fast` times within
/// the original context) to divided by the factor (fewer than `beta_slow` times).
fn yarn_ramp(
    theta: f32,
    dim: usize,
    original_max_position: usize,
    beta_fast: f64,
    beta_slow: f64,
) -> (f64, f64) {
    let dim = dim as f64;
    let index_of = |turns: f64| {
        dim * (original_max_position as f64 / (turns * std::f64::consts::TAU)).ln()
            / (2.0 * f64::from(theta).ln())
    };
    let low = index_of(beta_fast).floor().max(0.0);
    let high = index_of(beta_slow).ceil().min(dim - 1.0);
    // Transformers widens an empty ramp by the same amount; a negative one would flip it.
    if high > low {
        (low, high)
    } else {
        (low, low + 0.001)
    }
}

/// Llama 3: wavelengths longer than `context / low` are stretched, shorter than `context / high`
/// kept, and those between interpolated.
fn llama3_freq(freq: f64, factor: f64, low: f64, high: f64, context: f64) -> f64 {
    let turns = context * freq / std::f64::consts::TAU;
    if turns < low {
        freq / factor
    } else if turns > high {
        freq
    } else {
        let kept = (turns - low) / (high - low);
        (1.0 - kept) * freq / factor + kept * freq
    }
}
