//! Brings the weights of an epoch's slots into memory, in the background.
//!
//! ```text
//! order ─▶ target ─▶ what is missing ─▶ from a peer's memory ─▶ verify ─▶ shelf ─▶ staged
//!                                         └─ else the checkpoint ─┘
//! ```
//!
//! One task owns this: nothing else puts weights on the shelf or takes them off, so what it counted
//! on stays. A plan that goes away, or a newer epoch, cancels what is under way between two experts.

mod budget;
mod fetch;
mod sources;
mod target;

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::Instant};

use millrace_engine::ExpertShelf;
use millrace_experts::{
    Epoch, RankId,
    group::{Order, Report, Staged},
};
use millrace_kernels::Backend;

use super::{Group, background::Background, metrics::StagingMetrics};
use sources::{Expert, Sources, StagingError};
use target::{Needs, Promised, Target};

/// A committed epoch cannot be given up; what failed is tried again after this long.
const RETRY: Duration = Duration::from_secs(1);

pub struct Staging<B: Backend> {
    group: Arc<Group>,
    shelf: Arc<ExpertShelf<B>>,
    background: Background,
    metrics: StagingMetrics,
    sources: Sources<B>,
    promised: Promised,
    orders: watch::Receiver<Order>,
    reports: watch::Receiver<Report>,
}

impl<B: Backend> Staging<B> {
    pub fn new(
        group: Arc<Group>,
        shelf: Arc<ExpertShelf<B>>,
        background: Background,
        metrics: StagingMetrics,
        bytes_per_second: u64,
    ) -> Staging<B> {
        let sources = Sources::new(
            &group,
            shelf.clone(),
            background.clone(),
            metrics.clone(),
            bytes_per_second,
        );
        Staging {
            shelf,
            background,
            metrics,
            sources,
            promised: Promised::default(),
            orders: group.orders(),
            reports: group.reports().subscribe(),
            group,
        }
    }

    /// Stages what orders ask for, for ever.
    pub async fn run(mut self) {
        loop {
            let order = self.orders.borrow_and_update().clone();
            self.tidy(&order).await;
            let told = self.reports.borrow_and_update().staged.clone();
            let me = self.group.me().id;
            let staged = self.promised.latest();
            let Some(target) = Target::of(&order, me, staged, told.as_ref()) else {
                self.news().await;
                continue;
            };
            let mut orders = self.orders.clone();
            let outcome = tokio::select! {
                outcome = self.stage(&target, order.epoch.as_deref()) => outcome,
                () = no_longer(&mut orders, me, staged, &target) => {
                    tracing::info!("staging was given up: its plan or epoch is over");
                    continue;
                }
            };
            self.tell(target, outcome).await;
        }
    }

    async fn tell(&mut self, target: Target, outcome: Result<(), StagingError>) {
        match (target, outcome) {
            (Target::Epoch(epoch), Ok(())) => {
                self.group.staged(epoch.number);
                self.promised.add(epoch);
            }
            (Target::Epoch(epoch), Err(error)) => {
                tracing::error!(epoch = epoch.number, %error, "this rank cannot join the epoch; trying again");
                // Unless there is something else to do by then.
                let _ = tokio::time::timeout(RETRY, self.orders.changed()).await;
            }
            (Target::Plan(plan), outcome) => {
                match &outcome {
                    Ok(()) => tracing::info!(plan = plan.id, "staged"),
                    Err(error) => tracing::error!(plan = plan.id, %error, "staging failed"),
                }
                self.group.reports().set_staged(Staged {
                    plan: plan.id,
                    outcome: outcome.map_err(|error| error.to_string()),
                });
            }
        }
    }

    /// Returns when there may be something to stage or to drop.
    async fn news(&mut self) {
        tokio::select! {
            changed = self.orders.changed() => changed,
            changed = self.reports.changed() => changed,
        }
        .expect("the group, which this task holds, has the senders");
    }

    /// Drops weights that no epoch or plan needs any more, and what was said of a plan that is over.
    async fn tidy(&mut self, order: &Order) {
        let plan = order.plan.as_ref().map(|plan| plan.id);
        self.group.reports().forget_staged_but(plan);
        let adopted = self.group.reports().adopted();
        if let Some(adopted) = &adopted {
            self.promised.adopted(adopted.number);
        }
        let Some(committed) = &order.epoch else {
            // Before the first epoch: that will be about what was loaded.
            return;
        };
        let members = committed.members.iter();
        self.sources
            .keep(members.map(|member| member.grpc.as_str()));
        let rank = self.group.me().id.rank;
        let mut needs = Needs::none(self.group.shape().shape);
        for epoch in adopted
            .iter()
            .chain([committed])
            .chain(self.promised.epochs())
        {
            needs.add(&epoch.placement, rank);
        }
        if let Some(plan) = &order.plan {
            needs.add(&plan.next.placement, rank);
        }
        let shelf = self.shelf.clone();
        let drop_rest = move || shelf.retain(|layer, expert| needs.contains(layer, expert));
        if let Err(panicked) = self.background.run(drop_rest).await {
            tracing::error!(%panicked, "unneeded weights stay in memory");
        }
    }

    async fn stage(
        &mut self,
        target: &Target,
        committed: Option<&Epoch>,
    ) -> Result<(), StagingError> {
        let me = self.group.me().id;
        let mut needs = Needs::none(self.group.shape().shape);
        needs.add(target.placement(), me.rank);
        let missing: Vec<Expert> = needs
            .iter()
            .map(|(layer, expert)| Expert { layer, expert })
            .filter(|at| !self.shelf.has(at.layer, at.expert))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        tracing::info!(experts = missing.len(), "staging weights");
        let started = Instant::now();
        // A peer that failed once is not asked again for this target: each may cost a timeout.
        let mut failed = Vec::new();
        for at in missing {
            let holder = committed.and_then(|epoch| holder(epoch, me, at, &failed));
            if let Some((peer, address)) = holder {
                match self.sources.peer(&address, at).await {
                    Ok(()) => continue,
                    // It has not staged it either.
                    Err(error) if error.is_absent() => {}
                    Err(error) => {
                        tracing::warn!(
                            peer = peer.rank,
                            layer = at.layer,
                            expert = at.expert,
                            %error,
                            "a peer's weights are of no use; taking the checkpoint's"
                        );
                        failed.push(peer);
                    }
                }
            }
            self.sources.checkpoint(at).await?;
        }
        self.metrics
            .seconds
            .observe(started.elapsed().as_secs_f64());
        Ok(())
    }
}

/// A member that has the expert in memory. Ranks that miss the same one ask different members.
fn holder(epoch: &Epoch, me: RankId, at: Expert, failed: &[RankId]) -> Option<(RankId, String)> {
    let expert = at.expert as u32;
    let holds = |rank| epoch.placement.slots(at.layer, rank).contains(&expert);
    let holders: Vec<_> = epoch
        .members
        .iter()
        .filter(|member| member.id.rank != me.rank && holds(member.id.rank))
        .filter(|member| !failed.contains(&member.id))
        .collect();
    let chosen = holders.get((me.rank + at.layer) % holders.len().max(1))?;
    Some((chosen.id, chosen.grpc.clone()))
}

/// Returns when orders want something else than `target`.
async fn no_longer(orders: &mut watch::Receiver<Order>, me: RankId, staged: u64, target: &Target) {
    let another = |order: &Order| Target::of(order, me, staged, None).as_ref() != Some(target);
    if orders.wait_for(another).await.is_err() {
        std::future::pending::<()>().await;
    }
}
