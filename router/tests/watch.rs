//! What an operator sees of a router.

mod common;

use common::fleet::{Watch, reason};
use common::rank::{Rank, group_rank};
use common::worker::Worker;
use common::{Router, limits, one_at_a_time, read_all, read_tokens, request};
use millrace_proto::worker::v1 as proto;
use millrace_router::config::ExpertsConfig;

#[tokio::test]
async fn the_first_view_comes_at_once_and_others_with_every_change() {
    let router = Router::start(one_at_a_time(8)).await;
    let mut watch = Watch::open(&router).await;
    let empty = without_traffic(watch.next().await);
    let expected = proto::FleetView {
        leading: true,
        served_name: "tiny-r1".into(),
        ..proto::FleetView::default()
    };
    assert_eq!(empty, expected);

    let worker = Worker::decode_with(&router, "d0", 1).await;
    let view = watch.until_available(&["d0"]).await;
    let shown = &view.workers[0];
    assert_eq!(shown.role(), proto::Role::Decode);
    assert!(shown.address.starts_with("127.0.0.1:"));
    assert_eq!(
        (shown.running, shown.waiting, shown.draining),
        (0, 0, false)
    );
    assert_eq!((shown.revision.as_str(), shown.group.as_str()), ("", ""));

    // One runs, the next waits for its turn.
    let mut running = router.complete(request(&[1, 2], 3)).await.unwrap();
    read_tokens(&mut running, 1).await;
    let waiting = router.complete(request(&[1, 2], 3)).await.unwrap();
    watch.until(|view| view.waiting == 1).await;
    worker.tokens.add_permits(100);
    read_all(running, 1).await.unwrap();
    read_all(waiting, 1).await.unwrap();
    watch.until(|view| view.waiting == 0).await;

    worker.drain().await;
    let view = watch.until_available(&[]).await;
    assert!(view.workers[0].draining);
    assert_eq!(reason(&view, "d0"), "draining");
    worker.kill();
    let gone = watch.until(|view| view.workers.is_empty()).await;
    assert_eq!(without_traffic(gone), expected);
    let alive = without_traffic(watch.next().await);
    assert_eq!(alive, expected, "a sign of life");
}

fn without_traffic(mut view: proto::FleetView) -> proto::FleetView {
    view.traffic.take().expect("with every view");
    view
}

#[tokio::test]
async fn traffic_is_summed_up_from_the_arrival_to_the_last_token() {
    let router = Router::start(limits()).await;
    let mut watch = Watch::open(&router).await;
    let before = watch.next().await.traffic.unwrap();
    assert_eq!((before.arrived, before.generated_tokens), (0, 0));

    let worker = Worker::decode_with(&router, "d0", 100).await;
    watch.until_available(&["d0"]).await;
    for _ in 0..3 {
        let stream = router.complete(request(&[1, 2, 3, 4, 5], 4)).await.unwrap();
        read_all(stream, 1).await.unwrap();
    }
    let done = |view: &proto::FleetView| view.traffic.as_ref().unwrap().generated_tokens == 12;
    let view = watch.until(done).await;
    let shown = &view.workers[0];
    assert_eq!((shown.max_running, shown.kv_pages), (64, 1000));
    let now = view.traffic.unwrap();
    assert_eq!(now.incarnation, before.incarnation);
    assert!(now.seconds > before.seconds);
    assert_eq!((now.arrived, now.refused), (3, 0));
    assert_eq!((now.prompt_tokens, now.updates), (15, 12));
    let seen = |distribution: &Option<proto::Distribution>| {
        let told = distribution.as_ref().unwrap();
        assert_eq!(told.counts.len(), told.bounds.len() + 1);
        told.counts.iter().sum::<u64>()
    };
    assert_eq!(seen(&now.queue_seconds), 3);
    assert_eq!(seen(&now.first_token_seconds), 3);
    assert_eq!(seen(&now.inter_token_seconds), 9);
    assert_eq!(seen(&now.generation_length), 3);
    let length = now.prompt_length.unwrap();
    assert_eq!((length.counts[3], length.sum), (3, 15.0), "(4, 8]");
    drop(worker);
}

#[tokio::test]
async fn groups_are_shown_in_a_few_numbers() {
    let still = ExpertsConfig {
        balance_interval: None,
        ..ExpertsConfig::default()
    };
    let router = Router::start_with(limits(), still).await;
    let mut watch = Watch::open(&router).await;
    let _first = Rank::attach(&[&router.address], group_rank(0, 2, 3, 100)).await;
    let view = watch.until(|view| !view.groups.is_empty()).await;
    let forming = proto::FleetGroup {
        group: "g".into(),
        epoch: 0,
        state: "forming".into(),
        ranks: 2,
        members: 0,
        // Of 2 layers of 4 experts in 6 slots.
        redundant_slots: 4,
        balancedness: None,
        staging_plan: 0,
    };
    assert_eq!(view.groups, std::slice::from_ref(&forming));

    let _second = Rank::attach(&[&router.address], group_rank(1, 2, 3, 101)).await;
    let view = watch
        .until(|view| view.groups[0].state == "whole" && view.workers.len() == 2)
        .await;
    let whole = proto::FleetGroup {
        epoch: 1,
        members: 2,
        state: "whole".into(),
        ..forming
    };
    assert_eq!(view.groups, [whole]);
    let places: Vec<(&str, u32)> = view
        .workers
        .iter()
        .map(|worker| (worker.group.as_str(), worker.rank))
        .collect();
    assert_eq!(places, [("g", 0), ("g", 1)]);
}
