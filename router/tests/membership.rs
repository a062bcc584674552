//! Joining, reporting and leaving the fleet, over the wire.

mod common;

use common::worker::{Worker, dial, hello, load, message};
use common::{Router, limits, read_all, request};
use millrace_model::blocks::{BlockHash, block_hashes};
use millrace_proto::worker::v1 as proto;
use proto::router_message::Message as FromRouter;
use proto::worker_message::Message as FromWorker;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

#[tokio::test]
async fn a_worker_of_another_revision_is_rejected_by_name() {
    let router = Router::start(limits()).await;
    let mut hello = hello("d0", proto::Role::Decode, "127.0.0.1:9");
    hello.compatibility.as_mut().unwrap().model_revision = "other".into();
    let own = runtime();
    let (_outbox, mut inbox) = dial(&own, &router.address, hello).await;
    let Some(FromRouter::Rejected(proto::Rejected { reason })) = inbox.recv().await else {
        panic!("it was not rejected")
    };
    assert!(
        reason.starts_with("model_revision: the worker has other"),
        "{reason}"
    );
    assert_eq!(inbox.recv().await, None, "the stream ends");
    assert_eq!(
        router.metric("millrace_router_membership_events_total", "rejected"),
        1.0
    );
    own.shutdown_background();
}

#[tokio::test]
async fn an_address_that_cannot_be_called_is_rejected() {
    let router = Router::start(limits()).await;
    let own = runtime();
    let hello = hello("d0", proto::Role::Decode, "nowhere");
    let (_outbox, mut inbox) = dial(&own, &router.address, hello).await;
    let answer = inbox.recv().await;
    assert!(matches!(answer, Some(FromRouter::Rejected(r)) if r.reason.contains("host:port")));
    own.shutdown_background();
}

#[tokio::test]
async fn a_gap_is_answered_with_resync() {
    let router = Router::start(limits()).await;
    let worker = Worker::decode(&router, "d0").await;
    let delta = |sequence| {
        let delta = proto::Delta {
            sequence,
            load: Some(load()),
            ..proto::Delta::default()
        };
        message(FromWorker::Delta(delta))
    };
    worker.outbox.send(delta(1)).await.unwrap();
    worker.outbox.send(delta(3)).await.unwrap();
    let answer = worker.inbox.lock().await.recv().await;
    assert_eq!(answer, Some(FromRouter::Resync(proto::Resync {})));
    let snapshot = proto::Snapshot {
        load: Some(load()),
        blocks: vec![vec![7; 16]],
    };
    worker
        .outbox
        .send(message(FromWorker::Snapshot(snapshot)))
        .await
        .unwrap();
    worker.outbox.send(delta(1)).await.unwrap();
    router
        .until("millrace_router_prefix_index_blocks", "", 1.0)
        .await;
    assert_eq!(
        router.metric("millrace_router_membership_events_total", "resync"),
        1.0
    );
}

#[tokio::test]
async fn a_killed_worker_is_gone_at_once() {
    let router = Router::start(limits()).await;
    let decode = Worker::decode(&router, "d0").await;
    let prefill = Worker::prefill(&router, "p0").await;
    router.until_workers(1, 1).await;
    decode.kill();
    prefill.kill();
    router.until_workers(0, 0).await;
    assert_eq!(
        router.metric("millrace_router_membership_events_total", "detached"),
        2.0
    );
}

#[tokio::test]
async fn a_draining_worker_gets_nothing_new() {
    let router = Router::start(limits()).await;
    let first = Worker::decode(&router, "d0").await;
    while !router.frontend.ready() {
        tokio::task::yield_now().await;
    }
    first
        .outbox
        .send(message(FromWorker::Draining(proto::Draining {})))
        .await
        .unwrap();
    while router.frontend.ready() {
        tokio::task::yield_now().await;
    }
    let second = Worker::decode(&router, "d1").await;
    let stream = router.complete(request(&[5, 6], 3)).await.unwrap();
    read_all(stream, 1).await.unwrap();
    assert_eq!((first.calls().len(), second.calls().len()), (0, 1));
}

#[tokio::test]
async fn a_prompt_goes_where_its_prefix_is() {
    let router = Router::start(limits()).await;
    let plain = Worker::decode(&router, "d0").await;
    let cached = Worker::decode(&router, "d1").await;
    let prompt: Vec<u32> = (0..200).collect();
    let root = BlockHash::root(&common::model().revision, "");
    let stored = block_hashes(root, &prompt)
        .iter()
        .map(|h| h.to_bytes().to_vec())
        .collect();
    let delta = proto::Delta {
        sequence: 1,
        load: Some(load()),
        stored,
        ..proto::Delta::default()
    };
    cached
        .outbox
        .send(message(FromWorker::Delta(delta)))
        .await
        .unwrap();
    router
        .until("millrace_router_prefix_index_blocks", "", 3.0)
        .await;
    let stream = router.complete(request(&prompt, 3)).await.unwrap();
    read_all(stream, 1).await.unwrap();
    assert_eq!((plain.calls().len(), cached.calls().len()), (0, 1));
    let mut salted = request(&prompt, 3);
    salted.options.cache_salt = "tenant".into();
    read_all(router.complete(salted).await.unwrap(), 1)
        .await
        .unwrap();
    assert_eq!(plain.calls().len(), 1, "a salted prompt shares nothing");
    assert_eq!(
        router.metric("millrace_router_pairing_overlap_tokens_total", "decode"),
        192.0
    );
}
