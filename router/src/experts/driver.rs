//! Runs a group: makes the coordinator's writes, and looks at the placement now and then.

use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace_experts::group::Write;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::balance;
use super::config::ExpertsConfig;
use super::group::{Decided, Group};
use super::history::{Cause, moved};
use super::metrics::Counters;
use super::store::{Base, Change, State, Store, WriteError};

/// After a write that failed and left no trace in the store's state.
const RETRY: Duration = Duration::from_millis(200);
/// With nothing due, a coordinator is asked again all the same: costs nothing, forgives much.
const IDLE: Duration = Duration::from_secs(1);

pub(super) struct Driver {
    pub group: Arc<Group>,
    pub store: Arc<Store>,
    pub config: Arc<ExpertsConfig>,
    pub counters: Arc<Counters>,
}

impl Driver {
    /// Until the group's entry is dropped, which `ended` tells.
    pub async fn run(self, mut ended: watch::Receiver<()>) {
        tokio::select! {
            () = self.drive() => {}
            () = self.balance() => {}
            _ = ended.changed() => {}
        }
    }

    async fn drive(&self) {
        let mut states = self.store.states();
        loop {
            let state = states.borrow_and_update().clone();
            let (decided, due) = self.group.decide(&state);
            if let Some((decided, base)) = decided.and_then(|d| based(d, &state)) {
                match self.write(decided, base).await {
                    // The state shows it by now.
                    Ok(()) => continue,
                    Err(error) => {
                        tracing::warn!(group = self.group.name, %error, "not written");
                        self.group.failed(&error);
                        let _ = tokio::time::timeout(RETRY, states.changed()).await;
                        continue;
                    }
                }
            }
            tokio::select! {
                () = self.group.wake.notified() => {}
                changed = states.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = sleep(due.unwrap_or(IDLE).min(IDLE)) => {}
            }
        }
    }

    async fn write(&self, decided: Decided, base: Base) -> Result<(), WriteError> {
        let Decided { write, before, .. } = decided;
        let before = before.as_deref();
        let change = match &write {
            Write::Publish(plan) => Change::Publish(plan.to_json()),
            Write::Commit(epoch) => Change::Commit(epoch.to_json()),
            Write::Withdraw { .. } => Change::Withdraw,
        };
        self.store.write(&self.group.name, change, base).await?;
        match &write {
            Write::Publish(plan) => self.counters.planned(Cause::of(before, &plan.next)),
            Write::Commit(epoch) => {
                let moved = moved(before, epoch);
                self.counters.committed(Cause::of(before, epoch), moved);
            }
            Write::Withdraw { why, .. } => self.counters.withdrawn(why),
        }
        Ok(())
    }

    async fn balance(&self) {
        let states = self.store.states();
        let mut windows = interval(self.config.window());
        windows.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first is at once, when nothing was counted yet.
        let mut looked = windows.tick().await;
        loop {
            let at = windows.tick().await;
            let situation = self.group.cut(balance::ENOUGH);
            let is_due = |every| at.duration_since(looked) >= every;
            let due = self.config.balance_interval.is_some_and(is_due);
            let leads = states.borrow().term(Instant::now()).is_some();
            let Some(situation) = situation.filter(|_| due && leads) else {
                continue;
            };
            looked = at;
            let (cost, expert_bytes) = (self.config.cost, self.group.shape.expert_bytes);
            let plan = move || {
                let outcome = balance::look(&situation, &cost, expert_bytes);
                (situation, outcome)
            };
            match tokio::task::spawn_blocking(plan).await {
                Ok((situation, Ok(look))) => {
                    let balance::Look {
                        proposal,
                        worthwhile,
                        reason,
                    } = look;
                    tracing::info!(
                        group = self.group.name,
                        worthwhile,
                        reason,
                        "experts: a placement was computed"
                    );
                    self.group.planned(&situation, proposal, worthwhile, reason);
                }
                Ok((_, Err(error))) => {
                    tracing::error!(group = self.group.name, %error, "no placement could be planned");
                }
                Err(error) => {
                    tracing::error!(group = self.group.name, %error, "the planner ended abnormally");
                }
            }
        }
    }
}

/// A decision is this router's to carry out only while it leads.
fn based(decided: Decided, state: &State) -> Option<(Decided, Base)> {
    let term = state.term(Instant::now())?;
    let (epoch, plan) = decided.revisions;
    Some((decided, Base { term, epoch, plan }))
}
