//! The cheapest worker of a pool, found without a look at most of them.
//!
//! A worker costs its backlog, and on top what the sequence asks of it: for most workers the same, since
//! they cache the same of it, nothing or a common beginning. So the pool is gone through by backlog, and
//! left as soon as not even a worker with all pages free could be cheaper than the best so far: as a
//! rule after the first. The few that may cache more, the prefix's owners, are looked at first.
//!
//! Where pages have run out everywhere, many are looked at: backlogs do not say who lacks fewest.

use millrace_model::blocks::{BLOCK_TOKENS, BlockHash};

use super::{Ask, Chosen, MISSING_PAGE_COST, Part};
use crate::fleet::{Fleet, Owners, Pool, Rank};

/// A worker, and what it costs in all.
pub struct Best {
    pub rank: Rank,
    pub chosen: Chosen,
}

/// The worker of a pool that has not failed and takes a part of a sequence at least cost.
pub fn cheapest(fleet: &Fleet, ask: &Ask, pool: &Pool, part: Part) -> Option<Best> {
    let hashes = ask.blocks.of(&pool.model_revision);
    let search = Search {
        owners: fleet.owners(hashes),
        hashes,
        fleet,
        ask,
        pool,
        part,
    };
    search.cheapest()
}

struct Search<'a> {
    fleet: &'a Fleet,
    ask: &'a Ask<'a>,
    pool: &'a Pool,
    part: Part,
    /// The sequence's blocks as the pool's model names them.
    hashes: &'a [BlockHash],
    owners: Owners<'a>,
}

impl Search<'_> {
    fn cheapest(&self) -> Option<Best> {
        let mut best = None;
        for rank in self.owners() {
            self.consider(rank, &mut best);
        }
        let (least, _) = self.part.of(self.ask, self.uncached(self.owners.common));
        for rank in self.pool.ranks() {
            let least = rank.plus(least);
            if best.as_ref().is_some_and(|best: &Best| best.rank <= least) {
                break;
            }
            self.consider(rank, &mut best);
        }
        best
    }

    fn consider(&self, rank: Rank, best: &mut Option<Best>) {
        let Some(worker) = self.fleet.get(rank.worker) else {
            return;
        };
        let failed = match self.part {
            Part::Prefill => self.ask.not_prefill,
            Part::Decode | Part::Whole => self.ask.not_decode,
        };
        if failed.contains(&rank.worker) {
            return;
        }
        let uncached = self.uncached(self.fleet.cached(rank.worker, self.hashes));
        let (cost, demand) = self.part.of(self.ask, uncached);
        let missing = demand.pages.saturating_sub(worker.load().free_pages);
        let rank = rank.plus(cost + MISSING_PAGE_COST * missing);
        if best.as_ref().is_none_or(|best| rank < best.rank) {
            let chosen = Chosen {
                worker: rank.worker,
                overlap: self.ask.tokens - uncached as u32,
                demand,
            };
            *best = Some(Best { rank, chosen });
        }
    }

    /// Those of the prefix's owners that are in this pool.
    fn owners(&self) -> impl Iterator<Item = Rank> {
        let workers = self.owners.workers.iter();
        let workers = workers.filter_map(|&key| self.fleet.get(key));
        workers
            .filter(|worker| self.pool.is_of(worker))
            .filter_map(|worker| worker.rank())
    }

    /// Tokens of the sequence that are not in so many blocks. The last is always computed.
    fn uncached(&self, blocks: usize) -> u64 {
        let cached = (blocks * BLOCK_TOKENS) as u32;
        u64::from(self.ask.tokens - cached.min(self.ask.tokens.saturating_sub(1)))
    }
}
