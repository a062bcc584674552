//! Several revisions of a deployment at one router: rolled out, reverted, and never mixed.

mod common;

use std::time::Duration;

use common::fleet::{Watch, reason};
use common::worker::{Worker, dial, hello, load, of, runtime};
use common::{Router, expected, limits, read_all, read_tokens, request};
use millrace_model::blocks::{BlockHash, block_hashes};
use millrace_proto::worker::v1 as proto;
use proto::router_message::Message as FromRouter;
use proto::worker_message::Message as FromWorker;

const PROMPT: [u32; 5] = [11, 12, 13, 14, 15];
const ALL: usize = tokio::sync::Semaphore::MAX_PERMITS;

async fn ask(router: &Router, times: usize) {
    for _ in 0..times {
        let stream = router.complete(request(&PROMPT, 3)).await.unwrap();
        let answer = read_all(stream, 1).await.unwrap().remove(0);
        assert_eq!(answer.token_ids, expected(&PROMPT, 7, 3));
    }
}

/// How many calls came since the last look, each with the prefill worker that must come with it.
fn calls(worker: &Worker, prefill: Option<&str>) -> usize {
    let calls = std::mem::take(&mut *worker.control.calls.lock());
    for call in &calls {
        let given = call
            .prefill
            .as_ref()
            .map(|target| target.worker_id.as_str());
        assert_eq!(given, prefill);
    }
    calls.len()
}

#[tokio::test]
async fn a_rollout_goes_forth_and_back_and_pairs_are_of_one_revision() {
    let router = Router::start(limits()).await;
    let mut watch = Watch::open(&router).await;
    let old = Worker::decode_as(&router, "old-d", ALL, of("old", "m1")).await;
    let _old_prefill = Worker::prefill_as(&router, "old-p", of("old", "m1")).await;
    watch.until_available(&["old-d", "old-p"]).await;

    // Half of the new revision is up: it waits for the other half.
    let new = Worker::decode_as(&router, "new-d", ALL, of("new", "m2")).await;
    let view = watch.until(|view| view.workers.len() == 3).await;
    let expected = "no prefill worker of its revision is attached, and another revision has both";
    let view = match reason(&view, "new-d") {
        "no snapshot yet" => watch.until(|view| reason(view, "new-d") == expected).await,
        _ => view,
    };
    assert_eq!(reason(&view, "new-d"), expected);
    ask(&router, 4).await;
    assert_eq!((calls(&old, Some("old-p")), calls(&new, None)), (4, 0));

    let new_prefill = Worker::prefill_as(&router, "new-p", of("new", "m2")).await;
    let all = ["new-d", "new-p", "old-d", "old-p"];
    watch.until_available(&all).await;
    ask(&router, 8).await;
    let (by_old, by_new) = (calls(&old, Some("old-p")), calls(&new, Some("new-p")));
    assert!(by_old > 0 && by_new > 0, "{by_old} and {by_new}");

    // It is reverted: what is new goes, and the old one never left.
    new_prefill.drain().await;
    let view = watch.until_available(&["old-d", "old-p"]).await;
    assert_eq!(reason(&view, "new-p"), "draining");
    assert!(reason(&view, "new-d").starts_with("no prefill worker of its revision is available"));
    ask(&router, 4).await;
    assert_eq!((calls(&old, Some("old-p")), calls(&new, None)), (4, 0));
    new.kill();
    new_prefill.kill();
    let view = watch.until(|view| view.workers.len() == 2).await;
    assert!(
        view.workers
            .iter()
            .all(|w| w.revision == "old" && w.available)
    );
    assert!(router.frontend.ready());
}

#[tokio::test]
async fn a_revision_without_prefill_workers_takes_its_share_if_it_says_so() {
    let router = Router::start(limits()).await;
    let mut watch = Watch::open(&router).await;
    let old = Worker::decode_as(&router, "old-d", ALL, of("old", "m1")).await;
    let _old_prefill = Worker::prefill_as(&router, "old-p", of("old", "m1")).await;
    let new = Worker::decode_as(&router, "new-d", ALL, |hello| {
        of("new", "m1")(hello);
        hello.aggregated = true;
    })
    .await;
    watch.until_available(&["new-d", "old-d", "old-p"]).await;
    ask(&router, 8).await;
    assert!(calls(&new, None) > 0);
    old.drain().await;
    let view = watch.until_available(&["new-d"]).await;
    assert_eq!(
        reason(&view, "old-p"),
        "no decode worker of its revision is available"
    );
}

#[tokio::test]
async fn a_workers_difference_has_a_name_and_is_shown_until_it_comes_in() {
    let router = Router::start(limits()).await;
    let mut watch = Watch::open(&router).await;
    let _first = Worker::decode_as(&router, "d0", ALL, of("r", "m1")).await;
    let own = runtime();
    let refused = async |change: fn(&mut proto::Hello)| {
        let mut hello = hello("d1", proto::Role::Decode, "127.0.0.1:9");
        of("r", "m1")(&mut hello);
        change(&mut hello);
        let (_outbox, mut inbox) = dial(&own, &router.address, hello).await;
        match inbox.recv().await {
            Some(FromRouter::Rejected(proto::Rejected { reason })) => reason,
            other => panic!("it was not refused: {other:?}"),
        }
    };
    let text = refused(|hello| hello.model.as_mut().unwrap().text_revision = "t2".into()).await;
    let own_text = &common::model().text_revision;
    assert_eq!(
        text,
        format!(
            "text_revision: the worker has t2, expected {own_text}: its tokenizer, chat template or \
             end tokens are not this router's; start a router with the worker's model"
        )
    );
    let kv = refused(|hello| hello.compatibility.as_mut().unwrap().kv_dtype = "f32".into()).await;
    assert_eq!(
        kv,
        "kv_dtype: the worker has f32, expected bf16, as other workers of revision r have; give those \
         that differ a revision of their own"
    );
    let without = refused(|hello| hello.revision.clear()).await;
    assert!(
        without.starts_with("model_revision: the worker has m1"),
        "{without}"
    );

    let view = watch
        .until(|view| view.refused.iter().any(|worker| worker.reason == without))
        .await;
    let worker = &view.refused[0];
    assert_eq!(
        (worker.worker_id.as_str(), worker.role()),
        ("d1", proto::Role::Decode)
    );
    assert_eq!(view.refused.len(), 1, "each worker once");
    let _second = Worker::decode_as(&router, "d1", ALL, of("r", "m1")).await;
    watch.until(|view| view.refused.is_empty()).await;
    own.shutdown_background();
}

#[tokio::test]
async fn prefixes_are_found_under_each_model() {
    let router = Router::start(limits()).await;
    let prompt: Vec<u32> = (0..200).collect();
    let other: Vec<u32> = (300..500).collect();
    let mut workers = Vec::new();
    for (id, model, cached) in [("d1", "m1", &prompt), ("d2", "m2", &other)] {
        let worker = Worker::decode_as(&router, id, ALL, of(id, model)).await;
        let blocks = block_hashes(BlockHash::root(model, ""), cached);
        let delta = proto::Delta {
            sequence: 1,
            load: Some(load()),
            stored: blocks.iter().map(|hash| hash.to_bytes().to_vec()).collect(),
            ..proto::Delta::default()
        };
        worker.say(FromWorker::Delta(delta)).await;
        workers.push(worker);
    }
    router
        .until("millrace_router_prefix_index_blocks", "", 6.0)
        .await;
    for (tokens, expect) in [(&prompt, [3, 0]), (&other, [0, 3])] {
        for _ in 0..3 {
            let stream = router.complete(request(tokens, 3)).await.unwrap();
            read_all(stream, 1).await.unwrap();
        }
        let got: Vec<usize> = workers.iter().map(|worker| calls(worker, None)).collect();
        assert_eq!(got, expect);
    }
    assert_eq!(
        router.metric("millrace_router_pairing_overlap_tokens_total", "decode"),
        6.0 * 192.0
    );
}

#[tokio::test]
async fn a_begun_stream_changes_its_model_only_when_nobody_else_is_left() {
    let router = Router::start(limits()).await;
    let changes = || router.metric("millrace_router_model_changes_total", "");
    let first = Worker::decode_as(&router, "d0", 4, of("old", "m1")).await;
    router.until_workers(1, 0).await;
    let mut stream = router.complete(request(&PROMPT, 12)).await.unwrap();
    let mut tokens = read_tokens(&mut stream, 4).await.token_ids;

    // The same weights in another revision, and other ones in a third, which is whole.
    let same = Worker::decode_as(&router, "d1", 4, of("newer", "m1")).await;
    let other = Worker::decode_as(&router, "d2", ALL, of("newest", "m2")).await;
    let _prefill = Worker::prefill_as(&router, "p2", of("newest", "m2")).await;
    router.until_workers(3, 1).await;
    first.kill();
    tokens.extend(read_tokens(&mut stream, 4).await.token_ids);
    assert_eq!((same.calls().len(), other.calls().len()), (1, 0));
    assert_eq!(changes(), 0.0);

    same.kill();
    for answer in read_all(stream, 1).await.unwrap() {
        tokens.extend(answer.token_ids);
    }
    assert_eq!(tokens, expected(&PROMPT, 7, 12));
    assert_eq!(other.calls()[0].output_token_ids, expected(&PROMPT, 7, 8));
    assert_eq!(changes(), 1.0);
}

#[tokio::test]
async fn a_begun_stream_does_not_wait_for_its_model_until_it_fails() {
    let mut limits = limits();
    limits.retry.worker_wait = Duration::from_millis(300);
    let router = Router::start(limits).await;
    let first = Worker::decode_as(&router, "d0", 4, of("old", "m1")).await;
    router.until_workers(1, 0).await;
    let mut stream = router.complete(request(&PROMPT, 12)).await.unwrap();
    let mut tokens = read_tokens(&mut stream, 4).await.token_ids;

    // A rank that its group may take in again, and does not.
    let same = Worker::decode_as(&router, "d1", ALL, of("old", "m1")).await;
    let delta = proto::Delta {
        sequence: 1,
        load: Some(proto::Load {
            outside: true,
            ..load()
        }),
        ..proto::Delta::default()
    };
    same.say(FromWorker::Delta(delta)).await;
    let other = Worker::decode_as(&router, "d2", ALL, of("new", "m2")).await;
    let mut watch = Watch::open(&router).await;
    let view = watch.until_available(&["d0", "d2"]).await;
    assert_eq!(reason(&view, "d1"), "outside its group's epoch");
    first.kill();
    for answer in read_all(stream, 1).await.unwrap() {
        tokens.extend(answer.token_ids);
    }
    assert_eq!(tokens, expected(&PROMPT, 7, 12));
    assert_eq!((same.calls().len(), other.calls().len()), (0, 1));
    assert_eq!(
        router.metric("millrace_router_model_changes_total", ""),
        1.0
    );
}
