//! Workers fail; clients do not notice.

mod common;

use std::time::Duration;

use common::worker::{Fault, Worker, prefill_failed};
use common::{Router, expected, limits, read_all, read_tokens, request};
use millrace_router::api::{FinishReason, RequestError};
use millrace_router::config::{Limits, RetryLimits};
use tonic::Status;

const PROMPT: [u32; 5] = [11, 12, 13, 14, 15];

#[tokio::test]
async fn an_answer_comes_through() {
    let router = Router::start(limits()).await;
    let worker = Worker::decode(&router, "d0").await;
    let stream = router.complete(request(&PROMPT, 20)).await.unwrap();
    let answer = read_all(stream, 1).await.unwrap().remove(0);
    assert_eq!(answer.token_ids, expected(&PROMPT, 7, 20));
    assert_eq!(
        answer.text,
        common::model().tokenizer.decode(&answer.token_ids, true)
    );
    let finish = answer.finish.unwrap();
    assert_eq!(finish.reason, FinishReason::Length);
    let usage = finish.usage;
    assert_eq!(
        (
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.cached_tokens
        ),
        (5, 20, 3)
    );
    worker.until_idle().await;
    assert_eq!(router.metric("millrace_num_requests_running", ""), 0.0);
    assert_eq!(router.metric("millrace_generation_tokens_total", ""), 20.0);
    assert_eq!(
        router.metric("millrace_request_success_total", "length"),
        1.0
    );
    assert_eq!(router.metric("millrace_router_replays_total", ""), 0.0);
}

#[tokio::test]
async fn a_killed_decode_worker_leaves_no_seam() {
    let router = Router::start(limits()).await;
    let first = Worker::decode_with(&router, "d0", 4).await;
    router.until_workers(1, 0).await;
    let mut stream = router.complete(request(&PROMPT, 12)).await.unwrap();
    let mut answer = read_tokens(&mut stream, 4).await;
    let second = Worker::decode(&router, "d1").await;
    first.kill();
    for event in read_all(stream, 1).await.unwrap() {
        answer.text.push_str(&event.text);
        answer.token_ids.extend(event.token_ids);
        answer.finish = event.finish;
    }
    assert_eq!(answer.token_ids, expected(&PROMPT, 7, 12));
    assert_eq!(
        answer.text,
        common::model().tokenizer.decode(&answer.token_ids, true)
    );
    assert_eq!(answer.finish.unwrap().usage.completion_tokens, 12);
    let call = &second.calls()[0];
    assert_eq!(call.output_token_ids, expected(&PROMPT, 7, 4));
    assert_eq!(call.sampling.as_ref().unwrap().seed, 7);
    assert_eq!(
        router.metric("millrace_router_replays_total", "decode_unavailable"),
        1.0
    );
    router.until_workers(1, 0).await;
}

#[tokio::test]
async fn the_only_decode_worker_is_waited_for() {
    let router = Router::start(limits()).await;
    let first = Worker::decode_with(&router, "d0", 3).await;
    let mut stream = router.complete(request(&PROMPT, 9)).await.unwrap();
    let mut answer = read_tokens(&mut stream, 3).await;
    first.kill();
    router.until_workers(0, 0).await;
    let rest = tokio::spawn(read_all(stream, 1));
    // Started again by its supervisor, under a new id or the same.
    let _again = Worker::decode(&router, "d0").await;
    let rest = rest.await.unwrap().unwrap().remove(0);
    answer.token_ids.extend(rest.token_ids);
    assert_eq!(answer.token_ids, expected(&PROMPT, 7, 9));
}

#[tokio::test]
async fn a_stream_that_ends_or_fails_midway_is_replayed() {
    let router = Router::start(limits()).await;
    let worker = Worker::decode(&router, "d0").await;
    worker.fault(Fault::EndAfter(2));
    worker.fault(Fault::StatusAfter(3, Status::internal("a bug")));
    worker.fault(Fault::StatusAfter(1, Status::cancelled("shutting down")));
    let stream = router.complete(request(&PROMPT, 10)).await.unwrap();
    let answer = read_all(stream, 1).await.unwrap().remove(0);
    assert_eq!(answer.token_ids, expected(&PROMPT, 7, 10));
    let replayed: Vec<usize> = worker
        .calls()
        .iter()
        .map(|c| c.output_token_ids.len())
        .collect();
    assert_eq!(replayed, [0, 2, 5, 6]);
    let ids: Vec<String> = worker.calls().into_iter().map(|c| c.request_id).collect();
    assert!(
        ids[1..]
            .iter()
            .all(|id| id.starts_with(&ids[0]) && *id != ids[0]),
        "{ids:?}"
    );
    for reason in ["decode_truncated", "decode_error", "decode_unavailable"] {
        assert_eq!(
            router.metric("millrace_router_replays_total", reason),
            1.0,
            "{reason}"
        );
    }
}

#[tokio::test]
async fn a_worker_that_dies_between_its_last_token_and_its_reason_is_not_asked_again() {
    let router = Router::start(limits()).await;
    let worker = Worker::decode(&router, "d0").await;
    worker.fault(Fault::NoReason);
    let stream = router.complete(request(&PROMPT, 4)).await.unwrap();
    let answer = read_all(stream, 1).await.unwrap().remove(0);
    assert_eq!(answer.token_ids, expected(&PROMPT, 7, 4));
    assert_eq!(answer.finish.unwrap().reason, FinishReason::Length);
    assert_eq!(worker.calls().len(), 1);
}

#[tokio::test]
async fn prefill_failures_move_on_to_the_next_and_then_to_decode_itself() {
    let router = Router::start(limits()).await;
    let decode = Worker::decode(&router, "d0").await;
    let _p0 = Worker::prefill(&router, "p0").await;
    let _p1 = Worker::prefill(&router, "p1").await;
    router.until_available(1, 2).await;
    let target = |call: usize| decode.calls()[call].prefill.clone().map(|p| p.worker_id);
    decode.fault(Fault::Status(prefill_failed("p0")));
    decode.fault(Fault::Status(prefill_failed("p1")));
    let stream = router.complete(request(&PROMPT, 5)).await.unwrap();
    let answer = read_all(stream, 1).await.unwrap().remove(0);
    assert_eq!(answer.token_ids, expected(&PROMPT, 7, 5));
    let mut tried = vec![target(0).unwrap(), target(1).unwrap()];
    tried.sort();
    assert_eq!(tried, ["p0", "p1"]);
    assert_eq!(target(2), None);
    assert_eq!(
        router.metric("millrace_router_prefill_retries_total", ""),
        2.0
    );
    assert_eq!(router.metric("millrace_router_replays_total", ""), 0.0);
    assert_eq!(
        router.metric("millrace_router_pairings_total", "split"),
        2.0
    );
    assert_eq!(
        router.metric("millrace_router_pairings_total", "aggregated"),
        1.0
    );
}

#[tokio::test]
async fn a_requests_own_fault_is_not_retried() {
    let router = Router::start(limits()).await;
    let worker = Worker::decode(&router, "d0").await;
    worker.fault(Fault::Status(Status::invalid_argument("no")));
    let stream = router.complete(request(&PROMPT, 5)).await.unwrap();
    let error = read_all(stream, 1).await.unwrap_err();
    assert!(matches!(error, RequestError::Invalid { message, .. } if message == "no"));
    assert_eq!(worker.calls().len(), 1);
    assert_eq!(
        router.metric("millrace_request_failures_total", "invalid"),
        1.0
    );
}

#[tokio::test]
async fn a_request_that_kills_every_worker_is_given_up() {
    let retry = RetryLimits {
        max_fruitless_attempts: 3,
        ..limits().retry
    };
    let router = Router::start(Limits { retry, ..limits() }).await;
    let workers = [
        Worker::decode(&router, "d0").await,
        Worker::decode(&router, "d1").await,
    ];
    let calls = || workers.iter().map(|w| w.calls().len()).sum::<usize>();
    for worker in &workers {
        for _ in 0..3 {
            worker.fault(Fault::Status(Status::internal("out of range")));
        }
    }
    let stream = router.complete(request(&PROMPT, 5)).await.unwrap();
    let error = read_all(stream, 1).await.unwrap_err();
    assert!(
        matches!(&error, RequestError::Unavailable { message } if message.contains("out of range")),
        "{error}"
    );
    assert_eq!(calls(), 3);
    assert!(
        workers.iter().all(|w| !w.calls().is_empty()),
        "the other one is tried first"
    );
}

#[tokio::test]
async fn without_workers_a_request_waits_and_then_says_so() {
    let retry = RetryLimits {
        worker_wait: Duration::from_millis(20),
        ..limits().retry
    };
    let router = Router::start(Limits { retry, ..limits() }).await;
    let stream = router.complete(request(&PROMPT, 5)).await.unwrap();
    let error = read_all(stream, 1).await.unwrap_err();
    assert!(matches!(error, RequestError::Unavailable { .. }));
    assert!(!router.frontend.ready());
}
