//! Epochs without which no step can be taken.

use std::sync::Arc;

use super::config::Clock;
use super::pending::{Verdict, Void};
use super::{
    Coordinator, Decision, Pause, Shortage, State, StoreView, Write, ids, links, repair, withdraw,
};
use crate::{Epoch, Loads, Member, Placement, Plan, RankId};

/// The epoch that is needed.
struct Target {
    members: Vec<Member>,
    placement: Arc<Placement>,
    expected: Arc<Loads>,
    /// Every member has every weight that it needs.
    in_memory: bool,
}

impl Coordinator {
    /// The first epoch: everyone begins with the same placement in memory.
    pub(super) fn form(&mut self, view: &StoreView, clock: &mut Clock) -> Decision {
        let members: Vec<Member> = self.roster.reports().map(|r| r.me.clone()).collect();
        let shape = self.shape.shape;
        if members.len() < shape.ranks || !self.roster.all_linked(&ids(&members)) {
            return (State::Forming, None);
        }
        let target = Target {
            members,
            placement: Arc::new(Placement::initial(shape).expect("a group's shape is checked")),
            expected: Arc::new(Loads::zero(shape.layers, shape.experts)),
            // Who was told of an epoch may have other weights in memory since.
            in_memory: self.roster.known() == 0,
        };
        let write = self.pursue(view, target, clock);
        (State::Forming, write)
    }

    /// What has to be done before anything else, if the group cannot go on under `base`.
    pub(super) fn urgent(
        &mut self,
        view: &StoreView,
        base: &Epoch,
        forgot: bool,
        clock: &mut Clock,
    ) -> Option<Decision> {
        let survivors = self.survivors(base, clock);
        let lives = ids(&survivors);
        let missing = lives
            .iter()
            .copied()
            .find(|&id| self.roster.get(id).is_none());
        if survivors.len() == base.members.len() && !forgot && !self.is_stuck(&lives, base) {
            self.failures.retain(|what| what.is_some());
            return None;
        }
        // Only with everyone's report is it known which numbers are taken.
        if let Some(missing) = missing.filter(|_| forgot) {
            return Some((State::Paused(Pause::Forgotten(missing)), None));
        }
        if survivors.len() == base.members.len()
            && (missing.is_some() || !self.roster.all_linked(&lives))
        {
            return Some((State::Paused(Pause::Links), None));
        }
        Some(match self.rebuild(base, survivors) {
            Ok(target) => {
                let pause = match target.in_memory {
                    true => Pause::Reset,
                    false => Pause::Repair,
                };
                (State::Paused(pause), self.pursue(view, target, clock))
            }
            Err(shortage) => {
                let plan = view.plan.as_ref();
                let write = plan.and_then(|plan| withdraw(plan, Void::Superseded));
                (State::Paused(Pause::Shortage(shortage)), write)
            }
        })
    }

    /// Members that are not dead, as far as can be told by now.
    fn survivors(&mut self, base: &Epoch, clock: &mut Clock) -> Vec<Member> {
        let all = ids(&base.members);
        let is_dead = |id, clock: &mut Clock| {
            self.roster.is_lost(id, &all) || self.roster.is_gone(id, clock, &self.config)
        };
        let mut left: Vec<RankId> = all
            .iter()
            .copied()
            .filter(|&id| !is_dead(id, clock))
            .collect();
        let patient = if links::any_broken(&left, &self.roster) {
            let since = *self.broken_since.get_or_insert(clock.now);
            !clock.reached(since + self.config.partition_grace)
        } else {
            self.broken_since = None;
            true
        };
        let evicted = links::evictions(&left, &self.roster, patient);
        left.retain(|id| !evicted.contains(id));
        let members = base
            .members
            .iter()
            .filter(|member| left.contains(&member.id));
        members.cloned().collect()
    }

    /// Some member cannot complete steps of the epoch that it is in, and `base` is no way out of it.
    fn is_stuck(&self, lives: &[RankId], base: &Epoch) -> bool {
        let reports = lives.iter().filter_map(|&id| self.roster.get(id));
        reports
            .filter(|report| !report.lost.is_empty())
            .filter_map(|report| report.adopted.as_ref())
            .any(|adopted| adopted.number >= base.reset)
    }

    /// Who lives, with every expert; with those who could join only where it takes them.
    fn rebuild(&self, base: &Epoch, survivors: Vec<Member>) -> Result<Target, Shortage> {
        let mut joiners = self.roster.joiners(&ids(&survivors), |_| true).into_iter();
        let mut members = survivors;
        let mut in_memory = true;
        loop {
            let mut live = vec![false; self.shape.shape.ranks];
            for member in &members {
                live[member.id.rank] = true;
            }
            match repair::repair(&base.placement, &live, &base.expected) {
                Ok(placement) => {
                    members.sort_by_key(|member| member.id);
                    return Ok(Target {
                        members,
                        in_memory: in_memory && placement == *base.placement,
                        placement: Arc::new(placement),
                        expected: Arc::clone(&base.expected),
                    });
                }
                Err(shortage) => members.push(joiners.next().ok_or(shortage)?),
            }
            in_memory = false;
        }
    }

    /// Commits the target, after a plan if weights have to be staged first.
    fn pursue(&mut self, view: &StoreView, target: Target, clock: &mut Clock) -> Option<Write> {
        let stored = view.epoch.as_ref().map_or(0, |epoch| epoch.number);
        let known = self.roster.known();
        let number = match self.has_forgotten(view) {
            true => known + self.jump,
            false => stored + 1,
        };
        let epoch = Epoch {
            number,
            reset: number,
            members: target.members,
            placement: target.placement,
            expected: target.expected,
        };
        if target.in_memory {
            return Some(Write::Commit(Arc::new(epoch)));
        }
        let Some(plan) = &view.plan else {
            let may_try = self.failures.may_retry(None, clock);
            return may_try.then(|| {
                Write::Publish(Arc::new(Plan {
                    id: self.plan_id(),
                    base: number - 1,
                    next: epoch,
                }))
            });
        };
        if !is_such(plan, &epoch) {
            return withdraw(plan, Void::Superseded);
        }
        match self.judge(plan, clock) {
            Verdict::Wait => None,
            Verdict::Ready => Some(Write::Commit(Arc::new(plan.next.clone()))),
            Verdict::Void(why) => {
                self.failures.note(plan.id, [None], clock.now, &self.config);
                withdraw(plan, why)
            }
        }
    }
}

/// Whether what is being staged already serves as well as `epoch`.
fn is_such(plan: &Plan, epoch: &Epoch) -> bool {
    let next = &plan.next;
    next.members == epoch.members
        && next.placement.shape() == epoch.placement.shape()
        && next.reset == next.number
        && next.number == plan.base + 1
        && next.number >= epoch.number
        && next.check().is_ok()
}
