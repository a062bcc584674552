//! What becomes of a plan that was published.

use std::collections::BTreeMap;
use std::time::Duration;

use super::config::{Clock, Config};
use super::roster::Roster;
use crate::epoch::EpochError;
use crate::{Epoch, Plan, RankId, Shape};

/// Why a plan is given up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Void {
    #[error("it follows epoch {base}, but the epoch is {current}")]
    Base { base: u64, current: u64 },
    #[error("it cannot be computed under: {0}")]
    Record(EpochError),
    #[error("it is for {got:?}, but the group has {expected:?}")]
    Shape { expected: Shape, got: Shape },
    #[error("it leaves out rank {}, which lives", .0.rank)]
    LeavesOut(RankId),
    #[error("it has reset {reset}, but a change that loses nobody keeps {expected}")]
    Reset { reset: u64, expected: u64 },
    #[error("rank {} could not stage it: {reason}", .rank.rank)]
    Staging { rank: RankId, reason: String },
    #[error("not every rank had staged it by the deadline; the first to miss is {}", .0.rank)]
    Deadline(RankId),
    #[error("rank {} is gone", .0.rank)]
    Gone(RankId),
    #[error("not all of its ranks have links with each other")]
    Unlinked,
    #[error("members were lost or have returned: another change is needed")]
    Superseded,
}

impl Void {
    /// Whose fault it is, if it is one rank's.
    pub(super) fn rank(&self) -> Option<RankId> {
        match self {
            Void::Staging { rank, .. } | Void::Deadline(rank) | Void::Gone(rank) => Some(*rank),
            _ => None,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Wait,
    /// Everyone has staged it.
    Ready,
    Void(Void),
}

/// Whether `plan` follows on `current` by agreement: it loses nobody.
pub(super) fn follows(plan: &Plan, current: &Epoch) -> Result<(), Void> {
    if plan.base != current.number || plan.next.number != plan.base + 1 {
        return Err(Void::Base {
            base: plan.base,
            current: current.number,
        });
    }
    let (expected, got) = (current.placement.shape(), plan.next.placement.shape());
    if got != expected {
        return Err(Void::Shape { expected, got });
    }
    plan.next.check().map_err(Void::Record)?;
    let mut members = current.members.iter();
    if let Some(left_out) = members.find(|member| plan.next.member(member.id).is_none()) {
        return Err(Void::LeavesOut(left_out.id));
    }
    if plan.next.reset != current.reset {
        return Err(Void::Reset {
            reset: plan.next.reset,
            expected: current.reset,
        });
    }
    Ok(())
}

/// How staging stands of a plan that was first seen at `seen`.
pub(super) fn judge(
    plan: &Plan,
    seen: Duration,
    roster: &Roster,
    clock: &mut Clock,
    config: &Config,
) -> Verdict {
    let ids: Vec<RankId> = plan.next.members.iter().map(|member| member.id).collect();
    let mut late = None;
    for &id in &ids {
        let Some(report) = roster.get(id) else {
            if roster.is_gone(id, clock, config) {
                return Verdict::Void(Void::Gone(id));
            }
            late.get_or_insert(id);
            continue;
        };
        match report
            .staged
            .as_ref()
            .filter(|staged| staged.plan == plan.id)
        {
            Some(staged) => {
                if let Err(reason) = &staged.outcome {
                    let reason = reason.clone();
                    return Verdict::Void(Void::Staging { rank: id, reason });
                }
            }
            None => {
                late.get_or_insert(id);
            }
        }
    }
    let here: Vec<RankId> = ids
        .into_iter()
        .filter(|&id| roster.get(id).is_some())
        .collect();
    match late {
        _ if !roster.all_linked(&here) => Verdict::Void(Void::Unlinked),
        None => Verdict::Ready,
        Some(late) if clock.reached(seen + config.plan_deadline) => {
            Verdict::Void(Void::Deadline(late))
        }
        Some(_) => Verdict::Wait,
    }
}

/// What failed lately, and when it may be tried again.
#[derive(Debug, Default)]
pub(super) struct Failures {
    /// A joiner's, or a repair's (`None`).
    of: BTreeMap<Option<RankId>, (u32, Duration)>,
    /// A plan is given up once, however often the store does not take it.
    last: Option<u64>,
}

impl Failures {
    pub fn note(
        &mut self,
        plan: u64,
        culprits: impl IntoIterator<Item = Option<RankId>>,
        now: Duration,
        config: &Config,
    ) {
        if self.last.replace(plan) == Some(plan) {
            return;
        }
        for culprit in culprits {
            let (times, until) = self.of.entry(culprit).or_default();
            let wait = config.retry_first * 2u32.saturating_pow(*times);
            *until = now + wait.min(config.retry_most);
            *times = (*times + 1).min(16);
        }
    }

    pub fn may_retry(&self, what: Option<RankId>, clock: &mut Clock) -> bool {
        self.of
            .get(&what)
            .is_none_or(|&(_, until)| clock.reached(until))
    }

    pub fn retain(&mut self, still: impl Fn(Option<RankId>) -> bool) {
        self.of.retain(|&what, _| still(what));
    }
}
