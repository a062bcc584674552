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

mod blocks;
mod reason;

use millrace_model::blocks::BLOCK_TOKENS;

pub use blocks::Blocks;
pub use reason::Reasons;

use crate::fleet::{Demand, Fleet, Match, Role, Worker, WorkerKey};
use Standing::{Lacking, Whole};

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
    fn of(decode: &Worker, has_prefill: bool) -> Standing {
        match has_prefill || decode.description.aggregated {
            true => Whole,
            false => Lacking,
        }
    }
}

/// Chooses a pair. `None` if no decode worker is available.
pub fn choose(fleet: &Fleet, ask: &Ask) -> Option<Pair> {
    let matches = ask.blocks.matches(fleet);
    let overlap = |worker| {
        let found = matches.binary_search_by_key(&worker, |m: &Match| m.worker);
        let blocks = found.map_or(0, |at| matches[at].blocks);
        ((blocks * BLOCK_TOKENS) as u32).min(ask.tokens.saturating_sub(1))
    };
    let prefill = cheapest_prefill(fleet, ask, overlap);
    let model = ask.model.filter(|model| may_go_on(fleet, model));
    let rank = |(key, worker): (WorkerKey, &Worker)| {
        let revision = &worker.description.revision;
        let prefill = prefill.iter().find(|best| best.revision == revision);
        let overlap = overlap(key);
        let (cost, demand) = decode_cost(worker, ask, overlap, prefill.is_some());
        let rank = (
            Standing::of(worker, prefill.is_some()),
            cost.saturating_add(prefill.map_or(0, |best| best.rank.0)),
            worker.assigned,
            key,
        );
        let decode = Chosen {
            worker: key,
            overlap,
            demand,
        };
        let prefill = prefill.map(|best| best.chosen);
        (rank, Pair { decode, prefill })
    };
    fleet
        .available(Role::Decode)
        .filter(|(key, _)| !ask.not_decode.contains(key))
        .filter(|(_, worker)| model.is_none_or(|model| worker.model_revision() == model))
        .map(rank)
        .min_by_key(|(rank, _)| *rank)
        .map(|(_, pair)| pair)
}

/// A revision's cheapest prefill worker.
struct Prefill<'a> {
    revision: &'a str,
    /// Its cost first.
    rank: (u64, u64, WorkerKey),
    chosen: Chosen,
}

/// One for each revision that has any, and seldom is there more than one revision.
fn cheapest_prefill<'a>(
    fleet: &'a Fleet,
    ask: &Ask,
    overlap: impl Fn(WorkerKey) -> u32,
) -> Vec<Prefill<'a>> {
    let mut cheapest: Vec<Prefill> = Vec::new();
    for (key, worker) in fleet.available(Role::Prefill) {
        if ask.not_prefill.contains(&key) {
            continue;
        }
        let overlap = overlap(key);
        let (cost, demand) = prefill_cost(worker, ask, overlap);
        let this = Prefill {
            revision: &worker.description.revision,
            rank: (cost, worker.assigned, key),
            chosen: Chosen {
                worker: key,
                overlap,
                demand,
            },
        };
        match cheapest
            .iter_mut()
            .find(|best| best.revision == this.revision)
        {
            Some(best) if this.rank < best.rank => *best = this,
            Some(_) => {}
            None => cheapest.push(this),
        }
    }
    cheapest
}

/// A sequence of this model need not change to another: some worker has it, or will have it again.
fn may_go_on(fleet: &Fleet, model: &str) -> bool {
    fleet
        .workers(Role::Decode)
        .any(|(_, worker)| !worker.draining && worker.model_revision() == model)
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
