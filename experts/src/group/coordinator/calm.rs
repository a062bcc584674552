//! Changes that can wait until everyone has adopted the last one.

use std::sync::Arc;

use super::config::Clock;
use super::pending::{self, Verdict, Void};
use super::{Coordinator, Decision, State, StoreView, Write, ids, withdraw};
use crate::{Epoch, Plan, RankId};

impl Coordinator {
    pub(super) fn calm(
        &mut self,
        view: &StoreView,
        epoch: &Arc<Epoch>,
        clock: &mut Clock,
    ) -> Decision {
        let state = match epoch.is_degraded() {
            true => State::Degraded,
            false => State::Serving,
        };
        let attached = |id| self.roster.get(id).is_some();
        self.failures
            .retain(|what| what.is_none_or(|id| attached(id) && epoch.member(id).is_none()));
        let write = match &view.plan {
            Some(plan) => self.follow_up(plan, epoch, clock),
            None if !self.is_settled(epoch) => None,
            None => self.join(epoch, clock).or_else(|| self.rebalance(epoch)),
        };
        (state, write)
    }

    fn follow_up(&mut self, plan: &Plan, epoch: &Epoch, clock: &mut Clock) -> Option<Write> {
        if let Err(why) = pending::follows(plan, epoch) {
            return withdraw(plan, why);
        }
        match self.judge(plan, clock) {
            Verdict::Ready if self.is_settled(epoch) => {
                Some(Write::Commit(Arc::new(plan.next.clone())))
            }
            Verdict::Ready | Verdict::Wait => None,
            Verdict::Void(why) => {
                self.blame(plan, epoch, &why, clock);
                withdraw(plan, why)
            }
        }
    }

    /// One joiner's failure delays that joiner; where it is nobody's alone, all of the plan's.
    fn blame(&mut self, plan: &Plan, epoch: &Epoch, why: &Void, clock: &Clock) {
        let mut joiners: Vec<RankId> = ids(&plan.next.members);
        joiners.retain(|&id| epoch.member(id).is_none());
        if let Some(culprit) = why.rank().filter(|id| joiners.contains(id)) {
            joiners = vec![culprit];
        }
        let culprits = joiners.into_iter().map(Some);
        self.failures
            .note(plan.id, culprits, clock.now, &self.config);
    }

    /// Whoever could join, in the slots that are masked now.
    fn join(&mut self, epoch: &Epoch, clock: &mut Clock) -> Option<Write> {
        let mut members = epoch.members.clone();
        let failures = &self.failures;
        let may = |id| failures.may_retry(Some(id), clock);
        let joiners = self.roster.joiners(&ids(&members), may);
        if joiners.is_empty() {
            return None;
        }
        members.extend(joiners);
        members.sort_by_key(|member| member.id);
        Some(Write::Publish(Arc::new(Plan {
            id: self.plan_id(),
            base: epoch.number,
            next: Epoch {
                number: epoch.number + 1,
                members,
                ..epoch.clone()
            },
        })))
    }

    fn rebalance(&mut self, epoch: &Epoch) -> Option<Write> {
        let proposal = self.proposal.as_ref()?;
        if epoch.is_degraded() {
            return None;
        }
        Some(Write::Publish(Arc::new(Plan {
            id: proposal.plan,
            base: epoch.number,
            next: Epoch {
                number: epoch.number + 1,
                placement: Arc::clone(&proposal.placement),
                expected: Arc::clone(&proposal.expected),
                ..epoch.clone()
            },
        })))
    }
}
