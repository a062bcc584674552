//! How many pairs a revision makes, by what its groups are.

use super::{Groups, Ratio, Revision};
use crate::api::Role;

/// Pairs of one revision, by what they are.
pub struct Pairs {
    /// Complete if all groups were ready.
    pub possible: u32,
    /// Complete and ready.
    pub available: u32,
    /// That exist, those that drain included.
    pub existing: u32,
}

pub fn pairs_of(ratio: Ratio, revision: &Revision, wanted: bool) -> Pairs {
    let live = |role| revision.of(role).filter(|pool| !pool.deleting);
    let told = Groups::map(|role| live(role).map_or(0, |pool| pool.replicas));
    let ready = Groups::map(|role| live(role).map_or(0, |pool| pool.ready.min(pool.replicas)));
    let exist = Groups::map(|role| {
        let pool = revision.of(role);
        pool.map_or(0, |pool| pool.replicas.max(pool.groups))
    });
    // A revision without a prefill pool is aggregated, unless it is one whose pool has yet to be made.
    let takes_part = |role| {
        ratio.counts(role) && (wanted || role == Role::Decode || revision.of(role).is_some())
    };
    let complete = |groups: Groups| {
        // Without decode workers wanted, nothing is to serve.
        if !ratio.counts(Role::Decode) {
            return 0;
        }
        Role::ALL
            .into_iter()
            .filter(|&role| takes_part(role))
            .filter_map(|role| ratio.enough_for(role, groups.of(role)))
            .min()
            .unwrap_or(0)
    };
    let possible = complete(told);
    // A role that is not counted (its revision is split, the wanted one is not) must be there at all.
    let broken = Role::ALL
        .into_iter()
        .any(|role| !takes_part(role) && told.of(role) > 0 && ready.of(role) == 0);
    let existing = Role::ALL
        .into_iter()
        .map(|role| ratio.takes(role, exist.of(role)))
        .max()
        .unwrap_or(0);
    Pairs {
        possible,
        available: if broken { 0 } else { complete(ready) },
        existing,
    }
}

/// Pairs of the wanted revision that were told to go earlier and still drain.
pub fn leaving(ratio: Ratio, current: &Revision) -> u32 {
    let pairs = Role::ALL.into_iter().filter_map(|role| {
        let pool = current.of(role)?;
        Some(ratio.takes(role, pool.groups.saturating_sub(pool.replicas)))
    });
    pairs.max().unwrap_or(0)
}
