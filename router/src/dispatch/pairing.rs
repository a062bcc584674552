//! Which prefill and which decode worker take a sequence.
//!
//! Costs are in tokens: the time a prefill worker needs to compute one prompt token. Pages cost the
//! same to move between any two workers, so each worker's cost stands for itself:
//!
//! ```text
//! prefill:  waiting_tokens + uncached + 64 * missing_pages
//! decode:   waiting_tokens + arrival + 16 * sequences + 1024 * over + 64 * missing_pages
//! ```
//!
//! - `uncached`: tokens of the sequence not in the worker's prefix cache (at least one: the last
//!   token is always computed). `waiting_tokens`: what it must compute before, for others.
//! - `arrival`: `uncached` if the decode worker computes them itself, a sixteenth of it if they are
//!   computed elsewhere and only their pages must come here.
//! - `sequences`, running and waiting: each makes every step of the batch longer, over the life of
//!   the new sequence by about as much as 16 prompt tokens would.
//! - `over`: by how many sequences the batch would exceed `max_running`; each of them must end
//!   before this one begins. `missing_pages`: likewise for pages.
//!
//! Both are of one revision of the deployment: those alone share weights and a layout of pages. During
//! a rollout there are several, and the cheapest pair of all takes the sequence, so that traffic
//! shifts by what each revision can bear. A revision that has decode workers and no prefill worker
//! to go with them is half up, or half down: it is asked only if no other is [`Whole`].
//!
//! Equal costs go to the decode worker that was given fewest sequences, then to the one that attached
//! first; likewise for prefill. Loads include what this router sent and the worker has not yet
//! reported, so a burst spreads.
//!
//! The pair is the cheapest of all, and yet few workers are looked at ([`cheapest`]).

mod blocks;
mod cheapest;
mod reason;

use millrace_model::blocks::BLOCK_TOKENS;

pub use blocks::Blocks;
pub use reason::Reasons;

use crate::fleet::{Demand, Fleet, Pool, Rank, Role, WorkerKey};
use Standing::{Lacking, Whole};
use cheapest::{Best, cheapest};

/// Moving a token's latent pages against computing them.
const MOVE_DISCOUNT: u64 = 16;
const MISSING_PAGE_COST: u64 = BLOCK_TOKENS as u64;
/// Pages are counted for this much output; most sequences end well before `max_tokens`.
const EXPECTED_OUTPUT: u32 = 256;

/// A sequence that looks for workers.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// Prompt and output so far.
    pub tokens: u32,
    /// Hashes of all full blocks of those tokens, under each model.
    pub blocks: &'a Blocks,
    /// How many more tokens may be generated.
    pub max_output: u32,
    /// It has begun under this model revision, and goes on under it while a decode worker of it is
    /// attached that may take it, if not now.
    pub model: Option<&'a str>,
    /// Workers that failed this sequence.
    pub not_decode: &'a [WorkerKey],
    pub not_prefill: &'a [WorkerKey],
}

/// The chosen workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    pub decode: Chosen,
    /// `None`: the decode worker computes the prompt itself, since no prefill worker is left.
    pub prefill: Option<Chosen>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chosen {
    pub worker: WorkerKey,
    /// Tokens of the sequence expected in its prefix cache.
    pub overlap: u32,
    /// What the sequence adds to its load.
    pub demand: Demand,
}

/// How complete a revision is for a sequence. The lesser comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    /// It has a worker for both halves, or is meant to do without prefill workers.
    Whole,
    /// Its decode workers must prefill. Where nobody said that they are meant to, prefill workers are
    /// still to come, or were lost.
    Lacking,
}

impl Standing {
    fn of(aggregated: bool, has_prefill: bool) -> Standing {
        match has_prefill || aggregated {
            true => Whole,
            false => Lacking,
        }
    }
}

/// What a worker does for a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Prefill,
    /// Another prefills.
    Decode,
    /// It prefills by itself and decodes.
    Whole,
}

impl Part {
    /// The cost of `uncached` tokens and what they add to the worker's load.
    fn of(self, ask: &Ask, uncached: u64) -> (u64, Demand) {
        let (cost, tokens) = match self {
            Part::Prefill | Part::Whole => (uncached, uncached),
            Part::Decode => (uncached / MOVE_DISCOUNT, 0),
        };
        let output = match self {
            Part::Prefill => 0,
            Part::Decode | Part::Whole => u64::from(ask.max_output.min(EXPECTED_OUTPUT)),
        };
        let pages = (uncached + output).div_ceil(BLOCK_TOKENS as u64);
        (cost, Demand { tokens, pages })
    }
}

/// Chooses a pair. `None` if no decode worker is available.
pub fn choose(fleet: &Fleet, ask: &Ask) -> Option<Pair> {
    let prefills: Vec<(&Pool, Best)> = fleet
        .pools(Role::Prefill)
        .filter_map(|pool| Some((pool, cheapest(fleet, ask, pool, Part::Prefill)?)))
        .collect();
    let model = ask.model.filter(|model| may_go_on(fleet, model));
    let pair = |pool: &Pool| -> Option<((Standing, Rank), Pair)> {
        let prefill = prefills
            .iter()
            .filter(|(of, _)| of.revision == pool.revision)
            .map(|(_, best)| best)
            .min_by_key(|best| best.rank);
        let part = match prefill {
            Some(_) => Part::Decode,
            None => Part::Whole,
        };
        let decode = cheapest(fleet, ask, pool, part)?;
        let standing = Standing::of(pool.aggregated, prefill.is_some());
        let rank = decode.rank.plus(prefill.map_or(0, |best| best.rank.cost));
        let pair = Pair {
            decode: decode.chosen,
            prefill: prefill.map(|best| best.chosen),
        };
        Some(((standing, rank), pair))
    };
    fleet
        .pools(Role::Decode)
        .filter(|pool| model.is_none_or(|model| pool.model_revision == model))
        .filter_map(pair)
        .min_by_key(|(rank, _)| *rank)
        .map(|(_, pair)| pair)
}

/// A sequence of this model need not change to another: some worker has it, or will have it again.
fn may_go_on(fleet: &Fleet, model: &str) -> bool {
    fleet
        .workers(Role::Decode)
        .any(|(_, worker)| !worker.draining && worker.model_revision() == model)
}

#[cfg(test)]
mod tests;
