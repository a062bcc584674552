//! A rank of a group that computes nothing: it links with every peer it is told of, stages what it is
//! told to, adopts what it is committed to, and says so.

use std::collections::BTreeMap;
use std::sync::Arc;

use millrace_experts::{Epoch, Plan};
use millrace_proto::worker::v1 as proto;
use parking_lot::Mutex;
use proto::router_message::Message as FromRouter;
use proto::worker_message::Message as FromWorker;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};

use super::worker::{dial, hello, load, message, runtime};

/// 2 layers of 4 experts.
pub const LAYERS: u32 = 2;
pub const EXPERTS: u32 = 4;

pub fn group_rank(rank: u32, ranks: u32, slots: u32, incarnation: u64) -> proto::GroupRank {
    proto::GroupRank {
        group: "g".into(),
        rank,
        incarnation,
        exchange_address: format!("127.0.0.1:{}", 2000 + rank),
        layers: LAYERS,
        experts: EXPERTS,
        ranks,
        slots,
        expert_bytes: 1000,
    }
}

/// What a test tells a rank to do otherwise.
#[derive(Debug, Clone, Default)]
pub struct Habits {
    /// Says nothing of plans.
    pub stages_nothing: bool,
    /// Cannot stage, and says why.
    pub staging_error: String,
    /// Lives whose links with it are broken.
    pub cut_from: Vec<u64>,
    /// It adopts no epoch.
    pub adopts_nothing: bool,
}

/// What a rank was told and does.
#[derive(Debug, Clone, Default)]
pub struct Told {
    pub store: String,
    pub peers: Vec<proto::GroupPeer>,
    pub epoch: Option<Arc<Epoch>>,
    pub plan: Option<Arc<Plan>>,
    /// Epochs seen, in order.
    pub epochs: Vec<u64>,
    /// The same, by router.
    pub by_router: BTreeMap<usize, Vec<u64>>,
}

pub struct Rank {
    pub incarnation: u64,
    pub habits: Arc<Mutex<Habits>>,
    pub told: watch::Receiver<Told>,
    state: Arc<State>,
    /// To each router.
    outboxes: Vec<mpsc::Sender<proto::WorkerMessage>>,
    runtime: Option<Runtime>,
}

struct State {
    me: proto::GroupRank,
    habits: Arc<Mutex<Habits>>,
    told: watch::Sender<Told>,
    adopted: Mutex<Option<Arc<Epoch>>>,
    /// `staged_plan` of reports, once there was any.
    staged: Mutex<u64>,
}

impl Drop for Rank {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Rank {
    /// Attaches to every router, having adopted nothing.
    pub async fn attach(routers: &[&str], me: proto::GroupRank) -> Rank {
        Rank::attach_with(routers, me, None).await
    }

    /// Attaches with an epoch that it adopted earlier, from another store.
    pub async fn attach_with(
        routers: &[&str],
        me: proto::GroupRank,
        adopted: Option<Arc<Epoch>>,
    ) -> Rank {
        let runtime = runtime();
        let habits = Arc::new(Mutex::new(Habits::default()));
        let told = watch::Sender::new(Told::default());
        let incarnation = me.incarnation;
        let state = Arc::new(State {
            me: me.clone(),
            habits: habits.clone(),
            told,
            adopted: Mutex::new(adopted),
            staged: Mutex::new(0),
        });
        let mut outboxes = Vec::new();
        for router in routers {
            let id = format!("rank-{}-{incarnation}", me.rank);
            let address = format!("127.0.0.1:{}", 1000 + me.rank);
            let mut hello = hello(&id, proto::Role::Decode, &address);
            hello.group = Some(me.clone());
            let (outbox, mut inbox) = dial(&runtime, router, hello).await;
            let first = inbox.recv().await.expect("the router answers");
            assert_eq!(first, FromRouter::Admitted(proto::Admitted {}));
            let snapshot = proto::Snapshot {
                load: Some(load()),
                blocks: Vec::new(),
            };
            let snapshot = message(FromWorker::Snapshot(snapshot));
            outbox.send(snapshot).await.unwrap();
            outbox.send(state.report()).await.unwrap();
            outboxes.push((outbox, inbox));
        }
        let all: Vec<_> = outboxes.iter().map(|(outbox, _)| outbox.clone()).collect();
        for (router, (_, mut inbox)) in outboxes.into_iter().enumerate() {
            let (state, outboxes) = (state.clone(), all.clone());
            runtime.spawn(async move {
                while let Some(message) = inbox.recv().await {
                    if let FromRouter::GroupOrder(order) = message {
                        state.obey(router, order);
                        for outbox in &outboxes {
                            // A router that is gone hears no more.
                            let _ = outbox.send(state.report()).await;
                        }
                    }
                }
            });
        }
        Rank {
            incarnation,
            habits,
            told: state.told.subscribe(),
            state,
            outboxes: all,
            runtime: Some(runtime),
        }
    }

    /// As SIGKILL.
    pub fn kill(mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    pub async fn send(&self, what: FromWorker) {
        for outbox in &self.outboxes {
            let _ = outbox.send(message(what.clone())).await;
        }
    }

    /// Reports again, after a change of habits.
    pub async fn report(&self) {
        for outbox in &self.outboxes {
            let _ = outbox.send(self.state.report()).await;
        }
    }

    /// Stages the plan at hand, and says so.
    pub async fn stage_now(&self) {
        let plan = self.told.borrow().plan.as_ref().map_or(0, |plan| plan.id);
        *self.state.staged.lock() = plan;
        self.report().await;
    }

    /// Sums since it started. It computes its rows itself: `computed` is by layer.
    pub async fn counts(&self, chosen: [u64; 8], computed: [u64; 2]) {
        let ranks = self.state.me.ranks as usize;
        let mut by_rank = vec![0; computed.len() * ranks];
        for (layer, computed) in computed.into_iter().enumerate() {
            by_rank[layer * ranks + self.state.me.rank as usize] = computed;
        }
        self.send(FromWorker::ExpertCounts(proto::ExpertCounts {
            chosen: chosen.to_vec(),
            computed: by_rank,
        }))
        .await;
    }

    /// Waits until it was told such.
    pub async fn until(&mut self, what: impl FnMut(&Told) -> bool) -> Told {
        self.told.wait_for(what).await.unwrap().clone()
    }

    pub async fn until_epoch(&mut self, number: u64) -> Arc<Epoch> {
        let is = |told: &Told| told.epoch.as_ref().is_some_and(|e| e.number == number);
        self.until(is).await.epoch.unwrap()
    }
}

impl State {
    fn obey(&self, router: usize, order: proto::GroupOrder) {
        let read =
            |json: &[u8]| (!json.is_empty()).then(|| Arc::new(Epoch::from_json(json).unwrap()));
        let epoch = read(&order.epoch);
        let plan =
            (!order.plan.is_empty()).then(|| Arc::new(Plan::from_json(&order.plan).unwrap()));
        let habits = self.habits.lock().clone();
        if let Some(epoch) = &epoch {
            let is_me = |m: &millrace_experts::Member| m.id.incarnation == self.me.incarnation;
            let mut adopted = self.adopted.lock();
            // Routers are not equally fast; an epoch that was overtaken is none.
            let news = adopted
                .as_ref()
                .is_none_or(|last| last.number < epoch.number);
            if news && !habits.adopts_nothing && epoch.members.iter().any(is_me) {
                *adopted = Some(epoch.clone());
            }
        }
        if let Some(plan) = &plan
            && !habits.stages_nothing
        {
            *self.staged.lock() = plan.id;
        }
        self.told.send_modify(|told| {
            if let Some(epoch) = &epoch
                && told.epochs.last() != Some(&epoch.number)
            {
                told.epochs.push(epoch.number);
            }
            if let Some(epoch) = &epoch {
                told.by_router.entry(router).or_default().push(epoch.number);
            }
            told.store = order.store;
            told.peers = order.peers;
            told.plan = plan;
            told.epoch = epoch;
        });
    }

    fn report(&self) -> proto::WorkerMessage {
        let habits = self.habits.lock().clone();
        let told = self.told.borrow();
        let adopted = self.adopted.lock().clone();
        let id = |peer: &proto::GroupPeer| peer.id;
        let is_cut = |id: &proto::RankId| habits.cut_from.contains(&id.incarnation);
        let linked = told.peers.iter().filter_map(id).filter(|id| !is_cut(id));
        let members = adopted.iter().flat_map(|epoch| &epoch.members);
        let lost = members
            .map(|member| proto::RankId {
                rank: member.id.rank as u32,
                incarnation: member.id.incarnation,
            })
            .filter(is_cut);
        let number = adopted.as_ref().map_or(0, |epoch| epoch.number);
        message(FromWorker::GroupReport(proto::GroupReport {
            linked: linked
                .filter(|id| id.incarnation != self.me.incarnation)
                .collect(),
            lost: lost.collect(),
            staged_plan: *self.staged.lock(),
            staging_error: habits.staging_error,
            known: told.epochs.iter().copied().max().unwrap_or(0).max(number),
            adopted: adopted.map(|epoch| epoch.to_json()).unwrap_or_default(),
        }))
    }
}
