//! Which workers cache which blocks, and how much of a prompt each of them holds.
//!
//! A block's hash names its whole prefix, so one map from hash to holders is a radix tree already:
//! walking a prompt's hashes while somebody still holds them gives every worker's longest match.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

use millrace_model::blocks::BlockHash;

use super::worker::WorkerKey;

/// An index over the caches of all workers. A hint: a stale entry costs time, never correctness,
/// since workers look again.
#[derive(Debug, Default)]
pub struct PrefixIndex {
    holders: HashMap<BlockHash, Holders, AlreadyHashed>,
    /// What each worker holds, and how much of it may be indexed.
    workers: HashMap<WorkerKey, Holding>,
    /// Entries (block, worker) in all.
    entries: usize,
    max_entries: usize,
}

#[derive(Debug, Default)]
struct Holding {
    blocks: HashSet<BlockHash, AlreadyHashed>,
    max_blocks: usize,
}

/// Most blocks are held by one worker; only shared system prompts by many.
#[derive(Debug)]
enum Holders {
    One(WorkerKey),
    /// Sorted; two or more.
    Many(Vec<WorkerKey>),
}

/// Blocks that more workers hold than this are common: beginnings of many prompts.
const FEW: usize = 16;

/// The workers that may hold more of a prompt than its common beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owners<'a> {
    /// Sorted.
    pub workers: &'a [WorkerKey],
    /// Nobody else holds more leading blocks than these.
    pub common: usize,
}

impl PrefixIndex {
    /// Holds at most `max_entries` (block, worker) pairs, about 100 bytes each. Blocks stored
    /// beyond that are not indexed until others are removed.
    pub fn new(max_entries: usize) -> PrefixIndex {
        PrefixIndex {
            max_entries,
            ..PrefixIndex::default()
        }
    }

    /// A worker with a pool of `max_blocks` pages: it cannot cache more blocks than that.
    pub fn add_worker(&mut self, worker: WorkerKey, max_blocks: usize) {
        self.workers.insert(
            worker,
            Holding {
                max_blocks,
                ..Holding::default()
            },
        );
    }

    /// Forgets the worker and all that it holds.
    pub fn remove_worker(&mut self, worker: WorkerKey) {
        self.clear(worker);
        self.workers.remove(&worker);
    }

    /// The worker now caches `block`. False if there was no room to index it.
    pub fn insert(&mut self, worker: WorkerKey, block: BlockHash) -> bool {
        let Some(holding) = self.workers.get_mut(&worker) else {
            return false;
        };
        if holding.blocks.contains(&block) {
            return true;
        }
        if holding.blocks.len() >= holding.max_blocks || self.entries >= self.max_entries {
            return false;
        }
        holding.blocks.insert(block);
        self.entries += 1;
        match self.holders.entry(block) {
            Entry::Vacant(slot) => drop(slot.insert(Holders::One(worker))),
            Entry::Occupied(mut slot) => slot.get_mut().add(worker),
        }
        true
    }

    /// The worker no longer caches `block`.
    pub fn remove(&mut self, worker: WorkerKey, block: BlockHash) {
        let held = self
            .workers
            .get_mut(&worker)
            .is_some_and(|h| h.blocks.remove(&block));
        if held {
            self.unlink(worker, block);
        }
    }

    /// The worker caches nothing any more.
    pub fn clear(&mut self, worker: WorkerKey) {
        let Some(holding) = self.workers.get_mut(&worker) else {
            return;
        };
        for block in std::mem::take(&mut holding.blocks) {
            self.unlink(worker, block);
        }
    }

    /// How many of the leading `hashes` a worker holds, up to the first that it does not.
    pub fn cached(&self, worker: WorkerKey, hashes: &[BlockHash]) -> usize {
        let Some(holding) = self.workers.get(&worker) else {
            return 0;
        };
        let held = hashes
            .iter()
            .take_while(|hash| holding.blocks.contains(hash));
        held.count()
    }

    /// Who has come furthest: the holders of a prompt's first block that is not common. The longer a
    /// prefix, the fewer hold it, so that block is searched for by halves. Where holders have gaps
    /// another block may be found, and what is said of it holds all the same.
    pub fn owners(&self, hashes: &[BlockHash]) -> Owners<'_> {
        let common = hashes.partition_point(|hash| self.holders(hash).len() > FEW);
        Owners {
            workers: hashes.get(common).map_or(&[], |hash| self.holders(hash)),
            common,
        }
    }

    fn holders(&self, block: &BlockHash) -> &[WorkerKey] {
        self.holders.get(block).map_or(&[], Holders::as_slice)
    }

    /// Entries (block, worker) held now.
    pub fn entries(&self) -> usize {
        self.entries
    }

    fn unlink(&mut self, worker: WorkerKey, block: BlockHash) {
        self.entries -= 1;
        let Entry::Occupied(mut slot) = self.holders.entry(block) else {
            return;
        };
        if slot.get_mut().remove(worker) {
            slot.remove();
        }
    }
}

impl Holders {
    fn as_slice(&self) -> &[WorkerKey] {
        match self {
            Holders::One(worker) => std::slice::from_ref(worker),
            Holders::Many(workers) => workers,
        }
    }

    fn add(&mut self, worker: WorkerKey) {
        match self {
            Holders::One(first) => {
                let (a, b) = (worker.min(*first), worker.max(*first));
                *self = Holders::Many(vec![a, b]);
            }
            Holders::Many(workers) => {
                if let Err(at) = workers.binary_search(&worker) {
                    workers.insert(at, worker);
                }
            }
        }
    }

    /// True if nobody is left.
    fn remove(&mut self, worker: WorkerKey) -> bool {
        match self {
            Holders::One(only) => *only == worker,
            Holders::Many(workers) => {
                workers.retain(|&w| w != worker);
                if let [last] = workers[..] {
                    *self = Holders::One(last);
                }
                false
            }
        }
    }
}

type AlreadyHashed = BuildHasherDefault<LowBits>;

/// Block hashes are cryptographic: their low half needs no second hash.
#[derive(Debug, Default)]
struct LowBits(u64);

impl Hasher for LowBits {
    fn write_u128(&mut self, hash: u128) {
        self.0 = hash as u64;
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hash(n: u128) -> BlockHash {
        BlockHash(n * 0x9e37_79b9_7f4a_7c15)
    }

    #[test]
    fn the_longest_unbroken_prefix_counts() {
        let mut index = PrefixIndex::new(100);
        let (a, b) = (WorkerKey(1), WorkerKey(2));
        index.add_worker(a, 10);
        index.add_worker(b, 10);
        for n in [1, 2, 3] {
            index.insert(a, hash(n));
        }
        for n in [1, 3] {
            index.insert(b, hash(n));
        }
        let prompt = [hash(1), hash(2), hash(3), hash(4)];
        let cached = |index: &PrefixIndex| [a, b].map(|worker| index.cached(worker, &prompt));
        assert_eq!(cached(&index), [3, 1]);
        assert_eq!(index.owners(&prompt).workers, [a, b]);
        index.remove_worker(a);
        assert_eq!(cached(&index), [0, 1]);
        assert_eq!(index.owners(&prompt).workers, [b]);
        assert_eq!(index.owners(&[]).workers, []);
    }

    #[test]
    fn of_a_common_beginning_only_those_own_something_who_hold_more() {
        let mut index = PrefixIndex::new(1000);
        let prompt: Vec<BlockHash> = (1..=10).map(hash).collect();
        for n in 0..2 * FEW as u64 {
            index.add_worker(WorkerKey(n), 10);
            for &block in &prompt[..4] {
                index.insert(WorkerKey(n), block);
            }
        }
        for &block in &prompt[..7] {
            index.insert(WorkerKey(5), block);
        }
        let owners = index.owners(&prompt);
        assert_eq!((owners.workers, owners.common), (&[WorkerKey(5)][..], 4));
        let owners = index.owners(&prompt[..4]);
        assert_eq!((owners.workers, owners.common), (&[][..], 4));
    }

    #[test]
    fn a_worker_cannot_fill_the_index_beyond_its_pool_or_the_bound() {
        let mut index = PrefixIndex::new(3);
        index.add_worker(WorkerKey(1), 2);
        index.add_worker(WorkerKey(2), 100);
        let stored: Vec<bool> = (1..=3)
            .map(|n| index.insert(WorkerKey(1), hash(n)))
            .collect();
        assert_eq!(stored, [true, true, false], "two pages hold two blocks");
        assert!(index.insert(WorkerKey(2), hash(1)));
        assert!(!index.insert(WorkerKey(2), hash(2)), "the index is full");
        index.clear(WorkerKey(1));
        assert!(index.insert(WorkerKey(2), hash(2)), "room was made");
        assert!(
            !index.insert(WorkerKey(3), hash(1)),
            "nobody attached as this"
        );
    }

    #[derive(Debug, Clone)]
    enum Step {
        Insert(u64, u128),
        Remove(u64, u128),
        Clear(u64),
        Reattach(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..4u64, 0..12u128).prop_map(|(w, b)| Step::Insert(w, b)),
            2 => (0..4u64, 0..12u128).prop_map(|(w, b)| Step::Remove(w, b)),
            1 => (0..4u64).prop_map(Step::Clear),
            1 => (0..4u64).prop_map(Step::Reattach),
        ]
    }

    proptest! {
        #[test]
        fn the_index_agrees_with_plain_sets(
            steps in prop::collection::vec(step(), 0..120),
            prompt in prop::collection::vec(0..12u128, 0..8),
        ) {
            let mut index = PrefixIndex::new(usize::MAX);
            let mut plain = vec![HashSet::new(); 4];
            for w in 0..4 {
                index.add_worker(WorkerKey(w), usize::MAX);
            }
            for step in steps {
                match step {
                    Step::Insert(w, b) => {
                        prop_assert!(index.insert(WorkerKey(w), hash(b)));
                        plain[w as usize].insert(b);
                    }
                    Step::Remove(w, b) => {
                        index.remove(WorkerKey(w), hash(b));
                        plain[w as usize].remove(&b);
                    }
                    Step::Clear(w) => {
                        index.clear(WorkerKey(w));
                        plain[w as usize].clear();
                    }
                    Step::Reattach(w) => {
                        index.remove_worker(WorkerKey(w));
                        index.add_worker(WorkerKey(w), usize::MAX);
                        plain[w as usize].clear();
                    }
                }
            }
            let hashes: Vec<BlockHash> = prompt.iter().map(|&b| hash(b)).collect();
            let owners = index.owners(&hashes);
            for (w, plain) in (0..).zip(&plain) {
                let held = prompt.iter().take_while(|&b| plain.contains(b)).count();
                prop_assert_eq!(index.cached(WorkerKey(w), &hashes), held);
                prop_assert!(held <= owners.common || owners.workers.contains(&WorkerKey(w)));
            }
            prop_assert_eq!(index.entries(), plain.iter().map(HashSet::len).sum::<usize>());
            for w in 0..4 {
                index.remove_worker(WorkerKey(w));
            }
            prop_assert!(index.entries == 0 && index.holders.is_empty());
        }
    }
}
