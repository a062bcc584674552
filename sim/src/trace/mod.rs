//! What comes in: times, lengths, and which prompts begin alike.

mod drawn;
mod lengths;
mod rate;

use millrace_model::blocks::{BLOCK_TOKENS, BlockHash};
use serde::{Deserialize, Serialize};

pub use drawn::Drawn;
pub use lengths::{Length, Lengths, Shape};
pub use rate::{Arrivals, Bursts, Rate, Wave};

use crate::clock::{Nanos, nanos};
use crate::random::mix;

/// A scenario's traffic.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// Lengths, variation and sessions of a public trace. Whatever is given beside it is taken instead.
    #[serde(default)]
    pub shape: Option<Shape>,
    #[serde(default)]
    pub lengths: Option<Lengths>,
    /// Requests a second and GPU of the whole cluster, so that a scenario is the same at any size.
    #[serde(default)]
    pub rate: Rate,
    /// Requests that were recorded, instead of all that: seconds, prompt tokens and output tokens of each, in order of
    /// time. They are the same at any size, and no two prompts begin alike.
    #[serde(default)]
    pub requests: Vec<(f64, u32, u32)>,
    /// Coefficient of variation of the gaps between arrivals: 1 is Poisson.
    #[serde(default)]
    pub variation: Option<f64>,
    #[serde(default)]
    pub sessions: Option<Sessions>,
}

impl Workload {
    pub fn sessions(&self) -> Option<Sessions> {
        self.sessions.or(self.shape.and_then(Shape::sessions))
    }
}

/// Conversations of several turns: each turn's prompt is all that was said before and something new.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sessions {
    /// Mean, at least 1; geometric.
    pub turns: f64,
    /// Mean seconds between the end of an answer, at 40 ms a token, and the next turn; exponential.
    pub think: f64,
    /// Of each conversation one is the beginning.
    pub system_prompts: u32,
    pub system_tokens: u32,
}

/// One request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Arrival {
    pub at: Nanos,
    pub prompt: u32,
    pub output: u32,
    pub origin: Origin,
}

/// What a prompt's tokens are of: the first blocks of a system prompt, all others of the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    session: u64,
    system: u64,
    system_blocks: u32,
}

impl Origin {
    /// Names of the full blocks of `tokens` tokens. Equal where prompts begin alike, and nowhere else.
    pub fn blocks(&self, tokens: u32) -> Vec<BlockHash> {
        let name = |at: u64| {
            let system = at < u64::from(self.system_blocks);
            // Sessions are numbered upwards, system prompts downwards.
            let of = if system { !self.system } else { self.session };
            let low = mix(mix(of) ^ at);
            BlockHash(u128::from(mix(low ^ of)) << 64 | u128::from(low))
        };
        (0..u64::from(tokens) / BLOCK_TOKENS as u64)
            .map(name)
            .collect()
    }
}

/// The requests of a run, in order of time. The same for every policy.
pub enum Trace {
    Drawn(Box<Drawn>),
    Recorded(std::vec::IntoIter<Arrival>),
}

impl Trace {
    /// `gpus` scale the rate; no sequence is longer than `max_tokens`.
    ///
    /// # Panics
    /// Without lengths: [`Scenario::check`](crate::Scenario::check) finds that before.
    pub fn new(workload: &Workload, gpus: u32, seconds: f64, max_tokens: u32, seed: u64) -> Trace {
        if workload.requests.is_empty() {
            let drawn = Drawn::new(workload, gpus, seconds, max_tokens, seed);
            return Trace::Drawn(Box::new(drawn));
        }
        let until = nanos(seconds);
        let arrivals = workload.requests.iter().zip(0..).map(|(one, session)| {
            let &(at, prompt, output) = one;
            let output = output.min(max_tokens / 2).max(1);
            Arrival {
                at: nanos(at),
                prompt: prompt.clamp(1, max_tokens - output - 1),
                output,
                origin: Origin {
                    session,
                    system: 0,
                    system_blocks: 0,
                },
            }
        });
        let arrivals: Vec<Arrival> = arrivals.take_while(|one| one.at < until).collect();
        Trace::Recorded(arrivals.into_iter())
    }
}

impl Iterator for Trace {
    type Item = Arrival;

    fn next(&mut self) -> Option<Arrival> {
        match self {
            Trace::Drawn(drawn) => drawn.next(),
            Trace::Recorded(arrivals) => arrivals.next(),
        }
    }
}
