//! A request as it comes in.

use millrace_engine::SamplingParams;
use millrace_proto::worker::v1 as wire;
use millrace_worker::wire::{InvalidField, sampling_from_wire};

/// What to generate, with every value checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    pub request_id: String,
    /// The prompt, and after it what was generated elsewhere before.
    pub tokens: Vec<u32>,
    pub prompt_tokens: usize,
    pub sampling: SamplingParams,
    pub cache_salt: String,
    /// `None`: prefill here.
    pub prefill: Option<PrefillWorker>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrefillWorker {
    pub id: String,
    /// `host:port`.
    pub address: String,
}

impl Generation {
    /// What only the engine can judge (lengths, token ids) it judges when it is submitted.
    pub fn from_wire(
        request: wire::GenerateRequest,
        vocab_size: usize,
    ) -> Result<Generation, InvalidField> {
        let sampling = request.sampling.ok_or(InvalidField::missing("sampling"))?;
        let prompt_tokens = request.prompt_token_ids.len();
        let mut tokens = request.prompt_token_ids;
        tokens.extend(request.output_token_ids);
        let prefill = match request.prefill {
            None => None,
            Some(target) if target.address.is_empty() => {
                return Err(InvalidField::missing("prefill.address"));
            }
            Some(target) => Some(PrefillWorker {
                id: target.worker_id,
                address: target.address,
            }),
        };
        Ok(Generation {
            request_id: request.request_id,
            tokens,
            prompt_tokens,
            sampling: sampling_from_wire(sampling, vocab_size)?,
            cache_salt: request.cache_salt,
            prefill,
        })
    }
}

#[cfg(test)]
mod tests {
    use millrace_worker::wire::sampling_to_wire;

    use super::*;

    fn request() -> wire::GenerateRequest {
        wire::GenerateRequest {
            request_id: "r1".to_string(),
            prompt_token_ids: vec![1, 2, 3],
            output_token_ids: vec![4],
            sampling: Some(sampling_to_wire(&SamplingParams {
                max_tokens: 8,
                ..SamplingParams::default()
            })),
            prefill: Some(wire::PrefillTarget {
                worker_id: "p1".to_string(),
                address: "10.0.0.1:9001".to_string(),
            }),
            cache_salt: String::new(),
        }
    }

    #[test]
    fn replayed_output_follows_the_prompt() {
        let generation = Generation::from_wire(request(), 100).unwrap();
        assert_eq!(generation.tokens, [1, 2, 3, 4]);
        assert_eq!(generation.prompt_tokens, 3);
        assert_eq!(generation.prefill.unwrap().id, "p1");
    }

    #[test]
    fn what_is_missing_is_named() {
        let mut without = request();
        without.sampling = None;
        let error = Generation::from_wire(without, 100).unwrap_err();
        assert_eq!(error.to_string(), "sampling is missing");
        let mut without = request();
        without.prefill.as_mut().unwrap().address.clear();
        let error = Generation::from_wire(without, 100).unwrap_err();
        assert_eq!(error.field, "prefill.address");
    }
}
