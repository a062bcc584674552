//! One group as this router knows it: who is attached, what they said, what the store has.
//!
//! Sessions of ranks and the driver call it from their own tasks; it decides nothing that the
//! [`Coordinator`] does not decide, and nothing awaits while it holds the lock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace_experts::group::{Coordinator, GroupShape, Order, Report, StoreView, Write};
use millrace_experts::{Epoch, Loads, Placement, planner};
use millrace_proto::worker::v1::GroupOrder;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::config::ExpertsConfig;
use super::history::{self, History};
use super::records::Records;
use super::store;
use super::tally::{Tally, Window};
use super::view::EventKind;
use super::wire::{self, Counts};
use crate::fleet::GroupRank;
use crate::fleet::roster::Standing;

/// Loads are remembered over so many looks at the placement.
const MEMORY: u32 = 2;

pub struct Group {
    pub name: String,
    pub shape: GroupShape,
    pub(super) inner: Mutex<Inner>,
    /// What every rank is told. `None` until the store was read.
    orders: watch::Sender<Option<Arc<GroupOrder>>>,
    /// Something was said that may change a decision.
    pub(super) wake: Notify,
    began: Instant,
}

pub(super) struct Inner {
    pub coordinator: Coordinator,
    pub records: Records,
    /// By rank: the life that reported last for the first time.
    pub seats: BTreeMap<usize, Seated>,
    pub window: Option<Window>,
    pub history: History,
    tally: Tally,
    /// What ranks were told last, by the store of that id.
    told: Option<(Arc<str>, Order)>,
    /// Why this router removes a plan, so that its history can say so once it is gone.
    withdrawing: Option<(u64, String)>,
    /// What was predicted of a placement that was proposed.
    predicted: Option<(Arc<Placement>, String)>,
}

/// A rank that has reported.
pub(super) struct Seated {
    pub seat: u64,
    pub rank: GroupRank,
    pub worker: String,
    pub report: Report,
    pub standing: Standing,
}

/// What to write, and what that was decided on.
pub(super) struct Decided {
    pub write: Write,
    pub before: Option<Arc<Epoch>>,
    pub revisions: (i64, i64),
}

/// What the balancer begins with.
pub(super) struct Situation {
    pub epoch: Arc<Epoch>,
    pub loads: Loads,
}

impl Group {
    pub fn new(name: &str, shape: GroupShape, config: &ExpertsConfig) -> Group {
        let half_life = config.balance_interval.unwrap_or(config.load_window) * MEMORY;
        let now = Duration::ZERO;
        Group {
            name: name.to_owned(),
            shape,
            inner: Mutex::new(Inner {
                coordinator: Coordinator::new(shape, rand::random(), config.coordinator(), now),
                records: Records::new(shape.shape),
                seats: BTreeMap::new(),
                window: None,
                history: History::default(),
                tally: Tally::new(shape.shape, half_life, now),
                told: None,
                withdrawing: None,
                predicted: None,
            }),
            orders: watch::Sender::new(None),
            wake: Notify::new(),
            began: Instant::now(),
        }
    }

    /// Since the group came to be here: the coordinator's time.
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    pub fn orders(&self) -> watch::Receiver<Option<Arc<GroupOrder>>> {
        self.orders.subscribe()
    }

    /// A rank's first report on a stream.
    ///
    /// # Errors
    /// It is none of this group.
    pub(super) fn attached(&self, seated: Seated) -> Result<(), wire::Broken> {
        let mut inner = self.inner.lock();
        let report = seated.report.clone();
        inner
            .coordinator
            .attached(seated.rank.shape, report, self.now())?;
        inner.seats.insert(seated.rank.member.id.rank, seated);
        inner.tell_standing();
        drop(inner);
        self.wake.notify_one();
        Ok(())
    }

    pub fn report(&self, seat: u64, report: Report) {
        let mut inner = self.inner.lock();
        if let Some(seated) = inner.seated(seat, report.me.id.rank) {
            seated.report = report.clone();
            inner.coordinator.report(report);
            drop(inner);
            self.wake.notify_one();
        }
    }

    pub fn counts(&self, seat: u64, rank: &GroupRank, counts: Counts) {
        let mut inner = self.inner.lock();
        if inner.seated(seat, rank.member.id.rank).is_some() {
            inner.tally.counts(rank.member.id, counts);
        }
    }

    /// A stream ended. If the same life is here on a newer one, that is no loss.
    pub fn detached(&self, seat: u64, rank: &GroupRank) {
        let id = rank.member.id;
        let mut inner = self.inner.lock();
        if inner.seated(seat, id.rank).is_some() {
            inner.seats.remove(&id.rank);
            inner.tally.left(id);
            inner.coordinator.detached(id, self.now());
            drop(inner);
            self.wake.notify_one();
        }
    }

    /// Takes in how the store looks, decides, and tells ranks of what is new to them.
    pub(super) fn decide(&self, state: &store::State) -> (Option<Decided>, Option<Duration>) {
        let mut inner = self.inner.lock();
        let now = self.now();
        if let Some(store) = &state.id {
            inner.read(&self.name, store, state, now);
        }
        let write = inner.coordinator.decide(now);
        self.tell(&mut inner);
        if let Some(Write::Withdraw { plan, why }) = &write {
            inner.withdrawing = Some((*plan, why.to_string()));
        }
        let decided = write.map(|write| Decided {
            write,
            before: inner.records.epoch().cloned(),
            revisions: inner.records.revisions(),
        });
        let due = inner.coordinator.next_deadline();
        (decided, due.map(|due| due.saturating_sub(now)))
    }

    /// Tells ranks what is new to them.
    fn tell(&self, inner: &mut Inner) {
        let Some(store) = inner.records.store() else {
            return;
        };
        let order = (Arc::clone(store), inner.coordinator.order());
        // Made into bytes only when it differs: decisions are many, changes few.
        if inner.told.as_ref() != Some(&order) {
            let message = wire::order(&order.0, &order.1);
            inner.told = Some(order);
            self.orders.send_replace(Some(Arc::new(message)));
        }
    }

    /// Ends a window of counts. What to plan for, if enough was counted and the epoch could change.
    pub(super) fn cut(&self, enough: f64) -> Option<Situation> {
        let mut inner = self.inner.lock();
        if let Some(window) = inner.tally.cut(self.now()) {
            inner.window = Some(window);
        }
        let epoch = inner.records.epoch()?;
        let ready = !epoch.is_degraded()
            && inner.records.plan().is_none()
            && inner.tally.remembered() >= enough;
        ready.then(|| Situation {
            epoch: Arc::clone(epoch),
            loads: inner.tally.loads(),
        })
    }

    /// What became of a look at the placement: to be proposed, or kept.
    pub(super) fn planned(
        &self,
        situation: &Situation,
        proposal: planner::Proposal,
        worthwhile: bool,
        reason: String,
    ) {
        let mut inner = self.inner.lock();
        let epoch = situation.epoch.number;
        if !worthwhile {
            let reason = format!("{} experts would move; {reason}", proposal.moved());
            inner.history.add(EventKind::Kept, epoch, reason);
            return;
        }
        let placement = Arc::new(proposal.placement);
        let expected = Arc::new(situation.loads.clone());
        let proposed = inner
            .coordinator
            .propose(epoch, Arc::clone(&placement), expected);
        match proposed {
            Ok(()) => {
                inner.predicted = Some((placement, reason));
                drop(inner);
                self.wake.notify_one();
            }
            // Whatever is more urgent comes first. The next window brings another.
            Err(refused) => tracing::debug!(group = self.name, %refused, "not proposed"),
        }
    }

    /// A write was not made.
    pub(super) fn failed(&self, error: &store::WriteError) {
        let mut inner = self.inner.lock();
        let epoch = inner.records.epoch().map_or(0, |epoch| epoch.number);
        inner
            .history
            .add(EventKind::Failed, epoch, error.to_string());
    }
}

impl Inner {
    /// What is known of a rank, if this stream is the one that speaks for it.
    fn seated(&mut self, seat: u64, rank: usize) -> Option<&mut Seated> {
        self.seats
            .get_mut(&rank)
            .filter(|seated| seated.seat == seat)
    }

    /// Requests go to members alone: also where a rank hangs and does not say itself that it is none.
    fn tell_standing(&self) {
        if let Some(epoch) = self.records.epoch() {
            for seated in self.seats.values() {
                let is_member = epoch.member(seated.rank.member.id).is_some();
                seated.standing.set(is_member);
            }
        }
    }

    fn read(&mut self, group: &str, store: &Arc<str>, state: &store::State, now: Duration) {
        let (epoch, plan) = (self.records.epoch().cloned(), self.records.plan().cloned());
        let known = self.records.store().cloned();
        for bad in self.records.read(store, state.slots(group)) {
            tracing::error!(group, %bad, "a record of the epoch store is not used");
        }
        let (next, next_plan) = (self.records.epoch(), self.records.plan());
        if known.as_ref() == Some(store) && (next, next_plan) == (epoch.as_ref(), plan.as_ref()) {
            return;
        }
        let view = StoreView {
            epoch: next.cloned(),
            plan: next_plan.cloned(),
        };
        self.coordinator.store(view.clone(), now);
        self.tell_standing();
        self.remember(group, epoch.as_deref(), plan.as_deref(), &view);
    }

    /// Tells the history what changed in the store, whoever changed it.
    fn remember(
        &mut self,
        group: &str,
        epoch: Option<&Epoch>,
        plan: Option<&millrace_experts::Plan>,
        now: &StoreView,
    ) {
        let mut told = |kind, epoch: u64, reason: String| {
            tracing::info!(group, epoch, reason, "experts: {}", kind_in_words(kind));
            self.history.add(kind, epoch, reason);
        };
        let predicted = |next: &Epoch| {
            let of_this =
                |(placement, _): &&(Arc<Placement>, String)| **placement == *next.placement;
            let found = self.predicted.as_ref().filter(of_this);
            found.map_or(String::new(), |(_, reason)| format!("; {reason}"))
        };
        let committed = now.epoch.as_deref().filter(|next| Some(*next) != epoch);
        if let Some(next) = committed {
            let reason = history::reason(epoch, next) + &predicted(next);
            told(EventKind::Committed, next.number, reason);
        }
        if let Some(gone) = plan.filter(|gone| now.plan.as_ref().map(|p| p.id) != Some(gone.id))
            && committed.is_none_or(|next| *next != gone.next)
        {
            let why = self.withdrawing.take_if(|(plan, _)| *plan == gone.id);
            let reason = match (why, committed) {
                (Some((_, why)), _) => why,
                (None, Some(_)) => "another epoch came first".into(),
                (None, None) => "the router that leads gave it up".into(),
            };
            told(EventKind::Withdrawn, gone.next.number, reason);
        }
        if let Some(new) = now
            .plan
            .as_deref()
            .filter(|new| plan.map(|p| p.id) != Some(new.id))
        {
            let reason = history::reason(now.epoch.as_deref(), &new.next) + &predicted(&new.next);
            told(EventKind::Planned, new.next.number, reason);
        }
    }
}

fn kind_in_words(kind: EventKind) -> &'static str {
    match kind {
        EventKind::Planned => "a plan is staged",
        EventKind::Committed => "an epoch is committed",
        EventKind::Withdrawn => "a plan is given up",
        EventKind::Kept => "the placement is kept",
        EventKind::Failed => "a write failed",
    }
}
