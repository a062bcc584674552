//! Groups over the real membership contract: forming, planning, losing ranks and letting them back.

mod common;

use std::time::Duration;

use common::rank::{Rank, group_rank};
use common::worker::{Worker, dial, hello, load, message, runtime};
use common::{Router, limits};
use millrace_proto::worker::v1 as proto;
use millrace_router::config::ExpertsConfig;
use millrace_router::experts::view::{EventKind, GroupState, GroupView};
use proto::router_message::Message as FromRouter;
use proto::worker_message::Message as FromWorker;

const MILLISECOND: Duration = Duration::from_millis(1);

/// Balances whenever anything was counted.
fn eager() -> ExpertsConfig {
    ExpertsConfig {
        balance_interval: Some(20 * MILLISECOND),
        ..ExpertsConfig::default()
    }
}

fn still() -> ExpertsConfig {
    ExpertsConfig {
        balance_interval: None,
        ..ExpertsConfig::default()
    }
}

fn view(router: &Router) -> Option<GroupView> {
    router.groups.view().groups.pop()
}

async fn until(router: &Router, what: impl Fn(&GroupView) -> bool) -> GroupView {
    loop {
        match view(router) {
            Some(view) if what(&view) => return view,
            _ => tokio::time::sleep(2 * MILLISECOND).await,
        }
    }
}

/// A group of `ranks` with incarnations 100, 101, ... that has formed.
async fn group(router: &Router, ranks: u32, slots: u32) -> Vec<Rank> {
    let mut group = Vec::new();
    for rank in 0..ranks {
        let me = group_rank(rank, ranks, slots, 100 + u64::from(rank));
        group.push(Rank::attach(&[&router.address], me).await);
    }
    for rank in &mut group {
        rank.until_epoch(1).await;
    }
    let adopted = |view: &GroupView| view.ranks.iter().all(|rank| rank.adopted == Some(1));
    until(router, adopted).await;
    group
}

#[tokio::test]
async fn a_group_forms_when_all_are_there_and_linked() {
    let router = Router::start_with(limits(), still()).await;
    assert!(view(&router).is_none());
    let first = Rank::attach(&[&router.address], group_rank(0, 2, 3, 100)).await;
    let waiting = until(&router, |view| view.ranks.len() == 1).await;
    assert_eq!((waiting.state, waiting.epoch), (GroupState::Forming, None));
    let mut second = Rank::attach(&[&router.address], group_rank(1, 2, 3, 101)).await;
    let epoch = second.until_epoch(1).await;
    assert_eq!(epoch.members.len(), 2);
    assert_eq!(epoch.members[1].grpc, "127.0.0.1:1001");
    let told = second.told.borrow().clone();
    assert!(told.store.starts_with("memory-"), "{}", told.store);
    assert_eq!(told.peers.len(), 2);

    let view = until(&router, |view| view.state == GroupState::Whole).await;
    assert_eq!(view.placement.len(), 2);
    assert_eq!(
        view.placement[0].iter().map(Vec::len).collect::<Vec<_>>(),
        [3, 3]
    );
    assert_eq!(view.replicas.iter().sum::<u64>(), 8);
    assert_eq!(view.replicas[1], 4, "two a layer are there twice");
    assert_eq!(view.history[0].kind, EventKind::Committed);
    assert_eq!(router.metric("millrace_experts_epoch", r#"group="g""#), 1.0);
    assert_eq!(router.metric("millrace_experts_members", ""), 2.0);
    assert_eq!(
        router.metric("millrace_experts_state", r#"state="whole""#),
        1.0
    );
    router
        .until("millrace_experts_commits_total", "form", 1.0)
        .await;
    assert_eq!(router.metric("millrace_experts_leader", ""), 1.0);
    assert_eq!(router.metric("millrace_experts_store_up", ""), 1.0);
    drop((first, second));
    while self::view(&router).is_some() {
        tokio::time::sleep(2 * MILLISECOND).await;
    }
    assert_eq!(
        router.metric("millrace_experts_epoch", ""),
        0.0,
        "no series is left"
    );
}

#[tokio::test]
async fn a_rank_of_another_shape_is_refused_by_name() {
    let router = Router::start_with(limits(), still()).await;
    let _group = group(&router, 2, 3).await;
    let own = runtime();
    type Change = fn(&mut proto::GroupRank);
    let cases: [(Change, &str); 9] = [
        (
            |r| r.layers = 3,
            "group.layers: the worker has 3, expected 2",
        ),
        (
            |r| r.experts = 5,
            "group.experts: the worker has 5, expected 4",
        ),
        (|r| r.ranks = 3, "group.ranks: the worker has 3, expected 2"),
        (|r| r.slots = 4, "group.slots: the worker has 4, expected 3"),
        (
            |r| r.expert_bytes = 1,
            "group.expert_bytes: the worker has 1, expected 1000",
        ),
        (
            |r| r.rank = 2,
            "group.rank: the worker has 2, expected less than its 2 ranks",
        ),
        (|r| r.incarnation = 0, "group.incarnation is missing"),
        (
            |r| r.exchange_address.clear(),
            "group.exchange_address is missing",
        ),
        (
            |r| r.slots = 1,
            "group: 4 experts do not fit 2 ranks of 1 slots",
        ),
    ];
    for (change, reason) in cases {
        let mut rank = group_rank(1, 2, 3, 200);
        change(&mut rank);
        let mut hello = hello("other", proto::Role::Decode, "127.0.0.1:9");
        hello.group = Some(rank);
        let (_outbox, mut inbox) = dial(&own, &router.address, hello).await;
        let Some(FromRouter::Rejected(rejected)) = inbox.recv().await else {
            panic!("not refused: {reason}")
        };
        assert!(rejected.reason.starts_with(reason), "{}", rejected.reason);
    }
    own.shutdown_background();
}

#[tokio::test]
async fn a_group_that_is_gone_may_come_back_in_another_shape() {
    let router = Router::start_with(limits(), still()).await;
    drop(group(&router, 2, 3).await);
    router.until_workers(0, 0).await;
    let first = Rank::attach(&[&router.address], group_rank(0, 2, 4, 300)).await;
    let mut second = Rank::attach(&[&router.address], group_rank(1, 2, 4, 301)).await;
    let is_new = |told: &common::rank::Told| {
        told.epoch
            .as_ref()
            .is_some_and(|epoch| epoch.placement.shape().slots == 4)
    };
    second.until(is_new).await;
    drop(first);
}

#[tokio::test]
async fn a_hot_expert_gets_replicas_once_all_have_staged_them() {
    let router = Router::start_with(limits(), eager()).await;
    let mut ranks = group(&router, 4, 3).await;
    for rank in &ranks {
        rank.habits.lock().stages_nothing = true;
        rank.counts([0; 8], [0; 2]).await;
    }
    // Expert 1 of both layers is nearly all that is asked for, and lives on three ranks of four: one
    // more than two failure domains take. A window may end before all have told; the fourth alone
    // tells too little to be planned for.
    for rank in &ranks[..3] {
        let chosen = [0, 1000, 0, 10, 0, 1000, 0, 10];
        rank.counts(chosen, [2000; 2]).await;
    }
    ranks[3].counts([0, 10, 0, 0, 0, 10, 0, 0], [0; 2]).await;
    let planned = until(&router, |view| view.plan.is_some()).await;
    let plan = planned.plan.unwrap();
    assert_eq!((plan.base, plan.number), (1, 2));
    assert_eq!(plan.waiting, [0, 1, 2, 3]);
    assert!(plan.moved > 0);
    let load = planned.load.unwrap();
    assert!(
        load.chosen[1][1] >= 1000 && load.chosen[1][0] == 0,
        "{load:?}"
    );
    assert!(
        load.overall <= 0.75 && load.balancedness.len() == 2,
        "{load:?}"
    );
    assert_eq!((load.hottest[0].expert, load.hottest[0].replicas), (1, 3));
    for layer in ["0", "1"] {
        let label = format!(r#"layer="{layer}""#);
        let balancedness = router.metric("millrace_experts_balancedness", &label);
        assert!(balancedness > 0.0 && balancedness <= 1.0, "{balancedness}");
    }
    assert!(router.metric("millrace_experts_balancedness_overall", "") > 0.0);
    assert!(router.metric("millrace_experts_hottest_share", r#"place="1""#) > 0.98);
    router
        .until("millrace_experts_plans_total", "balance", 1.0)
        .await;

    for (number, rank) in ranks.iter().enumerate() {
        let still = view(&router).unwrap();
        assert_eq!(still.epoch.unwrap().number, 1, "{number} have staged");
        rank.habits.lock().stages_nothing = false;
        rank.stage_now().await;
    }
    let epoch = ranks[3].until_epoch(2).await;
    assert_eq!(epoch.reset, 1, "agreed on, not thrust upon anyone");
    assert!(epoch.placement.replicas(0, 1).count() == 4);
    assert_eq!(epoch.expected.experts, 4);
    let committed = until(&router, |view| view.plan.is_none()).await;
    let told = committed.history.iter().find(|event| event.epoch == 2);
    let reason = &told.unwrap().reason;
    assert!(reason.contains("balancedness 0."), "{reason}");
    router
        .until("millrace_experts_commits_total", "balance", 1.0)
        .await;
    assert_eq!(
        router.metric("millrace_experts_moved_total", ""),
        plan.moved as f64
    );
}

#[tokio::test]
async fn a_plan_that_cannot_be_staged_is_given_up() {
    let config = ExpertsConfig {
        stage_deadline: 50 * MILLISECOND,
        ..eager()
    };
    for silent in [true, false] {
        let router = Router::start_with(limits(), config.clone()).await;
        let ranks = group(&router, 4, 3).await;
        if silent {
            ranks[2].habits.lock().stages_nothing = true;
        } else {
            ranks[2].habits.lock().staging_error = "slot 1 has a wrong checksum".into();
        }
        for rank in &ranks {
            rank.counts([0; 8], [0; 2]).await;
            rank.counts([0, 1000, 0, 10, 0, 1000, 0, 10], [10; 2]).await;
        }
        let gave_up =
            |view: &GroupView| view.history.iter().any(|e| e.kind == EventKind::Withdrawn);
        let view = until(&router, gave_up).await;
        assert_eq!(view.epoch.unwrap().number, 1);
        let event = view
            .history
            .iter()
            .find(|e| e.kind == EventKind::Withdrawn)
            .unwrap();
        let why = if silent { "deadline" } else { "wrong checksum" };
        assert!(event.reason.contains(why), "{}", event.reason);
        let label = if silent { "deadline" } else { "staging" };
        while router.metric("millrace_experts_withdrawals_total", label) < 1.0 {
            tokio::time::sleep(2 * MILLISECOND).await;
        }
    }
}

#[tokio::test]
async fn a_rank_dies_and_another_life_of_it_joins() {
    let router = Router::start_with(limits(), still()).await;
    // Every rank has every expert.
    let mut ranks = group(&router, 3, 4).await;
    let dead = ranks.pop().unwrap();
    dead.kill();
    for rank in &ranks {
        rank.habits.lock().cut_from = vec![102];
        rank.report().await;
    }
    let epoch = ranks[0].until_epoch(2).await;
    assert_eq!(
        (epoch.members.len(), epoch.reset),
        (2, 2),
        "thrust upon those who are left"
    );
    let view = until(&router, |view| view.state == GroupState::Degraded).await;
    assert_eq!(view.history.last().unwrap().reason, "rank 2 left out");
    router
        .until("millrace_experts_commits_total", "evict", 1.0)
        .await;
    assert_eq!(router.metric("millrace_experts_members", ""), 2.0);
    assert_eq!(
        view.replicas,
        [0, 8, 0, 0],
        "slots of the dead do not count"
    );

    let mut back = Rank::attach(&[&router.address], group_rank(2, 3, 4, 202)).await;
    let epoch = back.until_epoch(3).await;
    assert_eq!((epoch.members.len(), epoch.reset), (3, 2), "agreed on");
    assert_eq!(epoch.members[2].id.incarnation, 202);
    let view = until(&router, |view| view.state == GroupState::Whole).await;
    let kinds: Vec<_> = view.history.iter().map(|event| event.kind).collect();
    use EventKind::{Committed, Planned};
    assert_eq!(kinds, [Committed, Committed, Planned, Committed]);
    assert_eq!(view.history[3].reason, "rank 2 joined");
}

#[tokio::test]
async fn a_new_stream_of_the_same_life_is_no_loss() {
    let router = Router::start_with(limits(), still()).await;
    let _ranks = group(&router, 2, 4).await;
    let epoch = view(&router).unwrap().epoch.unwrap();
    // Rank 1 dials again before its first stream is known to be dead, then that one ends.
    let own = runtime();
    let mut hello = hello("rank-1-101", proto::Role::Decode, "127.0.0.1:1001");
    hello.group = Some(group_rank(1, 2, 4, 101));
    let (outbox, mut inbox) = dial(&own, &router.address, hello).await;
    assert!(matches!(inbox.recv().await, Some(FromRouter::Admitted(_))));
    let Some(FromRouter::GroupOrder(order)) = inbox.recv().await else {
        panic!("a rank is told at once what was ordered before it came")
    };
    let report = proto::GroupReport {
        adopted: order.epoch.clone(),
        known: 1,
        linked: vec![proto::RankId {
            rank: 0,
            incarnation: 100,
        }],
        ..proto::GroupReport::default()
    };
    outbox
        .send(message(FromWorker::GroupReport(report)))
        .await
        .unwrap();
    until(&router, |view| view.ranks.len() == 2).await;
    drop(_ranks);
    let left = until(&router, |view| view.ranks.len() == 1).await;
    assert_eq!(
        left.ranks[0].member.rank, 1,
        "the newer stream speaks for it"
    );
    assert_eq!(left.epoch.unwrap(), epoch);
    own.shutdown_background();
}

#[tokio::test]
async fn a_router_that_forgot_goes_on_above_what_ranks_know() {
    let first = Router::start_with(limits(), still()).await;
    let mut ranks = group(&first, 2, 4).await;
    let epoch = ranks[0].until_epoch(1).await;
    drop((ranks, first));
    let second = Router::start_with(limits(), still()).await;
    let mut back = Vec::new();
    for rank in 0..2 {
        let me = group_rank(rank, 2, 4, 100 + u64::from(rank));
        back.push(Rank::attach_with(&[&second.address], me, Some(epoch.clone())).await);
    }
    let is_above = |told: &common::rank::Told| told.epoch.as_ref().is_some_and(|e| e.number > 1);
    let epoch = back[0].until(is_above).await.epoch.unwrap();
    assert_eq!(epoch.reset, epoch.number);
    assert_eq!(epoch.members.len(), 2);
}

#[tokio::test]
async fn a_rank_outside_its_epoch_gets_nothing() {
    let router = Router::start_with(limits(), still()).await;
    let worker = Worker::decode(&router, "d0").await;
    while !router.frontend.ready() {
        tokio::task::yield_now().await;
    }
    let delta = |sequence, outside| {
        let load = proto::Load { outside, ..load() };
        message(FromWorker::Delta(proto::Delta {
            sequence,
            load: Some(load),
            ..proto::Delta::default()
        }))
    };
    worker.outbox.send(delta(1, true)).await.unwrap();
    while router.frontend.ready() {
        tokio::task::yield_now().await;
    }
    // Who waits for a worker is woken when the epoch takes it in.
    let stream = tokio::spawn({
        let frontend = router.frontend.clone();
        async move {
            frontend
                .complete(common::request(&[5, 6], 3))
                .await
                .unwrap()
        }
    });
    worker.outbox.send(delta(2, false)).await.unwrap();
    let answers = common::read_all(stream.await.unwrap(), 1).await.unwrap();
    assert_eq!(answers[0].token_ids.len(), 3);
}

#[tokio::test]
async fn what_breaks_the_contract_ends_the_stream() {
    let router = Router::start_with(limits(), still()).await;
    let own = runtime();
    let garbage = FromWorker::GroupReport(proto::GroupReport {
        adopted: b"{".to_vec(),
        ..proto::GroupReport::default()
    });
    let few = FromWorker::ExpertCounts(proto::ExpertCounts {
        chosen: vec![1],
        computed: vec![1],
    });
    let report = FromWorker::GroupReport(proto::GroupReport::default());
    for (in_group, broken) in [(true, garbage), (true, few.clone()), (false, report)] {
        let mut hello = hello("r", proto::Role::Decode, "127.0.0.1:9");
        hello.group = in_group.then(|| group_rank(0, 2, 3, 5));
        let (outbox, mut inbox) = dial(&own, &router.address, hello).await;
        assert!(matches!(inbox.recv().await, Some(FromRouter::Admitted(_))));
        outbox.send(message(broken)).await.unwrap();
        while inbox.recv().await.is_some() {}
        router.until_workers(0, 0).await;
    }
    // A worker on its own counts its experts for nobody, and may.
    let worker = Worker::decode(&router, "d0").await;
    worker.outbox.send(message(few)).await.unwrap();
    worker
        .outbox
        .send(message(FromWorker::Draining(proto::Draining {})))
        .await
        .unwrap();
    router.until_workers(1, 0).await;
    own.shutdown_background();
}
