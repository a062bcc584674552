//! Which prefill and which decode worker take a sequence.
//!
//! Costs are in tokens: the time a prefill worker needs to compute one prompt token. The two choices
//! are independent, since pages cost the same to move between any two workers, so each is the
//! cheapest of its role:
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
//! Equal costs go to the worker that was given fewest sequences, then to the one that attached
//! first. Loads include what this router sent and the worker has not yet reported, so a burst
//! spreads. Revisions never mix: a [`Fleet`] holds workers of one revision and layout only.

use millrace_model::blocks::{BLOCK_TOKENS, BlockHash};

use crate::fleet::{Demand, Fleet, Match, Role, Worker, WorkerKey};

/// Moving a token's latent pages against computing them.
const MOVE_DISCOUNT: u64 = 16;
const SEQUENCE_COST: u64 = 16;
const OVER_COST: u64 = 1024;
const MISSING_PAGE_COST: u64 = BLOCK_TOKENS as u64;
/// Pages are counted for this much output; most sequences end well before `max_tokens`.
const EXPECTED_OUTPUT: u32 = 256;

/// A sequence that looks for workers.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// Prompt and output so far.
    pub tokens: u32,
    /// Hashes of all full blocks of those tokens.
    pub blocks: &'a [BlockHash],
    /// How many more tokens may be generated.
    pub max_output: u32,
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

/// Chooses a pair. `None` if no decode worker is available.
pub fn choose(fleet: &Fleet, ask: &Ask) -> Option<Pair> {
    let matches = fleet.matches(ask.blocks);
    let overlap = |worker| {
        let found = matches.binary_search_by_key(&worker, |m: &Match| m.worker);
        let blocks = found.map_or(0, |at| matches[at].blocks);
        ((blocks * BLOCK_TOKENS) as u32).min(ask.tokens.saturating_sub(1))
    };
    let cheapest = |role, excluded: &[WorkerKey], cost: &dyn Fn(&Worker, u32) -> (u64, Demand)| {
        fleet
            .available(role)
            .filter(|(key, _)| !excluded.contains(key))
            .map(|(worker, state)| {
                let overlap = overlap(worker);
                let (cost, demand) = cost(state, overlap);
                (
                    (cost, state.assigned, worker),
                    Chosen {
                        worker,
                        overlap,
                        demand,
                    },
                )
            })
            .min_by_key(|(rank, _)| *rank)
            .map(|(_, chosen)| chosen)
    };
    let prefill = cheapest(Role::Prefill, ask.not_prefill, &|worker, overlap| {
        prefill_cost(worker, ask, overlap)
    });
    let decode = cheapest(Role::Decode, ask.not_decode, &|worker, overlap| {
        decode_cost(worker, ask, overlap, prefill.is_some())
    })?;
    Some(Pair { decode, prefill })
}

fn prefill_cost(worker: &Worker, ask: &Ask, overlap: u32) -> (u64, Demand) {
    let load = worker.load();
    let uncached = u64::from(ask.tokens - overlap);
    let pages = uncached.div_ceil(BLOCK_TOKENS as u64);
    let cost = load
        .waiting_tokens
        .saturating_add(uncached + missing(pages, load.free_pages));
    (
        cost,
        Demand {
            tokens: uncached,
            pages,
        },
    )
}

fn decode_cost(worker: &Worker, ask: &Ask, overlap: u32, remote: bool) -> (u64, Demand) {
    let load = worker.load();
    let uncached = u64::from(ask.tokens - overlap);
    let computed = if remote { 0 } else { uncached };
    let arrival = if remote {
        uncached / MOVE_DISCOUNT
    } else {
        uncached
    };
    let output = u64::from(ask.max_output.min(EXPECTED_OUTPUT));
    let pages = (uncached + output).div_ceil(BLOCK_TOKENS as u64);
    let sequences = u64::from(load.running) + u64::from(load.waiting);
    let over = (sequences + 1).saturating_sub(u64::from(worker.description.max_running));
    let own = arrival + missing(pages, load.free_pages);
    let batch = SEQUENCE_COST * sequences + OVER_COST * over;
    let cost = load.waiting_tokens.saturating_add(own + batch);
    (
        cost,
        Demand {
            tokens: computed,
            pages,
        },
    )
}

fn missing(pages: u64, free: u64) -> u64 {
    MISSING_PAGE_COST * pages.saturating_sub(free)
}

#[cfg(test)]
mod tests;
