//! What clients ask for and how they leave: choices, stop strings, cancellation, deadlines, overload.

mod common;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::worker::Worker;
use common::{Router, expected, limits, model, one_at_a_time, read_all, read_tokens, request};
use futures::StreamExt;
use futures::stream::select_all;
use millrace_model::chat::Message;
use millrace_router::api::{
    ChatRequest, CompletionRequest, Prompt, RequestError, SamplingRequest, StopMatch,
    TokenizeInput, TokenizeRequest,
};

const PROMPT: [u32; 3] = [21, 22, 23];

#[tokio::test]
async fn dropping_the_stream_cancels_the_worker() {
    let router = Router::start(limits()).await;
    let worker = Worker::decode_with(&router, "d0", 2).await;
    let mut stream = router.complete(request(&PROMPT, 1000)).await.unwrap();
    read_tokens(&mut stream, 2).await;
    assert_eq!(router.metric("millrace_num_requests_running", ""), 1.0);
    drop(stream);
    worker.until_idle().await;
    assert_eq!(worker.control.cancelled.load(Ordering::SeqCst), 1);
    assert_eq!(router.metric("millrace_num_requests_running", ""), 0.0);
    assert_eq!(
        router.metric("millrace_request_success_total", "abort"),
        1.0
    );
}

#[tokio::test]
async fn a_stop_string_cancels_the_worker() {
    let router = Router::start(limits()).await;
    let script = model()
        .tokenizer
        .encode("one two three four five", false)
        .unwrap();
    // After these it would wait for ever.
    let worker = Worker::decode_with(&router, "d0", script.len()).await;
    *worker.control.script.lock() = script;
    let mut request = request(&PROMPT, 1000);
    request.sampling.stop = vec![" three".into()];
    let stream = router.complete(request).await.unwrap();
    let answer = read_all(stream, 1).await.unwrap().remove(0);
    assert_eq!(answer.text, "one two");
    assert_eq!(
        answer.finish.unwrap().stop,
        Some(StopMatch::Text(" three".into()))
    );
    worker.until_idle().await;
    assert_eq!(worker.control.cancelled.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn choices_draw_with_seeds_of_their_own() {
    let router = Router::start(limits()).await;
    let worker = Worker::decode(&router, "d0").await;
    let mut request = request(&PROMPT, 10);
    request.sampling.n = Some(3);
    request.sampling.prompt_logprobs = Some(1);
    let answers = read_all(router.complete(request).await.unwrap(), 3)
        .await
        .unwrap();
    for (index, answer) in answers.iter().enumerate() {
        assert_eq!(answer.token_ids, expected(&PROMPT, 7 + index as u64, 10));
        assert!(answer.finish.is_some());
    }
    let asked: Vec<Option<u32>> = worker
        .calls()
        .iter()
        .map(|c| c.sampling.as_ref().unwrap().prompt_logprobs)
        .collect();
    assert_eq!(asked, [Some(1), None, None], "the prompt is scored once");
}

#[tokio::test]
async fn the_other_choices_begin_when_the_prompt_is_cached() {
    let router = Router::start(limits()).await;
    let worker = Worker::decode_with(&router, "d0", 0).await;
    let mut request = request(&PROMPT, 2);
    request.sampling.n = Some(4);
    let answers = tokio::spawn(read_all(router.complete(request).await.unwrap(), 4));
    while worker.calls().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(worker.calls().len(), 1);
    worker.tokens.add_permits(100);
    assert_eq!(answers.await.unwrap().unwrap().len(), 4);
    assert_eq!(worker.calls().len(), 4);
    assert_eq!(router.metric("millrace_prompt_tokens_total", ""), 3.0);
}

#[tokio::test]
async fn a_deadline_ends_a_stalled_request_and_cancels_it() {
    let router = Router::start(limits()).await;
    let worker = Worker::decode_with(&router, "d0", 1).await;
    let mut request = request(&PROMPT, 100);
    request.options.deadline = Some(Instant::now() + Duration::from_millis(200));
    let error = read_all(router.complete(request).await.unwrap(), 1)
        .await
        .unwrap_err();
    assert!(matches!(error, RequestError::Deadline { .. }), "{error}");
    worker.until_idle().await;
    assert_eq!(
        router.metric("millrace_request_failures_total", "deadline"),
        1.0
    );
}

#[tokio::test]
async fn what_cannot_wait_is_refused_at_once() {
    let router = Router::start(one_at_a_time(1)).await;
    let worker = Worker::decode_with(&router, "d0", 1).await;
    let mut running = router.complete(request(&PROMPT, 2)).await.unwrap();
    read_tokens(&mut running, 1).await;
    let waiting = router.complete(request(&PROMPT, 2)).await.unwrap();
    let error = router.complete(request(&PROMPT, 2)).await.err().unwrap();
    let RequestError::Overloaded {
        retry_after_seconds,
        ..
    } = error
    else {
        panic!("{error}")
    };
    assert!((1..=60).contains(&retry_after_seconds));
    assert_eq!(router.metric("millrace_num_requests_waiting", ""), 1.0);
    assert_eq!(
        router.metric("millrace_router_admission_rejections_total", "queue_full"),
        1.0
    );
    // A client that leaves the queue makes room in it.
    drop(waiting);
    let waiting = router.complete(request(&PROMPT, 2)).await.unwrap();
    worker.tokens.add_permits(100);
    read_all(running, 1).await.unwrap();
    let answer = read_all(waiting, 1).await.unwrap().remove(0);
    assert_eq!(answer.token_ids, expected(&PROMPT, 7, 2));
}

#[tokio::test]
async fn streams_that_are_polled_together_take_turns() {
    let router = Router::start(one_at_a_time(10)).await;
    let _worker = Worker::decode(&router, "d0").await;
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(router.complete(request(&PROMPT, 5)).await.unwrap());
    }
    let events: Vec<_> = select_all(streams).collect().await;
    let finished = events
        .into_iter()
        .filter(|event| event.as_ref().unwrap().finish.is_some());
    assert_eq!(finished.count(), 4);
}

#[tokio::test]
async fn a_conversation_is_answered_through_the_template() {
    let router = Router::start(limits()).await;
    let worker = Worker::decode(&router, "d0").await;
    let script = model()
        .tokenizer
        .encode("Two and two.\n</think>\n\n4", false)
        .unwrap();
    let count = script.len() as u32;
    *worker.control.script.lock() = script;
    let request = ChatRequest {
        messages: vec![Message::new("user", "What is 2 + 2?")],
        sampling: SamplingRequest {
            max_tokens: Some(count),
            ..SamplingRequest::default()
        },
        ..ChatRequest::default()
    };
    let mut stream = router.frontend.chat(request).await.unwrap();
    let (mut reasoning, mut text) = (String::new(), String::new());
    while let Some(event) = stream.next().await {
        let event = event.unwrap();
        reasoning.push_str(&event.reasoning);
        text.push_str(&event.text);
    }
    assert_eq!((reasoning.as_str(), text.as_str()), ("Two and two.", "4"));
    let prompt = model()
        .tokenizer
        .decode(&worker.calls()[0].prompt_token_ids, false);
    assert_eq!(
        prompt,
        "<｜begin▁of▁sentence｜><｜User｜>What is 2 + 2?<｜Assistant｜><think>\n"
    );
}

#[tokio::test]
async fn a_prompt_can_be_scored_without_generating() {
    let router = Router::start(limits()).await;
    let _worker = Worker::decode(&router, "d0").await;
    let mut request = request(&PROMPT, 0);
    request.echo = true;
    let answer = read_all(router.complete(request).await.unwrap(), 1)
        .await
        .unwrap()
        .remove(0);
    assert_eq!(answer.text, model().tokenizer.decode(&PROMPT, true));
    assert_eq!(
        (
            answer.token_ids.len(),
            answer.finish.unwrap().usage.completion_tokens
        ),
        (0, 0)
    );
}

#[tokio::test]
async fn bad_requests_are_refused_before_any_worker_sees_them() {
    let router = Router::start(limits()).await;
    let invalid = async |request: CompletionRequest| match router.complete(request).await {
        Err(RequestError::Invalid { message, param }) => (param.unwrap_or(""), message),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was accepted"),
    };
    let text = |text: &str| CompletionRequest {
        prompt: Prompt::Text(text.into()),
        ..CompletionRequest::default()
    };
    assert_eq!(invalid(request(&[], 1)).await.0, "prompt");
    assert!(invalid(request(&[1, 2048], 1)).await.1.contains("2048"));
    assert!(invalid(request(&[5; 4096], 1)).await.1.contains("4096"));
    let (_, message) = invalid(text(&"word ".repeat(2_000_000))).await;
    assert!(
        message.contains("4096 tokens") && message.contains("bytes"),
        "{message}"
    );
    let (_, message) = invalid(text(&"word ".repeat(5000))).await;
    assert!(message.contains("the prompt has"), "{message}");
    let unknown = CompletionRequest {
        model: "gpt".into(),
        ..request(&PROMPT, 1)
    };
    let error = router.complete(unknown).await.err().unwrap();
    assert!(matches!(error, RequestError::UnknownModel { .. }));
    let empty = router
        .frontend
        .chat(ChatRequest::default())
        .await
        .err()
        .unwrap();
    assert!(matches!(
        empty,
        RequestError::Invalid {
            param: Some("messages"),
            ..
        }
    ));
    assert_eq!(router.metric("millrace_num_requests_running", ""), 0.0);
}

#[tokio::test]
async fn tokens_and_text_need_no_worker() {
    let router = Router::start(limits()).await;
    let tokenize = |add_special_tokens| {
        router.frontend.tokenize(TokenizeRequest {
            model: String::new(),
            input: TokenizeInput::Text("hello".into()),
            add_special_tokens,
        })
    };
    let with = tokenize(None).await.unwrap();
    let without = tokenize(Some(false)).await.unwrap();
    assert_eq!(with[1..], without, "a text begins with bos by default");
    assert_eq!(
        router.frontend.detokenize("", without).await.unwrap(),
        "hello"
    );
    assert!(router.frontend.detokenize("", vec![9999]).await.is_err());
    assert_eq!(router.frontend.models()[0].name, "tiny-r1");
}
