//! The engine's thread in a group: agrees with the other ranks on each step, then computes it.
//!
//! Like a lone engine's, the thread sleeps on its commands; frames, orders and staged weights wake it
//! through the same channel. So an idle group sleeps, and requests are taken while it waits for
//! others.

use std::{sync::Arc, time::Instant};

use tokio::sync::watch;

use millrace_engine::{LeasedPages, engine::Pending};
use millrace_exchange::Mesh;
use millrace_experts::{
    Epoch, RankId,
    group::{Action, Lockstep, Order, Start, Step},
};
use millrace_kernels::Backend;

use super::{Group, metrics::GroupMetrics};
use crate::engine::{
    RequestEvent,
    runner::{BLOCKED, Patience, Runner},
};

/// What the engine's thread needs to be one rank.
pub struct Rank {
    pub group: Arc<Group>,
    pub mesh: Arc<Mesh>,
    pub metrics: GroupMetrics,
}

pub struct Driver<'a, B: Backend, R, F> {
    runner: &'a mut Runner<B, R, F>,
    group: Arc<Group>,
    mesh: Arc<Mesh>,
    metrics: GroupMetrics,
    lockstep: Lockstep,
    orders: watch::Receiver<Order>,
    /// My word for the step to come, and since when the others' are waited for.
    announced: Option<(Start, Instant)>,
}

impl<'a, B: Backend, R, F: FnMut(LeasedPages, usize) -> R> Driver<'a, B, R, F> {
    pub(crate) fn new(runner: &'a mut Runner<B, R, F>, rank: Rank) -> Driver<'a, B, R, F> {
        let Rank {
            group,
            mesh,
            metrics,
        } = rank;
        let mut orders = group.orders();
        // One may have come already.
        orders.mark_changed();
        Driver {
            runner,
            lockstep: Lockstep::new(group.me().id),
            orders,
            group,
            mesh,
            metrics,
            announced: None,
        }
    }

    pub(crate) fn run(mut self) {
        let mut patience = Patience::None;
        while self.runner.take_commands(patience).is_ok() {
            self.take_news();
            patience = self.act();
            self.runner.publish();
        }
        // Nobody may think that this rank still takes part.
        self.runner.outside = true;
    }

    /// Orders, staged weights, and what came from other ranks.
    fn take_news(&mut self) {
        if self.orders.has_changed().unwrap_or(false)
            && let Some(epoch) = self.orders.borrow_and_update().epoch.clone()
        {
            self.lockstep.commit(epoch);
        }
        self.lockstep.staged(self.group.latest_staged());
        // A word must not outlive the link it came over: taken before the losses, and heard after
        // them, one that came over a new link is not forgotten with the old one.
        let starts = self.mesh.take_starts();
        for peer in self.mesh.take_lost() {
            self.lockstep.lost(peer);
        }
        for (from, start) in starts {
            if let Some((mine, since)) = &self.announced
                && (mine.epoch, mine.step) == (start.epoch, start.step)
            {
                self.metrics.waited_for(from.rank, since.elapsed());
            }
            self.lockstep.start(from, start);
        }
        self.report();
    }

    fn report(&self) {
        self.group.reports().set(
            self.lockstep.known(),
            self.mesh.linked(),
            self.lockstep.lost_members(),
        );
    }

    /// Does one thing. Answers how long to wait for the next.
    fn act(&mut self) -> Patience {
        match self.lockstep.poll(self.runner.engine.demand()) {
            Action::Wait => return self.patience(),
            Action::Announce(start) => self.announce(start),
            Action::Adopt(epoch) => self.adopt(&epoch),
            Action::Leave => self.leave(),
            Action::Run(step) => self.step(&step),
        }
        Patience::None
    }

    fn patience(&self) -> Patience {
        match self.runner.engine.pending() {
            Pending::Blocked => Patience::AtMost(BLOCKED),
            Pending::Idle | Pending::Runnable => Patience::Forever,
        }
    }

    fn announce(&mut self, start: Start) {
        let epoch = self.lockstep.adopted().expect("a member speaks").clone();
        self.announced = Some((start, Instant::now()));
        let members = ids(&epoch);
        // A member that this rank has no link with will not hear it, not even over a later one.
        let linked = self.mesh.linked();
        let me = self.group.me().id;
        for &member in members.iter().filter(|id| **id != me) {
            if !linked.contains(&member) {
                self.lockstep.lost(member);
            }
        }
        self.mesh.announce(&start, &members);
    }

    fn adopt(&mut self, epoch: &Arc<Epoch>) {
        // Lockstep adopts what staging has said is in memory, and staging keeps it there.
        let adopted = self.runner.engine.adopt(epoch);
        adopted.expect("an epoch is adopted only once it is staged");
        tracing::info!(
            epoch = epoch.number,
            members = epoch.members.len(),
            degraded = epoch.is_degraded(),
            "adopted"
        );
        self.announced = None;
        self.runner.outside = false;
        self.group.reports().adopt(Some(epoch.clone()));
        self.metrics.adopted(epoch.number);
    }

    /// The group goes on without this rank: its requests go on at others, and it waits to be let in
    /// again.
    fn leave(&mut self) {
        let requests = self.runner.requests.len();
        tracing::warn!(requests, "left out of the group; its requests go elsewhere");
        self.announced = None;
        self.runner.outside = true;
        self.runner.end_requests(|| Some(RequestEvent::Evicted));
        self.group.reports().adopt(None);
        self.metrics.left();
    }

    fn step(&mut self, step: &Step) {
        let epoch = self.lockstep.adopted().expect("members run steps").clone();
        let me = self.group.me().id;
        let mine = |(id, rows): &(_, usize)| (*id == me).then_some(*rows);
        let limit = step.rows.iter().find_map(mine).unwrap_or(0);
        if let Some((_, since)) = self.announced.take() {
            self.metrics.waited(since.elapsed());
        }
        let ranks = epoch.placement.shape().ranks;
        let mut exchange = self
            .mesh
            .exchange(step.epoch, step.step, &ids(&epoch), ranks);
        let result = self
            .runner
            .measured(|engine, emit| engine.step_in_group(limit, &mut exchange, emit));
        match result {
            Ok(()) => {
                self.lockstep.done();
                self.metrics.step(true);
            }
            Err(dropped) => {
                tracing::warn!(epoch = step.epoch, step = step.step, "{dropped}");
                self.lockstep.dropped();
                self.metrics.step(false);
            }
        }
    }
}

fn ids(epoch: &Epoch) -> Vec<RankId> {
    epoch.members.iter().map(|member| member.id).collect()
}
