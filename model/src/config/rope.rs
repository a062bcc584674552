//! Rotary position parameters, in the older form (`rope_theta` and `rope_scaling`) and the newer
//! one (`rope_parameters`).

use super::error::ConfigError;
use super::keys::Keys;
use super::{RopeConfig, RopeScaling};

const MAX_POSITIONS: usize = 1 << 30;

/// `dim` values of a head are rotated.
pub(super) fn parse(root: &Keys, dim: usize, interleaved: bool) -> Result<RopeConfig, ConfigError> {
    refuse_partial(root)?;
    let older = root.object("rope_scaling", "rope_scaling.")?;
    let newer = root.object("rope_parameters", "rope_parameters.")?;
    let scaling = match (&older, &newer) {
        (None, None) => RopeScaling::None,
        (Some(keys), None) | (None, Some(keys)) => scaling(keys)?,
        (Some(a), Some(b)) => {
            let found = scaling(a)?;
            if found != scaling(b)? {
                return Err(root.wrong(
                    "rope_scaling",
                    "the same values as in rope_parameters, or only one of the two",
                ));
            }
            found
        }
    };
    let theta = match newer
        .as_ref()
        .map(|keys| keys.opt_positive("rope_theta"))
        .transpose()?
        .flatten()
    {
        Some(theta) => theta,
        None => root.positive("rope_theta")?,
    };
    if theta <= 1.0 {
        return Err(root.wrong("rope_theta", "a number above 1, such as 10000"));
    }
    Ok(RopeConfig {
        theta,
        dim,
        interleaved,
        scaling,
    })
}

fn scaling(keys: &Keys) -> Result<RopeScaling, ConfigError> {
    refuse_partial(keys)?;
    // `type` is the older name of `rope_type`.
    let key = if keys.get("rope_type").is_some() {
        "rope_type"
    } else {
        "type"
    };
    match keys.opt_str(key)? {
        // A `rope_parameters` with nothing but `rope_theta` has no type.
        None if keys.get("factor").is_none() => Ok(RopeScaling::None),
        None => Err(keys.missing("rope_type", "default, linear, yarn or llama3")),
        Some("default") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear {
            factor: factor(keys)?,
        }),
        Some("yarn") => yarn(keys),
        Some("llama3") => llama3(keys),
        Some(_) => Err(keys.unsupported(key, "known are default, linear, yarn and llama3")),
    }
}

fn yarn(keys: &Keys) -> Result<RopeScaling, ConfigError> {
    if !keys.bool_or("truncate", true)? {
        return Err(keys.unsupported("truncate", "the ramp's ends are rounded to whole indexes"));
    }
    let factor = factor(keys)?;
    let beta_fast = keys.opt_positive("beta_fast")?.unwrap_or(32.0);
    let beta_slow = keys.opt_positive("beta_slow")?.unwrap_or(1.0);
    if beta_fast < beta_slow {
        return Err(keys.wrong("beta_fast", format!("at least beta_slow ({beta_slow})")));
    }
    // `attn_factor` multiplies the computed factor (R1-0528-Qwen3-8B uses it to arrive at 1, and
    // vLLM reads it so); `attention_factor` replaces it.
    let attention_factor = match (
        keys.opt_positive("attention_factor")?,
        keys.opt_positive("attn_factor")?,
    ) {
        (Some(explicit), _) => Some(explicit),
        (None, Some(multiplier)) => {
            Some((f64::from(multiplier) * crate::rope::yarn_mscale(f64::from(factor), 1.0)) as f32)
        }
        (None, None) => None,
    };
    // DeepSeek writes 0 for "no such term".
    let mscale = |key| {
        keys.opt_number(key, "a number, 0 or more", |n| n >= 0.0)
            .map(|m| m.filter(|&m| m > 0.0))
    };
    Ok(RopeScaling::Yarn {
        factor,
        original_max_position: original_max_position(keys)?,
        beta_fast,
        beta_slow,
        mscale: mscale("mscale")?,
        mscale_all_dim: mscale("mscale_all_dim")?,
        attention_factor,
    })
}

fn llama3(keys: &Keys) -> Result<RopeScaling, ConfigError> {
    let low_freq_factor = keys.positive("low_freq_factor")?;
    let high_freq_factor = keys.positive("high_freq_factor")?;
    if high_freq_factor <= low_freq_factor {
        return Err(keys.wrong(
            "high_freq_factor",
            format!("more than low_freq_factor ({low_freq_factor})"),
        ));
    }
    Ok(RopeScaling::Llama3 {
        factor: factor(keys)?,
        low_freq_factor,
        high_freq_factor,
        original_max_position: original_max_position(keys)?,
    })
}

fn factor(keys: &Keys) -> Result<f32, ConfigError> {
    const EXPECTED: &str = "a number, 1 or more";
    keys.opt_number("factor", EXPECTED, |n| n >= 1.0)?
        .ok_or_else(|| keys.missing("factor", EXPECTED))
}

fn original_max_position(keys: &Keys) -> Result<usize, ConfigError> {
    keys.size("original_max_position_embeddings", MAX_POSITIONS)
}

fn refuse_partial(keys: &Keys) -> Result<(), ConfigError> {
    match keys.opt_positive("partial_rotary_factor")? {
        Some(part) if part != 1.0 => {
            Err(keys.unsupported("partial_rotary_factor", "whole heads are rotated"))
        }
        _ => Ok(()),
    }
}
