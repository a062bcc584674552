//! From logits to tokens, as vLLM does it.
//!
//! Order: log-probs are taken from the raw logits; then logit bias and `min_tokens`, penalties,
//! temperature, `min_p`, `top_k`, `top_p`, and the draw.
//!
//! **The draw depends on the seed and on how many tokens came before, on nothing else.** So the
//! same seed gives the same output in any batch, after preemption, on another worker, and with
//! speculation on or off. A draft is accepted exactly when it is the token that would have been
//! drawn anyway. For a draft that is a fixed token (as an arg-max of the MTP layer is), that is
//! rejection sampling in the sense of Leviathan et al. 2023: the draft `d` is accepted with
//! probability `p(d)`, and otherwise the token comes from `p` restricted to the others.

mod logprobs;
mod params;
mod sampler;

pub use logprobs::{LogProbs, log_probs};
pub use params::SamplingParams;
pub use sampler::{History, NotFinite, Sampler};
