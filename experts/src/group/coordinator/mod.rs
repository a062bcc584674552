//! Who decides on a group's epochs: the coordinator of the router that leads.
//!
//! It never acts by itself. [`Coordinator::decide`] names at most one [`Write`], and whoever drives it
//! makes that write if the store is still as the decision saw it (compare-and-swap), then tells it how
//! the store looks now, whether it won or lost. So two that both believe to lead do no harm, and a
//! store that is away only delays.
//!
//! What matters most comes first:
//!
//! 1. no epoch: every rank is here and linked → the first one;
//! 2. members are gone, cut off or cannot go on → a *reset* without them, or with the same members
//!    once links have healed; if experts have no replica left, they are staged first;
//! 3. the plan that is being staged → committed, or given up;
//! 4. ranks that could join → a plan with them;
//! 5. what the balancer proposed → a plan.
//!
//! From 3 on nothing happens before every member has adopted the current epoch. Ranks rely on that: it
//! is why an epoch that is adopted by agreement follows on the one that all members are in.
//!
//! A lone router's store forgets when the router restarts. Ranks say what they adopted and the highest
//! number they were told of, and the group goes on from there, by a reset whose number is far above.

mod calm;
mod config;
mod links;
mod pending;
mod proposal;
mod repair;
mod roster;
mod state;
mod urgent;

use std::sync::Arc;
use std::time::Duration;

pub use self::config::Config;
pub use self::pending::Void;
pub use self::proposal::Refused;
pub use self::repair::Shortage;
pub use self::roster::Misfit;
pub use self::state::{Pause, State};

use self::config::Clock;
use self::pending::{Failures, Verdict};
use self::proposal::Proposal;
use self::roster::Roster;
use super::{GroupShape, Order, Report};
use crate::{Epoch, Loads, Member, Placement, Plan, RankId};

/// How far at least the numbers jump over those that a store forgot. Some may have been committed that
/// no rank attached now was told of, but not this many: a calm change waits until all have adopted the
/// last.
const FORGOTTEN: u64 = 1024;

/// What the epoch store holds for one group.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StoreView {
    pub epoch: Option<Arc<Epoch>>,
    pub plan: Option<Arc<Plan>>,
}

/// A change of the store, void if the store is no longer as the last [`StoreView`] said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    Publish(Arc<Plan>),
    /// Replaces the epoch, and removes the plan if there is one.
    Commit(Arc<Epoch>),
    /// Removes the plan.
    Withdraw {
        plan: u64,
        why: Void,
    },
}

/// One group's, on one router. Times are since any fixed moment.
#[derive(Debug)]
pub struct Coordinator {
    config: Config,
    shape: GroupShape,
    roster: Roster,
    /// `None` until the store was read once.
    view: Option<StoreView>,
    /// The store's plan, and when this coordinator first saw it.
    plan_seen: Option<(u64, Duration)>,
    broken_since: Option<Duration>,
    proposal: Option<Proposal>,
    failures: Failures,
    last_plan: u64,
    /// Another for each coordinator: a store may forget twice before any rank hears of it, and what was
    /// committed in between must not have the numbers of what comes after.
    jump: u64,
    state: State,
    next_deadline: Option<Duration>,
}

/// What a decision comes to: how the group is doing, and what to write.
type Decision = (State, Option<Write>);

impl Coordinator {
    /// `nonce`: random, so that no two coordinators name plans alike. Begins to wait for ranks `now`: a
    /// router that comes to lead makes a new one only if it did not follow the group before.
    pub fn new(shape: GroupShape, nonce: u64, config: Config, now: Duration) -> Coordinator {
        Coordinator {
            config,
            shape,
            roster: Roster::new(now),
            view: None,
            plan_seen: None,
            broken_since: None,
            proposal: None,
            failures: Failures::default(),
            last_plan: nonce,
            jump: FORGOTTEN + (nonce >> 40),
            state: State::Forming,
            next_deadline: None,
        }
    }

    /// A rank attached to this router. Another life of the same rank that was attached is over.
    ///
    /// # Errors
    /// It cannot be a rank of this group.
    pub fn attached(
        &mut self,
        shape: GroupShape,
        report: Report,
        now: Duration,
    ) -> Result<(), Misfit> {
        let RankId { rank, incarnation } = report.me.id;
        let ranks = self.shape.shape.ranks;
        if shape != self.shape {
            return Err(Misfit::Shape {
                rank,
                expected: self.shape,
                got: shape,
            });
        }
        if rank >= ranks {
            return Err(Misfit::Rank { rank, ranks });
        }
        if incarnation == 0 {
            return Err(Misfit::Incarnation { rank });
        }
        self.roster.attach(now, report);
        Ok(())
    }

    pub fn detached(&mut self, id: RankId, now: Duration) {
        self.roster.detach(now, id);
    }

    pub fn report(&mut self, report: Report) {
        self.roster.report(report);
    }

    /// How the store looks now.
    pub fn store(&mut self, view: StoreView, now: Duration) {
        let seen = view.plan.as_ref().map(|plan| plan.id);
        if self.plan_seen.map(|(id, _)| id) != seen {
            self.plan_seen = seen.map(|id| (id, now));
        }
        let current = view.epoch.as_ref().map_or(0, |epoch| epoch.number);
        // Published, or too late.
        self.proposal
            .take_if(|p| Some(p.plan) == seen || p.base != current);
        self.view = Some(view);
    }

    /// The balancer would like this placement, made for the loads it expects under epoch `base`. Taken
    /// for the next decision; it is dropped if it fails.
    ///
    /// # Errors
    /// It does not fit, or not now.
    pub fn propose(
        &mut self,
        base: u64,
        placement: Arc<Placement>,
        expected: Arc<Loads>,
    ) -> Result<(), Refused> {
        let view = self.view.clone().unwrap_or_default();
        let epoch = view.epoch.ok_or(Refused::NotServing)?;
        proposal::fits(&epoch, base, &placement, &expected)?;
        if self.state != State::Serving {
            return Err(Refused::NotServing);
        }
        if view.plan.is_some() {
            return Err(Refused::Busy);
        }
        if !self.is_settled(&epoch) {
            let epoch = epoch.number;
            return Err(Refused::Unsettled { epoch });
        }
        let plan = self.plan_id();
        self.proposal = Some(Proposal {
            plan,
            base,
            placement,
            expected,
        });
        Ok(())
    }

    /// What to write now, if this router leads. Asked after every input and at
    /// [`next_deadline`](Self::next_deadline).
    pub fn decide(&mut self, now: Duration) -> Option<Write> {
        let mut clock = Clock::at(now);
        let (state, write) = match self.view.clone() {
            Some(view) => self.consider(&view, &mut clock),
            None => (State::Forming, None),
        };
        self.state = state;
        self.next_deadline = clock.next;
        write
    }

    /// When the passing of time alone may change the decision: as of the last one.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.next_deadline
    }

    /// As of the last decision.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// What this router tells each attached rank.
    pub fn order(&self) -> Order {
        let view = self.view.clone().unwrap_or_default();
        Order {
            peers: self.roster.reports().map(|r| r.me.clone()).collect(),
            epoch: view.epoch,
            plan: view.plan,
        }
    }

    fn consider(&mut self, view: &StoreView, clock: &mut Clock) -> Decision {
        let stored = view.epoch.as_ref();
        let forgot = self.has_forgotten(view);
        let adopted = self.roster.adopted().filter(|_| forgot);
        // What ranks adopted is newer than a store that forgot.
        let Some(base) = adopted
            .into_iter()
            .chain(stored)
            .max_by_key(|epoch| epoch.number)
            .cloned()
        else {
            return self.form(view, clock);
        };
        self.roster.keep_detached(|id| base.member(id).is_some());
        if let Some(decision) = self.urgent(view, &base, forgot, clock) {
            return decision;
        }
        self.calm(view, &base, clock)
    }

    /// Ranks know of later epochs than the store, or of another one with the same number.
    fn has_forgotten(&self, view: &StoreView) -> bool {
        let Some(stored) = &view.epoch else {
            return self.roster.known() > 0;
        };
        let is_other = |report: &Report| {
            let adopted = report.adopted.as_ref().map(|epoch| epoch.number);
            adopted == Some(stored.number) && stored.member(report.me.id).is_none()
        };
        self.roster.known() > stored.number || self.roster.reports().any(is_other)
    }

    /// Every member is here, has links with every other and has adopted `epoch`.
    fn is_settled(&self, epoch: &Epoch) -> bool {
        let has_adopted = |id| {
            let report = self.roster.get(id);
            report.and_then(|r| r.adopted.as_ref()).map(|e| e.number) == Some(epoch.number)
        };
        let ids = ids(&epoch.members);
        ids.iter().all(|&id| has_adopted(id)) && self.roster.all_linked(&ids)
    }

    fn judge(&self, plan: &Plan, clock: &mut Clock) -> Verdict {
        let seen = self.plan_seen.map_or(clock.now, |(_, seen)| seen);
        pending::judge(plan, seen, &self.roster, clock, &self.config)
    }

    /// Never 0: on the wire that is no plan.
    fn plan_id(&mut self) -> u64 {
        self.last_plan = self.last_plan.wrapping_add(1).max(1);
        self.last_plan
    }
}

fn ids(members: &[Member]) -> Vec<RankId> {
    members.iter().map(|member| member.id).collect()
}

fn withdraw(plan: &Plan, why: Void) -> Option<Write> {
    Some(Write::Withdraw { plan: plan.id, why })
}

#[cfg(test)]
mod tests;
