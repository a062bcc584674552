//! The parts of `config.json` that all families share, and the choice of family.

use std::path::Path;

use serde_json::Value;

use super::error::ConfigError;
use super::keys::{Keys, MAX_SIZE};
use super::quantization::Fp8Config;
use super::{CommonConfig, Family, ModelConfig, RopeConfig, SamplingDefaults, deepseek, dense};
use crate::files::{read_bounded, read_optional};

const CONFIG: &str = "config.json";
const GENERATION: &str = "generation_config.json";
/// A configuration is a few kilobytes; this only keeps a wrong file from being read whole.
const MAX_CONFIG_FILE: u64 = 16 << 20;
const MAX_VOCAB: usize = 1 << 24;
const MAX_LAYERS: usize = 4096;
const MAX_POSITIONS: usize = 1 << 30;

impl ModelConfig {
    /// Reads `config.json` and, if it is there, `generation_config.json` in `dir`.
    pub fn from_dir(dir: &Path) -> Result<ModelConfig, ConfigError> {
        let path = dir.join(CONFIG);
        let config = read_bounded(&path, MAX_CONFIG_FILE).map_err(|source| ConfigError::Read {
            path: path.clone(),
            source,
        })?;
        let path = dir.join(GENERATION);
        let generation =
            read_optional(&path, MAX_CONFIG_FILE).map_err(|source| ConfigError::Read {
                path: path.clone(),
                source,
            })?;
        let json = |file, bytes: &[u8]| {
            serde_json::from_slice(bytes).map_err(|source| ConfigError::Json { file, source })
        };
        let generation: Option<Value> = generation
            .map(|bytes| json(GENERATION, &bytes))
            .transpose()?;
        ModelConfig::from_json(&json(CONFIG, &config)?, generation.as_ref())
    }

    /// `config` is `config.json`, `generation` is `generation_config.json`.
    pub fn from_json(
        config: &Value,
        generation: Option<&Value>,
    ) -> Result<ModelConfig, ConfigError> {
        let keys = Keys::root(CONFIG, config)?;
        let generation = generation
            .map(|value| Keys::root(GENERATION, value))
            .transpose()?;
        let architecture = architecture(&keys)?;
        if let Some(act) = keys.opt_str("hidden_act")?
            && act != "silu"
        {
            return Err(keys.unsupported("hidden_act", "every supported family uses silu"));
        }
        let (family, rope): (Family, RopeConfig) = match architecture {
            "DeepseekV2ForCausalLM" => deepseek::parse(&keys, deepseek::Generation::V2)?,
            "DeepseekV3ForCausalLM" => deepseek::parse(&keys, deepseek::Generation::V3)?,
            "Qwen2ForCausalLM" => dense::parse(&keys, dense::Kind::Qwen2)?,
            "LlamaForCausalLM" => dense::parse(&keys, dense::Kind::Llama)?,
            "Qwen3ForCausalLM" => dense::parse(&keys, dense::Kind::Qwen3)?,
            other => {
                return Err(ConfigError::Architecture {
                    found: other.to_string(),
                });
            }
        };
        let vocab_size = keys.size("vocab_size", MAX_VOCAB)?;
        let mut eos_token_ids = keys.token_ids("eos_token_id", vocab_size)?;
        if let Some(generation) = &generation {
            eos_token_ids.extend(generation.token_ids("eos_token_id", vocab_size)?);
        }
        eos_token_ids.sort_unstable();
        eos_token_ids.dedup();
        let common = CommonConfig {
            architecture: architecture.to_string(),
            vocab_size,
            hidden_size: keys.size("hidden_size", MAX_SIZE)?,
            num_layers: keys.size("num_hidden_layers", MAX_LAYERS)?,
            rms_norm_eps: keys.positive("rms_norm_eps")?,
            max_position_embeddings: keys.size("max_position_embeddings", MAX_POSITIONS)?,
            tie_word_embeddings: keys.bool_or("tie_word_embeddings", false)?,
            bos_token_id: keys.token_ids("bos_token_id", vocab_size)?.first().copied(),
            eos_token_ids,
            rope,
            sampling_defaults: generation
                .as_ref()
                .map_or(Ok(SamplingDefaults::default()), sampling)?,
            quantization: Fp8Config::parse(&keys)?,
        };
        Ok(ModelConfig { common, family })
    }
}

fn architecture<'a>(keys: &Keys<'a>) -> Result<&'a str, ConfigError> {
    const EXPECTED: &str = "a list with the name of one architecture";
    match keys.get("architectures") {
        None => Err(keys.missing("architectures", EXPECTED)),
        Some(Value::Array(list)) => list
            .first()
            .and_then(Value::as_str)
            .ok_or_else(|| keys.wrong("architectures", EXPECTED)),
        Some(_) => Err(keys.wrong("architectures", EXPECTED)),
    }
}

/// Values that mean "off" (`top_k` 0 or -1) count as absent.
fn sampling(keys: &Keys) -> Result<SamplingDefaults, ConfigError> {
    let top_k = keys.opt_number("top_k", "an integer, -1 or more", |n| {
        n >= -1.0 && n.fract() == 0.0 && n < 2e9
    })?;
    Ok(SamplingDefaults {
        temperature: keys.opt_number("temperature", "a number, 0 or more", |n| n >= 0.0)?,
        top_p: keys.opt_number("top_p", "a number above 0 and at most 1", |n| {
            n > 0.0 && n <= 1.0
        })?,
        top_k: top_k.filter(|&k| k > 0.0).map(|k| k as u32),
        repetition_penalty: keys.opt_positive("repetition_penalty")?,
    })
}
