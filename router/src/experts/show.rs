//! Groups as `/experts` shows them.

use std::time::Instant;

use millrace_experts::group::coordinator::State;
use millrace_experts::load::Balance;
use millrace_experts::{Epoch, Member, Plan};

use super::group::{Group, Inner, Seated};
use super::groups::Groups;
use super::history::moved;
use super::tally::Window;
use super::view::{
    EpochView, ExpertsView, GroupState, GroupView, HotExpert, LoadView, MemberView, PlanView,
    RankView, ShapeView, StoreView, Summary,
};

/// Hottest experts shown.
const HOTTEST: usize = 5;

impl Groups {
    /// Of all groups, by name.
    pub fn summaries(&self) -> Vec<Summary> {
        self.all().iter().map(|group| group.summary()).collect()
    }

    /// This router decides on epochs.
    pub fn is_leading(&self) -> bool {
        self.store.states().borrow().term(Instant::now()).is_some()
    }

    pub fn view(&self) -> ExpertsView {
        let state = self.store.states().borrow().clone();
        ExpertsView {
            store: StoreView {
                kind: self.store.kind(),
                id: state.id.as_deref().map(str::to_owned),
                up: state.up,
                leading: state.term(Instant::now()).is_some(),
            },
            groups: self.all().iter().map(|group| group.view()).collect(),
        }
    }
}

impl Group {
    fn summary(&self) -> Summary {
        let inner = self.inner.lock();
        let shape = self.shape.shape;
        let epoch = inner.records.epoch().map(|epoch| &**epoch);
        let balance = |window| balance(window, epoch).overall();
        Summary {
            group: self.name.clone(),
            epoch: epoch.map(|epoch| epoch.number),
            state: state(inner.coordinator.state()).0,
            ranks: shape.ranks,
            members: epoch.map_or(0, |epoch| epoch.members.len()),
            redundant_slots: shape.layers * (shape.ranks * shape.slots - shape.experts),
            balancedness: inner.window.as_ref().map(balance),
            staging: inner.records.plan().map(|plan| plan.id),
        }
    }

    fn view(&self) -> GroupView {
        let inner = self.inner.lock();
        let shape = self.shape.shape;
        let epoch = inner.records.epoch().map(|epoch| &**epoch);
        let (state, paused) = state(inner.coordinator.state());
        GroupView {
            group: self.name.clone(),
            state,
            paused,
            shape: ShapeView {
                layers: shape.layers,
                experts: shape.experts,
                ranks: shape.ranks,
                slots: shape.slots,
                expert_bytes: self.shape.expert_bytes,
            },
            epoch: epoch.map(|epoch| EpochView {
                number: epoch.number,
                reset: epoch.reset,
                members: epoch.members.iter().map(member).collect(),
            }),
            plan: inner
                .records
                .plan()
                .map(|plan| self::plan(plan, epoch, &inner)),
            ranks: inner.seats.values().map(rank).collect(),
            placement: epoch.map(placement).unwrap_or_default(),
            replicas: epoch.map(replicas).unwrap_or_default(),
            load: inner.window.as_ref().map(|window| load(window, epoch)),
            history: inner.history.events(),
        }
    }
}

/// And why no step can be taken.
fn state(state: &State) -> (GroupState, Option<String>) {
    match state {
        State::Forming => (GroupState::Forming, None),
        State::Serving => (GroupState::Whole, None),
        State::Degraded => (GroupState::Degraded, None),
        State::Paused(pause) => (GroupState::Recovering, Some(pause.to_string())),
    }
}

fn member(member: &Member) -> MemberView {
    MemberView {
        rank: member.id.rank,
        incarnation: hex(member.id.incarnation),
        exchange: member.exchange.clone(),
        grpc: member.grpc.clone(),
    }
}

fn hex(bits: u64) -> String {
    format!("{bits:016x}")
}

fn rank(seated: &Seated) -> RankView {
    let report = &seated.report;
    let staged = report.staged.as_ref();
    RankView {
        member: member(&seated.rank.member),
        worker: seated.worker.clone(),
        adopted: report.adopted.as_ref().map(|epoch| epoch.number),
        linked: report.linked.iter().map(|id| id.rank).collect(),
        lost: report.lost.iter().map(|id| id.rank).collect(),
        staging_error: staged.and_then(|staged| staged.outcome.clone().err()),
    }
}

fn plan(plan: &Plan, epoch: Option<&Epoch>, inner: &Inner) -> PlanView {
    let has_staged = |member: &&Member| {
        let seated = inner.seats.get(&member.id.rank);
        let report = seated.map(|s| &s.report).filter(|r| r.me.id == member.id);
        let staged = report.and_then(|report| report.staged.as_ref());
        staged.is_some_and(|staged| staged.plan == plan.id && staged.outcome.is_ok())
    };
    let (staged, waiting): (Vec<_>, Vec<_>) = plan.next.members.iter().partition(has_staged);
    let ranks = |members: Vec<&Member>| members.iter().map(|member| member.id.rank).collect();
    PlanView {
        id: hex(plan.id),
        base: plan.base,
        number: plan.next.number,
        moved: moved(epoch, &plan.next) as u64,
        staged: ranks(staged),
        waiting: ranks(waiting),
    }
}

/// `[layer][rank][slot]`
fn placement(epoch: &Epoch) -> Vec<Vec<Vec<u32>>> {
    let placement = &epoch.placement;
    let shape = placement.shape();
    let rank = |layer, rank| placement.slots(layer, rank).to_vec();
    (0..shape.layers)
        .map(|layer| (0..shape.ranks).map(|r| rank(layer, r)).collect())
        .collect()
}

/// How many (layer, expert) have 1, 2, 3, and 4 or more live replicas.
fn replicas(epoch: &Epoch) -> [u64; 4] {
    let shape = epoch.placement.shape();
    let live = epoch.live();
    let mut histogram = [0; 4];
    let mut counts = vec![0usize; shape.experts];
    for layer in 0..shape.layers {
        counts.fill(0);
        for (place, &expert) in epoch.placement.layer(layer).iter().enumerate() {
            counts[expert as usize] += usize::from(live[place / shape.slots]);
        }
        // An expert without any cannot be in an epoch.
        for count in &counts {
            histogram[count.clamp(&1, &4) - 1] += 1;
        }
    }
    histogram
}

fn load(window: &Window, epoch: Option<&Epoch>) -> LoadView {
    let chosen = &window.chosen;
    let layers = chosen.layers();
    let live = epoch.map(Epoch::live).unwrap_or_default();
    let balance = balance(window, epoch);
    let hottest = chosen.hottest(HOTTEST).into_iter().map(|hot| {
        let total: u64 = chosen.layer(hot.layer).iter().sum();
        let replicas = epoch.map_or(0, |epoch| {
            let of_expert = epoch.placement.replicas(hot.layer, hot.expert);
            of_expert.filter(|(rank, _)| live[*rank]).count()
        });
        HotExpert {
            layer: hot.layer,
            expert: hot.expert,
            share: hot.tokens as f64 / total.max(1) as f64,
            replicas,
        }
    });
    LoadView {
        seconds: window.length.as_secs_f64(),
        hottest: hottest.collect(),
        chosen: (0..layers)
            .map(|layer| chosen.layer(layer).to_vec())
            .collect(),
        computed: window.computed.clone(),
        balancedness: (0..balance.layers())
            .map(|layer| balance.layer(layer))
            .collect(),
        overall: balance.overall(),
    }
}

/// Over the epoch's members.
fn balance(window: &Window, epoch: Option<&Epoch>) -> Balance {
    let live = epoch.map(Epoch::live).unwrap_or_default();
    let members: Vec<&[u64]> = live
        .iter()
        .zip(&window.computed)
        .filter(|(live, _)| **live)
        .map(|(_, layers)| layers.as_slice())
        .collect();
    Balance::measured(&members)
}
