//! From logits to tokens, as vLLM does it.
//!
//! The backend does it where the logits are, by what a request [wants](SamplingParams::want) of a row.
//! Order: log-probs are taken from the raw logits; then logit bias and `min_tokens`, penalties,
//! temperature, `min_p`, `top_k`, `top_p`, and the draw.
//!
//! **The draw depends on the seed and on how many tokens came before, on nothing else.** So the
//! same seed gives the same output in any batch, after preemption, on another worker, and with
//! speculation on or off. A draft is accepted exactly when it is the token that would have been
//! drawn anyway. For a draft that is a fixed token (as an arg-max of the MTP layer is), that is
//! rejection sampling in the sense of Leviathan et al. 2023: the draft `d` is accepted with
//! probability `p(d)`, and otherwise the token comes from `p` restricted to the others.

mod choice;
mod history;
mod params;
#[cfg(test)]
mod tests;

pub use choice::{Answer, NotFinite, Token, Want, answer};
pub use history::History;
pub use params::SamplingParams;
