//! What changed in a prefix cache, netted out.

use std::{cmp::Ordering, collections::HashMap};

use millrace_engine::pages::CacheChanges;
use millrace_model::blocks::BlockHash;

/// Adds up changes, so that a block that came and went between two messages is in neither.
///
/// A block is stored and removed in turns, so whatever the order in which a batch lists both, the
/// number of stores less the number of removals says how it ended: 1, it is there now and was not;
/// -1, the other way round; 0, it is as it was.
#[derive(Debug, Default)]
pub struct NetChanges {
    counts: HashMap<BlockHash, i32>,
}

impl NetChanges {
    pub fn add(&mut self, changes: &CacheChanges) {
        for (hashes, step) in [(&changes.stored, 1), (&changes.removed, -1)] {
            for &hash in hashes {
                *self.counts.entry(hash).or_insert(0) += step;
            }
        }
    }

    pub fn into_changes(self) -> CacheChanges {
        let mut changes = CacheChanges::default();
        for (hash, count) in self.counts {
            match count.cmp(&0) {
                Ordering::Greater => changes.stored.push(hash),
                Ordering::Less => changes.removed.push(hash),
                Ordering::Equal => {}
            }
        }
        changes.stored.sort_unstable();
        changes.removed.sort_unstable();
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(stored: &[u128], removed: &[u128]) -> CacheChanges {
        let hashes = |list: &[u128]| list.iter().copied().map(BlockHash).collect();
        CacheChanges {
            stored: hashes(stored),
            removed: hashes(removed),
        }
    }

    fn net(batches: &[CacheChanges]) -> CacheChanges {
        let mut net = NetChanges::default();
        batches.iter().for_each(|batch| net.add(batch));
        net.into_changes()
    }

    #[test]
    fn only_what_lasted_is_told() {
        // 1 came and stayed, 2 came and went, 3 went, 4 went and came back.
        let batches = [changes(&[1, 2], &[3, 4]), changes(&[4], &[2])];
        assert_eq!(net(&batches), changes(&[1], &[3]));
        // The same in one batch, which does not say in which order things happened.
        assert_eq!(net(&[changes(&[1, 2, 4], &[3, 4, 2])]), changes(&[1], &[3]));
        assert_eq!(net(&[]), CacheChanges::default());
    }
}
