//! The decision itself.

use super::counted::{Pairs, leaving, pairs_of};
use super::pairs::proportion_up;
use super::{Groups, Plan, Pool, Ratio, Revision, Revisions, Step, Strategy, Wait, Wanted};
use crate::api::Role;

/// `router_done`: no router pod is left that does not know the wanted revision's text.
pub fn plan(wanted: &Wanted, strategy: Strategy, router_done: bool, there: &Revisions) -> Plan {
    let ratio = wanted.ratio();
    // Routers without decode workers are never ready.
    let router_done = router_done || !ratio.counts(Role::Decode);
    let older: Vec<(&String, &Revision)> = there
        .iter()
        .filter(|(name, _)| **name != wanted.revision)
        .collect();
    let nothing = Revision::default();
    let current = there.get(&wanted.revision).unwrap_or(&nothing);
    let updated = pairs_of(ratio, current, true).available;

    let counted: Vec<Pairs> = older
        .iter()
        .map(|(_, revision)| pairs_of(ratio, revision, false))
        .collect();
    let available = updated + counted.iter().map(|pairs| pairs.available).sum::<u32>();
    let keep = keep(ratio, strategy, router_done, updated, &older, &counted);
    let most = match older.is_empty() {
        // It is no rollout, and the only one to wait for would be the revision itself.
        true => ratio.pairs(),
        false => {
            let occupied = counted.iter().map(|pairs| pairs.existing).sum::<u32>();
            let room =
                (ratio.pairs() + strategy.surge).saturating_sub(occupied + leaving(ratio, current));
            room.min(ratio.pairs())
        }
    };

    let mut plan = Plan {
        steps: Vec::new(),
        waits: Vec::new(),
        pairs: ratio.pairs(),
        available,
        updated,
    };
    // Groups beyond the proportion that is wanted now make no pair, but take room for one. They stay
    // unless nothing else makes room.
    let trim = most < ratio.pairs() && updated >= most;
    let outdated = outdated(there);
    for ((name, revision), (pairs, &keep)) in older.iter().zip(counted.iter().zip(&keep)) {
        let to = match trim || keep == 0 || keep < pairs.possible {
            true => Some(ratio.share(keep)),
            false => None,
        };
        let steps = plan.steps.len();
        shrink(&mut plan, name, revision, |role, groups| match to {
            None => groups,
            Some(share) if ratio.counts(role) => groups.min(share.of(role)),
            Some(_) => proportion_up(groups, keep, pairs.possible),
        });
        // Nobody counts on what never served, so that this needs no other numbers.
        if !outdated.is_empty() && (revision.served || pairs.available > 0) {
            plan.steps.truncate(steps);
        }
    }
    let steps = plan.steps.len();
    grow(&mut plan, wanted, current, ratio.share(most));
    if !outdated.is_empty() {
        plan.steps.truncate(steps);
    }
    plan.waits.extend(outdated);
    if !router_done {
        plan.waits.push(Wait::Router {
            older: !older.is_empty(),
        });
    }
    plan
}

fn outdated(there: &Revisions) -> Vec<Wait> {
    let pools = there.iter().flat_map(|(name, revision)| {
        Role::ALL
            .into_iter()
            .filter(|&role| {
                let pool = revision.of(role);
                pool.is_some_and(|pool| pool.outdated && !pool.deleting)
            })
            .map(move |role| (name, role))
    });
    pools
        .map(|(name, role)| Wait::Counted {
            revision: name.clone(),
            role,
        })
        .collect()
}

/// How many pairs of each older revision stay.
fn keep(
    ratio: Ratio,
    strategy: Strategy,
    router_done: bool,
    updated: u32,
    older: &[(&String, &Revision)],
    counted: &[Pairs],
) -> Vec<u32> {
    let floor = ratio.pairs().saturating_sub(strategy.unavailable);
    // What never served is not worth waiting for, and may hold the devices that others wait for.
    let mut keep: Vec<u32> = older
        .iter()
        .zip(counted)
        .map(
            |((_, revision), pairs)| match revision.served || pairs.available > 0 {
                true => pairs.possible,
                false => 0,
            },
        )
        .collect();
    let available: u32 = counted.iter().map(|pairs| pairs.available).sum();
    // What served and does not now is likely to come back, unlike a new revision that has not shown
    // yet that it can serve. So it counts too for what may go, as in Kubernetes' Deployments.
    let mut any = (updated + keep.iter().sum::<u32>()).saturating_sub(floor);
    let mut serving = (updated + available).saturating_sub(floor);
    // Old router pods are of no use without old workers, and the new ones may not be there yet. With
    // room for a single pair, though, the old one has to go for the new one to come.
    if !router_done && ratio.pairs() + strategy.surge > 1 {
        serving = serving.min(available.saturating_sub(1));
    }
    let mut order: Vec<usize> = (0..older.len()).collect();
    order.sort_by_key(|&at| (counted[at].available, counted[at].possible));
    for &at in &order {
        let idle = keep[at].saturating_sub(counted[at].available).min(any);
        keep[at] -= idle;
        any -= idle;
    }
    for &at in &order {
        let served = keep[at].min(serving);
        keep[at] -= served;
        serving -= served;
    }
    keep
}

/// An older revision whose pools are to have as many groups as `next` says of as many as they have.
fn shrink(plan: &mut Plan, name: &str, revision: &Revision, next: impl Fn(Role, u32) -> u32) {
    // Decode first: a decode worker without prefill workers is worse than the other way round.
    for role in [Role::Decode, Role::Prefill] {
        let Some(pool) = revision.of(role) else {
            continue;
        };
        if pool.deleting {
            plan.waits.push(Wait::Gone {
                revision: name.to_owned(),
                role,
            });
            continue;
        }
        let to = next(role, pool.replicas);
        if to < pool.replicas {
            plan.steps.push(Step::Scale {
                revision: name.to_owned(),
                role,
                from: pool.replicas,
                to,
            });
        } else if pool.replicas == 0 && pool.groups == 0 {
            plan.steps.push(Step::Delete {
                revision: name.to_owned(),
                role,
            });
        }
        draining(plan, name, role, pool, to);
    }
}

/// The wanted revision up to `share`, or down to what is wanted.
fn grow(plan: &mut Plan, wanted: &Wanted, current: &Revision, share: Groups) {
    for role in Role::ALL {
        let target = wanted.of(role).unwrap_or(0);
        let revision = wanted.revision.clone();
        let Some(pool) = current.of(role) else {
            if wanted.of(role).is_some() {
                plan.steps.push(Step::Create { revision, role });
            }
            continue;
        };
        if pool.deleting {
            plan.waits.push(Wait::Gone { revision, role });
            continue;
        }
        let to = pool.replicas.max(share.of(role)).min(target);
        if to != pool.replicas {
            plan.steps.push(Step::Scale {
                revision,
                role,
                from: pool.replicas,
                to,
            });
        } else if wanted.of(role).is_none() && pool.groups == 0 {
            plan.steps.push(Step::Delete { revision, role });
        }
        let missing = target.saturating_sub(pool.ready.min(pool.replicas));
        if missing > 0 {
            plan.waits.push(Wait::Ready {
                revision: wanted.revision.clone(),
                role,
                missing,
            });
        }
        draining(plan, &wanted.revision, role, pool, to);
    }
}

fn draining(plan: &mut Plan, name: &str, role: Role, pool: &Pool, to: u32) {
    let groups = pool.groups.saturating_sub(to);
    if groups > 0 {
        plan.waits.push(Wait::Drained {
            revision: name.to_owned(),
            role,
            groups,
        });
    }
}
