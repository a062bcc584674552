//! Which groups of a pool stay, come and go. Pure.
//!
//! A StatefulSet of groups would have to take the highest ordinal away, ready or not. Here ordinals may
//! have gaps: what does not serve goes first, and new groups take the lowest ordinals that are free.

use std::collections::BTreeSet;

/// A group as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    pub ordinal: i32,
    /// Ranks that get requests.
    pub ready: i32,
    /// Ranks that have a node.
    pub placed: i32,
    /// It was told to go, and is not gone yet.
    pub going: bool,
}

/// Ordinals, ascending.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    pub keep: Vec<i32>,
    pub create: Vec<i32>,
    /// To be told to go.
    pub remove: Vec<i32>,
}

pub fn plan(found: &[Found], wanted: i32) -> Plan {
    let mut live: Vec<Found> = found.iter().filter(|group| !group.going).copied().collect();
    // Those that should stay first: what serves most, then what is nearest to serving, then the lowest.
    live.sort_by_key(|group| {
        (
            std::cmp::Reverse((group.ready, group.placed)),
            group.ordinal,
        )
    });
    let stay = live.len().min(wanted.max(0) as usize);
    let mut plan = Plan {
        keep: live[..stay].iter().map(|group| group.ordinal).collect(),
        remove: live[stay..].iter().map(|group| group.ordinal).collect(),
        create: Vec::new(),
    };
    let taken: BTreeSet<i32> = found.iter().map(|group| group.ordinal).collect();
    let missing = wanted.max(0) as usize - stay;
    plan.create = (0..)
        .filter(|ordinal| !taken.contains(ordinal))
        .take(missing)
        .collect();
    plan.keep.sort_unstable();
    plan.remove.sort_unstable();
    plan
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn group(ordinal: i32, ready: i32, going: bool) -> Found {
        Found {
            ordinal,
            ready,
            placed: ready,
            going,
        }
    }

    #[test]
    fn the_lowest_free_ordinals_come() {
        let found = [group(1, 1, false), group(2, 1, true)];
        let plan = plan(&found, 3);
        assert_eq!(plan.keep, [1]);
        assert_eq!(plan.create, [0, 3]);
        assert!(plan.remove.is_empty());
    }

    #[test]
    fn what_does_not_serve_goes_first() {
        let found = [group(0, 0, false), group(1, 2, false), group(2, 1, false)];
        assert_eq!(plan(&found, 2).remove, [0]);
        assert_eq!(plan(&found, 1).keep, [1]);
        assert_eq!(
            plan(&[group(0, 1, false), group(1, 1, false)], 1).remove,
            [1]
        );
    }

    proptest! {
        #[test]
        fn a_plan_carried_out_is_what_was_wanted(
            groups in proptest::collection::btree_map(0i32..12, (0i32..3, any::<bool>()), 0..8),
            wanted in 0i32..10,
        ) {
            let found: Vec<Found> = groups
                .iter()
                .map(|(&ordinal, &(ready, going))| group(ordinal, ready, going))
                .collect();
            let first = plan(&found, wanted);
            prop_assert_eq!(first.keep.len() + first.create.len(), wanted.max(0) as usize);
            // No group that serves goes while one that does not stays.
            let ready = |ordinal: &i32| groups[ordinal].0;
            let least = first.keep.iter().map(ready).min().unwrap_or(i32::MAX);
            prop_assert!(first.remove.iter().all(|ordinal| ready(ordinal) <= least));
            // Only one of the two directions.
            prop_assert!(first.create.is_empty() || first.remove.is_empty());
            let mut next: Vec<Found> = found.clone();
            for group in &mut next {
                group.going |= first.remove.contains(&group.ordinal);
            }
            next.extend(first.create.iter().map(|&ordinal| group(ordinal, 0, false)));
            let second = plan(&next, wanted);
            prop_assert!(second.create.is_empty() && second.remove.is_empty());
        }
    }
}
