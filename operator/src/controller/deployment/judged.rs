//! What the conditions and the phase follow from. Pure.

use k8s_openapi::jiff::Timestamp;

use super::conditions::{EXCEEDED, find, limit};
use super::status::{Seen, serving};
use crate::api::{DeploymentStatus, Phase, Role};

/// What was found out, from which both conditions and phase follow.
pub struct Judged<'a> {
    pub(super) seen: &'a Seen<'a>,
    pub(super) previous: &'a DeploymentStatus,
    /// Requests are answered.
    pub(super) serves: bool,
    /// It ever did answer some.
    pub(super) served: bool,
    /// All that is wanted is there and serves, and nothing else exists.
    pub(super) complete: bool,
    /// All that is wanted serves, and nothing older does.
    pub(super) reached: bool,
    /// Older revisions of which groups serve.
    pub(super) older: Vec<&'a str>,
    /// Groups that serve without some of their ranks.
    pub(super) degraded: Vec<String>,
    /// Something has come nearer to what is wanted since the previous status.
    pub progressed: bool,
    pub(super) exceeded: bool,
    /// Less is there than was there before, and the spec is the same.
    pub(super) lost: bool,
}

impl<'a> Judged<'a> {
    pub fn new(
        previous: &'a DeploymentStatus,
        next: &DeploymentStatus,
        seen: &'a Seen<'a>,
        now: Timestamp,
    ) -> Judged<'a> {
        let (there, wanted) = (seen.there, seen.wanted);
        let mut older: Vec<&str> = there
            .pools
            .iter()
            .filter(|pool| pool.revision != wanted.revision && serving(pool) > 0)
            .map(|pool| pool.revision.as_str())
            .collect();
        older.dedup();
        let enough = Role::ALL.into_iter().all(|role| {
            let pool = there.pool(&wanted.revision, role);
            let needed = wanted.of(role).unwrap_or(0);
            needed == 0 || pool.is_some_and(|pool| serving(pool) >= needed)
        });
        let complete = seen.plan.complete() && seen.trouble.is_none() && !there.predecessor;
        let rolling = there.pools.iter().any(|p| p.revision != wanted.revision);
        let progressed = progressed(previous, next);
        let progressing = find(previous, "Progressing");
        let exceeded = !complete
            && !progressed
            && progressing.is_some_and(|c| {
                let waited = now.duration_since(c.last_transition_time.0);
                c.reason == EXCEEDED || c.status == "True" && waited >= limit(seen.resolved)
            });
        let same_wish = previous.observed_generation == next.observed_generation
            && previous.prefill.wanted == next.prefill.wanted
            && previous.decode.wanted == next.decode.wanted;
        let was_there = matches!(
            previous.phase,
            Some(Phase::Available | Phase::Degraded | Phase::Unavailable)
        );
        Judged {
            serves: seen.plan.available > 0 && there.router.ready > 0,
            served: next.revisions.values().any(|revision| revision.served),
            complete,
            reached: enough && older.is_empty() && there.router.done && there.router.ready > 0,
            older,
            degraded: degraded(next, seen),
            progressed,
            exceeded,
            lost: !rolling && same_wish && was_there,
            seen,
            previous,
        }
    }

    pub fn phase(&self) -> Phase {
        match () {
            () if !self.serves && (self.served || self.served_before()) => Phase::Unavailable,
            () if !self.serves => Phase::Starting,
            () if self.complete && self.degraded.is_empty() => Phase::Available,
            () if self.complete || self.exceeded || self.lost => Phase::Degraded,
            () => Phase::Progressing,
        }
    }

    /// By what was said before: revisions that served may be gone.
    fn served_before(&self) -> bool {
        use Phase::{Available, Degraded, Progressing, Unavailable};
        matches!(
            self.previous.phase,
            Some(Available | Degraded | Progressing | Unavailable)
        )
    }
}

/// Groups of the wanted revision that serve without all of their ranks.
fn degraded(next: &DeploymentStatus, seen: &Seen<'_>) -> Vec<String> {
    let current = seen.there.pools.iter();
    current
        .filter(|pool| pool.revision == seen.wanted.revision)
        .flat_map(|pool| &pool.groups)
        .filter(|(name, group)| group.state == "Degraded" && next.groups.contains_key(*name))
        .map(|(name, group)| {
            format!(
                "{name} serves with {} of {} ranks",
                group.ready_ranks, group.ranks
            )
        })
        .collect()
}

/// More of the wanted revision serves, or less of others is left, or something else is wanted.
fn progressed(previous: &DeploymentStatus, next: &DeploymentStatus) -> bool {
    if previous.observed_generation != next.observed_generation
        || previous.revision != next.revision
        || previous.router.ready < next.router.ready
    {
        return true;
    }
    previous.revisions.iter().any(|(name, before)| {
        let after = next.revisions.get(name).cloned().unwrap_or_default();
        match *name == next.revision {
            true => {
                before.prefill.ready < after.prefill.ready
                    || before.decode.ready < after.decode.ready
            }
            false => {
                before.prefill.wanted > after.prefill.wanted
                    || before.decode.wanted > after.decode.wanted
                    || !next.revisions.contains_key(name)
            }
        }
    })
}
