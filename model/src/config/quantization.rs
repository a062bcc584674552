//! `quantization_config`: block-scaled FP8 as in DeepSeek-V3, or none.

use super::error::ConfigError;
use super::keys::Keys;

/// Linear weights are `float8_e4m3fn` with one `weight_scale_inv` a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fp8Config {
    /// Output rows a scale covers (128 in every published checkpoint).
    pub block_rows: usize,
    /// Input columns a scale covers.
    pub block_cols: usize,
    pub scale_format: ScaleFormat,
}

/// What the scales' values are, whichever type stores them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleFormat {
    /// Any float32 (V3, R1).
    Float32,
    /// Powers of two (`scale_fmt: ue8m0`, V3.1): activations are meant to be quantised with
    /// power-of-two scales too.
    Ue8m0,
}

const MAX_BLOCK: u64 = 1 << 16;

impl Fp8Config {
    /// `None` if the checkpoint is not quantised.
    pub(super) fn parse(root: &Keys) -> Result<Option<Fp8Config>, ConfigError> {
        let Some(keys) = root.object("quantization_config", "quantization_config.")? else {
            return Ok(None);
        };
        match keys.opt_str("quant_method")? {
            Some("fp8") => {}
            Some(_) => {
                return Err(keys.unsupported("quant_method", "only DeepSeek's block-scaled fp8 is"));
            }
            None => return Err(keys.missing("quant_method", "\"fp8\"")),
        }
        if keys.opt_str("fmt")?.is_some_and(|fmt| fmt != "e4m3") {
            return Err(keys.unsupported("fmt", "only e4m3 is"));
        }
        if keys
            .opt_str("activation_scheme")?
            .is_some_and(|scheme| scheme != "dynamic")
        {
            return Err(keys.unsupported("activation_scheme", "only dynamic is"));
        }
        let scale_format = match keys.opt_str("scale_fmt")? {
            None | Some("float32" | "fp32") => ScaleFormat::Float32,
            Some("ue8m0") => ScaleFormat::Ue8m0,
            Some(_) => {
                return Err(keys.unsupported("scale_fmt", "only ue8m0, or none for float32, is"));
            }
        };
        const EXPECTED: &str = "two positive integers, usually [128, 128]";
        let Some(block) = keys.get("weight_block_size") else {
            return Err(keys.missing("weight_block_size", EXPECTED));
        };
        let sides: Option<Vec<usize>> = block.as_array().and_then(|list| {
            let side = |v: &serde_json::Value| {
                v.as_u64()
                    .filter(|n| (1..=MAX_BLOCK).contains(n))
                    .map(|n| n as usize)
            };
            list.iter().map(side).collect()
        });
        match sides.as_deref() {
            Some(&[block_rows, block_cols]) => Ok(Some(Fp8Config {
                block_rows,
                block_cols,
                scale_format,
            })),
            _ => Err(keys.wrong("weight_block_size", EXPECTED)),
        }
    }
}
