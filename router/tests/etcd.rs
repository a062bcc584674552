//! Two routers over one etcd, with the faults that etcd and routers have.
#![cfg(feature = "etcd")]

mod common;

use std::time::Duration;

use common::etcd::Etcd;
use common::rank::{Rank, group_rank};
use common::{Router, limits};
use millrace_router::config::ExpertsConfig;
use millrace_router::experts::view::{GroupState, GroupView};

const PREFIX: &str = "/m";

async fn router(etcd: &Etcd) -> Router {
    let config = ExpertsConfig {
        etcd: vec![etcd.url()],
        etcd_prefix: PREFIX.into(),
        leader_ttl: Duration::from_secs(2),
        balance_interval: None,
        detach_grace: Duration::from_millis(500),
        ..ExpertsConfig::default()
    };
    Router::start_with(limits(), config).await
}

async fn until(router: &Router, what: impl Fn(&GroupView) -> bool) -> GroupView {
    loop {
        match router.groups.view().groups.pop() {
            Some(view) if what(&view) => return view,
            _ => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

fn number(view: &GroupView) -> u64 {
    view.epoch.as_ref().map_or(0, |epoch| epoch.number)
}

async fn until_epoch(router: &Router, epoch: u64) -> GroupView {
    until(router, |view| number(view) == epoch).await
}

/// Each of which has every expert, and has adopted the first epoch.
async fn group(routers: &[&Router], ranks: u32) -> Vec<Rank> {
    let addresses: Vec<&str> = routers
        .iter()
        .map(|router| router.address.as_str())
        .collect();
    let mut group = Vec::new();
    for rank in 0..ranks {
        let me = group_rank(rank, ranks, 4, 100 + u64::from(rank));
        group.push(Rank::attach(&addresses, me).await);
    }
    for rank in &mut group {
        rank.until_epoch(1).await;
    }
    for router in routers {
        let adopted = |view: &GroupView| view.ranks.iter().all(|rank| rank.adopted == Some(1));
        until(router, adopted).await;
    }
    group
}

/// Loses a rank, as the others notice it.
async fn lose(ranks: &mut Vec<Rank>) {
    let dead = ranks.pop().unwrap();
    let incarnation = dead.incarnation;
    dead.kill();
    for rank in ranks {
        rank.habits.lock().cut_from.push(incarnation);
        rank.report().await;
    }
}

async fn until_leads(router: &Router) {
    while !router.groups.view().store.leading {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_other_router_goes_on_when_the_leader_stops() {
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let first = router(&etcd).await;
    until_leads(&first).await;
    let second = router(&etcd).await;
    let mut ranks = group(&[&first, &second], 3).await;
    assert_eq!(until_epoch(&second, 1).await.state, GroupState::Whole);
    assert!(!second.groups.view().store.leading);
    let stores = [&first, &second].map(|router| router.groups.view().store.id);
    assert_eq!(stores[0], stores[1]);
    let told = ranks[0].told.borrow().clone();
    assert_eq!(Some(told.store), stores[0]);

    first.groups.close().await;
    drop(first);
    until_leads(&second).await;
    lose(&mut ranks).await;
    let view = until_epoch(&second, 2).await;
    assert_eq!(view.epoch.unwrap().members.len(), 2);
    second
        .until("millrace_experts_commits_total", "evict", 1.0)
        .await;
    let me = group_rank(2, 3, 4, 202);
    let mut back = Rank::attach(&[&second.address], me).await;
    assert_eq!(back.until_epoch(3).await.members.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_is_followed_when_its_lease_ends() {
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let first = router(&etcd).await;
    until_leads(&first).await;
    let second = router(&etcd).await;
    let mut ranks = group(&[&first, &second], 3).await;
    // Dropped without a word: its lease is left to run out.
    drop(first);
    lose(&mut ranks).await;
    let view = until_epoch(&second, 2).await;
    assert_eq!(view.state, GroupState::Degraded);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_away_changes_wait_and_nothing_else() {
    let Some(mut etcd) = Etcd::start().await else {
        return;
    };
    let router = router(&etcd).await;
    let mut ranks = group(&[&router], 3).await;
    etcd.kill();
    router.until("millrace_experts_store_up", "", 0.0).await;
    // A rank that comes now is told the last epoch.
    lose(&mut ranks).await;
    let me = group_rank(2, 3, 4, 202);
    let mut back = Rank::attach(&[&router.address], me).await;
    assert_eq!(back.until_epoch(1).await.members.len(), 3);
    assert_eq!(router.metric("millrace_experts_leader", ""), 0.0);
    assert_eq!(router.metric("millrace_experts_commits_total", ""), 1.0);
    assert!(etcd.restart().await);
    let epoch = ranks[0]
        .until(|told| told.epochs.contains(&3))
        .await
        .epoch
        .unwrap();
    assert_eq!(epoch.members[2].id.incarnation, 202);
    assert_eq!(
        ranks[0].told.borrow().epochs,
        [1, 2, 3],
        "left out, then joined"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_was_wiped_goes_on_above_what_ranks_know() {
    let Some(mut etcd) = Etcd::start().await else {
        return;
    };
    let router = router(&etcd).await;
    let mut ranks = group(&[&router], 2).await;
    let store = router.groups.view().store.id;
    assert!(etcd.wipe().await);
    let told = ranks[0]
        .until(|told| told.epoch.as_ref().is_some_and(|e| e.number > 1))
        .await;
    assert_ne!(Some(&told.store), store.as_ref());
    assert_eq!(told.epoch.unwrap().members.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_in_etcd_reaches_no_rank() {
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let router = router(&etcd).await;
    let mut ranks = group(&[&router], 3).await;
    let mut client = etcd.client().await;
    let key = format!("{PREFIX}/groups/g/epoch");
    let good = client.get(key.clone(), None).await.unwrap().kvs()[0]
        .value()
        .to_vec();
    let old = String::from_utf8(good.clone())
        .unwrap()
        .replacen("\"number\":1", "\"number\":0", 1);
    let unknown = String::from_utf8(good)
        .unwrap()
        .replacen("\"table\":[0", "\"table\":[9", 1);
    for garbage in ["", "{}", "\u{0}\u{1}", &old, &unknown] {
        client.put(key.clone(), garbage, None).await.unwrap();
        client
            .put(format!("{PREFIX}/groups/g/plan"), garbage, None)
            .await
            .unwrap();
        client
            .put(format!("{PREFIX}/groups//"), garbage, None)
            .await
            .unwrap();
    }
    assert_eq!(until(&router, |_| true).await.epoch.unwrap().number, 1);
    // The next change replaces what is there, and only that is what ranks were told of.
    lose(&mut ranks).await;
    ranks[0].until_epoch(2).await;
    assert_eq!(ranks[0].told.borrow().epochs, [1, 2]);
    let healed = client.get(key, None).await.unwrap().kvs()[0]
        .value()
        .to_vec();
    assert_eq!(
        millrace_experts::Epoch::from_json(&healed).unwrap().number,
        2
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranks_lose_nothing_while_etcd_restarts_again_and_again() {
    let Some(mut etcd) = Etcd::start().await else {
        return;
    };
    let routers = [router(&etcd).await, router(&etcd).await];
    let addresses: Vec<&str> = routers
        .iter()
        .map(|router| router.address.as_str())
        .collect();
    let mut ranks = group(&[&routers[0], &routers[1]], 2).await;
    for life in 0..3u64 {
        etcd.kill();
        lose(&mut ranks).await;
        assert!(etcd.restart().await);
        let me = group_rank(1, 2, 4, 500 + life);
        let mut back = Rank::attach(&addresses, me).await;
        let is_in = |told: &common::rank::Told| {
            let epoch = told.epoch.as_ref();
            epoch.is_some_and(|e| e.members.iter().any(|m| m.id.incarnation == 500 + life))
        };
        back.until(is_in).await;
        ranks[0].until(is_in).await;
        ranks.push(back);
    }
    // One router may be behind the other, and ranks go by the higher number; none goes back.
    for epochs in ranks[0].told.borrow().by_router.values() {
        assert!(epochs.is_sorted(), "{epochs:?}");
    }
}
