//! OpenAI's HTTP API.

use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::{Request, Response, StatusCode, header};
use millrace_router::config::{Limits, RetryLimits};
use millrace_router::edges::http::{HttpOptions, router as http_router};
use millrace_router::experts::view::ExpertsView;
use millrace_router::fleet::Role;
use millrace_router::overview::view::FleetAnswer;
use millrace_telemetry::Registry;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tower::ServiceExt;

use super::common::rank::{Rank, group_rank};
use super::common::worker::Worker;
use super::common::{Router, limits, model, one_at_a_time, read_tokens, request};
use super::{SCRIPT, tokens_of, until_ready, with_script, with_script_up_to};

fn app(router: &Router) -> axum::Router {
    http_router(
        router.frontend.clone(),
        router.groups.clone(),
        router.overview.clone(),
        Registry::new(),
        HttpOptions::default(),
    )
}

fn post(path: &str, body: &Value) -> Request<Body> {
    let request = Request::post(path).header(header::CONTENT_TYPE, "application/json");
    request.body(body.to_string().into()).unwrap()
}

fn get(path: &str) -> Request<Body> {
    Request::get(path).body(Body::empty()).unwrap()
}

async fn send(router: &Router, request: Request<Body>) -> Response<Body> {
    app(router).oneshot(request).await.unwrap()
}

async fn text(response: Response<Body>) -> String {
    let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await;
    String::from_utf8(bytes.unwrap().to_vec()).unwrap()
}

async fn body(response: Response<Body>) -> Value {
    let text = text(response).await;
    serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text:?} is no JSON"))
}

/// The events of a stream, without their framing.
async fn events(response: Response<Body>) -> Vec<String> {
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(
        response.headers()[header::CONTENT_TYPE],
        "text/event-stream; charset=utf-8"
    );
    let text = text(response).await;
    let events = text.trim_end_matches("\n\n").split("\n\n");
    events
        .map(|it| it.strip_prefix("data: ").unwrap().to_owned())
        .collect()
}

fn chat(more: Value) -> Value {
    let mut body =
        json!({"model": "tiny-r1", "messages": [{"role": "user", "content": "What is 12 + 30?"}]});
    let fields = more.as_object().unwrap().clone();
    body.as_object_mut().unwrap().extend(fields);
    body
}

#[tokio::test]
async fn a_chat_in_one_body() {
    let (router, _worker) = with_script().await;
    let asked = chat(json!({"max_tokens": tokens_of("It is easy.\n</think>\n\n42")}));
    let response = send(&router, post("/v1/chat/completions", &asked)).await;
    assert_eq!(response.status(), StatusCode::OK);
    let id = response.headers()["x-request-id"]
        .to_str()
        .unwrap()
        .to_owned();
    let body = body(response).await;
    assert_eq!(
        body["id"],
        format!("chatcmpl-{}", id.strip_prefix("req-").unwrap())
    );
    assert_eq!(body["object"], "chat.completion");
    assert_eq!(body["model"], "tiny-r1");
    let choice = &body["choices"][0];
    assert_eq!(choice["message"]["role"], "assistant");
    assert_eq!(choice["message"]["content"].as_str().unwrap().trim(), "42");
    assert!(
        choice["message"]["reasoning_content"]
            .as_str()
            .unwrap()
            .starts_with("It is easy.")
    );
    assert_eq!(choice["finish_reason"], "length");
    let usage = &body["usage"];
    assert_eq!(usage["completion_tokens"], asked["max_tokens"]);
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 3);
    assert_eq!(
        usage["total_tokens"].as_u64().unwrap(),
        usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap()
    );
}

#[tokio::test]
async fn a_chat_in_chunks() {
    let (router, _worker) = with_script().await;
    let max_tokens = tokens_of("It is easy.\n</think>\n\n42");
    let asked = chat(json!({
        "max_tokens": max_tokens, "stream": true, "stream_options": {"include_usage": true}, "logprobs": true
    }));
    let events = events(send(&router, post("/v1/chat/completions", &asked)).await).await;
    assert_eq!(events.last().unwrap(), "[DONE]");
    let chunks: Vec<Value> = events[..events.len() - 1]
        .iter()
        .map(|it| serde_json::from_str(it).unwrap())
        .collect();
    assert_eq!(
        chunks[0]["choices"][0]["delta"],
        json!({"role": "assistant", "content": ""})
    );
    let joined = |field: &str| -> String {
        let texts = chunks
            .iter()
            .filter_map(|it| it["choices"][0]["delta"][field].as_str());
        texts.collect()
    };
    assert_eq!(joined("content").trim(), "42");
    assert!(joined("reasoning_content").starts_with("It is easy."));
    let scored = chunks
        .iter()
        .filter_map(|it| it["choices"][0]["logprobs"]["content"].as_array());
    assert_eq!(scored.map(Vec::len).sum::<usize>(), max_tokens);
    let reasons: Vec<&Value> = chunks
        .iter()
        .map(|it| &it["choices"][0]["finish_reason"])
        .filter(|it| !it.is_null())
        .collect();
    assert_eq!(reasons, ["length"]);
    let last = chunks.last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], max_tokens);
    assert!(
        chunks[..chunks.len() - 1]
            .iter()
            .all(|it| it.get("usage").is_some_and(Value::is_null))
    );
    assert!(
        chunks
            .iter()
            .all(|it| it["id"] == chunks[0]["id"] && it["object"] == "chat.completion.chunk")
    );
}

#[tokio::test]
async fn completions_of_many_prompts() {
    let (router, _worker) = with_script().await;
    let asked = json!({"prompt": ["one", "two"], "n": 2, "max_tokens": 2, "echo": true, "return_token_ids": true});
    let body = body(send(&router, post("/v1/completions", &asked)).await).await;
    let choices = body["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 4, "{body}");
    for (index, choice) in choices.iter().enumerate() {
        let prompt = if index < 2 { "one" } else { "two" };
        assert_eq!(choice["index"], index);
        assert!(
            choice["text"].as_str().unwrap().starts_with(prompt),
            "{choice}"
        );
        assert_eq!(choice["token_ids"].as_array().unwrap().len(), 2);
    }
    assert_eq!(body["usage"]["completion_tokens"], 8);
    assert!(body["id"].as_str().unwrap().starts_with("cmpl-"));
}

#[tokio::test]
async fn completions_default_to_16_tokens_and_stop_at_strings() {
    let (router, worker) = with_script().await;
    *worker.control.script.lock() = [super::script(), super::script()].concat();
    let count = |body: &Value| body["usage"]["completion_tokens"].as_u64().unwrap();
    let plain =
        body(send(&router, post("/v1/completions", &json!({"prompt": [5, 6]}))).await).await;
    assert_eq!(count(&plain), 16);
    let asked = json!({"prompt": [5, 6], "stop": " easy", "stream": false, "max_tokens": 50});
    let stopped = body(send(&router, post("/v1/completions", &asked)).await).await;
    assert_eq!(stopped["choices"][0]["text"], "It is");
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    assert_eq!(stopped["choices"][0]["stop_reason"], " easy");
}

#[tokio::test]
async fn completions_in_chunks() {
    let (router, _worker) = with_script().await;
    let asked = json!({"prompt": "x", "max_tokens": tokens_of("It is"), "stream": true});
    let events = events(send(&router, post("/v1/completions", &asked)).await).await;
    let chunks: Vec<Value> = events[..events.len() - 1]
        .iter()
        .map(|it| serde_json::from_str(it).unwrap())
        .collect();
    let text: String = chunks
        .iter()
        .map(|it| it["choices"][0]["text"].as_str().unwrap())
        .collect();
    assert_eq!(text, "It is");
    assert_eq!(
        chunks.last().unwrap()["choices"][0]["finish_reason"],
        "length"
    );
    assert!(chunks.iter().all(|it| it.get("usage").is_none()));
}

/// Status, `error.type`, `error.param` and `error.code` of a refused request.
async fn refused(router: &Router, request: Request<Body>) -> (u16, Value, Value, Value) {
    let response = send(router, request).await;
    let status = response.status().as_u16();
    assert!(response.headers().contains_key("x-request-id"));
    assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
    let error = body(response).await["error"].take();
    assert!(!error["message"].as_str().unwrap().is_empty());
    (
        status,
        error["type"].clone(),
        error["param"].clone(),
        error["code"].clone(),
    )
}

#[tokio::test]
async fn errors_have_openais_form() {
    let router = Router::start(limits()).await;
    let invalid = "invalid_request_error";
    let expect = async |request: Request<Body>, status: u16, param: Value, code: Value| {
        let what = format!("{request:?}");
        assert_eq!(
            refused(&router, request).await,
            (status, json!(invalid), param, code),
            "{what}"
        );
    };
    let path = "/v1/chat/completions";
    let raw = |body: &str| {
        let request = Request::post(path).header(header::CONTENT_TYPE, "application/json");
        request.body(body.to_owned().into()).unwrap()
    };
    expect(get("/v1/nothing"), 404, Value::Null, json!("unknown_url")).await;
    expect(get(path), 405, Value::Null, json!("method_not_supported")).await;
    expect(raw("{\"messages\": [}"), 400, Value::Null, Value::Null).await;
    expect(raw("\u{0}\u{1}"), 400, Value::Null, Value::Null).await;
    expect(raw(""), 400, Value::Null, Value::Null).await;
    expect(
        post(path, &chat(json!({"temperature": -1}))),
        400,
        json!("temperature"),
        Value::Null,
    )
    .await;
    expect(
        post(path, &chat(json!({"temperature": "hot"}))),
        400,
        json!("temperature"),
        Value::Null,
    )
    .await;
    expect(
        post(path, &chat(json!({"n": 0}))),
        400,
        json!("n"),
        Value::Null,
    )
    .await;
    expect(
        post(path, &chat(json!({"n": 4_000_000_000_u32}))),
        400,
        json!("n"),
        Value::Null,
    )
    .await;
    expect(
        post(path, &chat(json!({"max_tokens": 0}))),
        400,
        json!("max_tokens"),
        Value::Null,
    )
    .await;
    expect(
        post(path, &chat(json!({"max_tokens": 100_000}))),
        400,
        json!("max_tokens"),
        Value::Null,
    )
    .await;
    expect(
        post(path, &chat(json!({"tools": [{"type": "function"}]}))),
        400,
        json!("tools"),
        json!("unsupported_parameter"),
    )
    .await;
    expect(
        post(path, &chat(json!({"model": "gpt-9"}))),
        404,
        json!("model"),
        json!("model_not_found"),
    )
    .await;
    expect(
        post("/v1/completions", &json!({"prompt": [[]]})),
        400,
        json!("prompt"),
        Value::Null,
    )
    .await;
    expect(
        post("/v1/completions", &json!({"prompt": [1, 999_999]})),
        400,
        json!("prompt"),
        Value::Null,
    )
    .await;
    expect(
        post("/v1/completions", &json!({"prompt": "a", "suffix": "b"})),
        400,
        json!("suffix"),
        json!("unsupported_parameter"),
    )
    .await;
    expect(
        get("/v1/models/gpt-9"),
        404,
        json!("model"),
        json!("model_not_found"),
    )
    .await;
    let plain = Request::post(path)
        .header(header::CONTENT_TYPE, "text/plain")
        .body("{}".into())
        .unwrap();
    expect(plain, 415, Value::Null, json!("unsupported_media_type")).await;
    expect(
        Request::post(path).body("{}".into()).unwrap(),
        415,
        Value::Null,
        json!("unsupported_media_type"),
    )
    .await;
}

#[tokio::test]
async fn bodies_have_a_limit_announced_or_not() {
    let router = Router::start(limits()).await;
    let options = HttpOptions {
        body_limit: 100,
        ..HttpOptions::default()
    };
    let app = http_router(
        router.frontend.clone(),
        router.groups.clone(),
        router.overview.clone(),
        Registry::new(),
        options,
    );
    let announced = post("/tokenize", &json!({"prompt": "x".repeat(200)}));
    let pieces = futures::stream::iter((0..20).map(|_| Ok::<_, std::io::Error>("          ")));
    let unannounced = Request::post("/tokenize").header(header::CONTENT_TYPE, "application/json");
    let unannounced = unannounced.body(Body::from_stream(pieces)).unwrap();
    for request in [announced, unannounced] {
        let response = app.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(body(response).await["error"]["code"], "request_too_large");
    }
    let small = post("/tokenize", &json!({"prompt": "x"}));
    assert_eq!(app.oneshot(small).await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn a_body_that_does_not_come_is_given_up() {
    let router = Router::start(limits()).await;
    let options = HttpOptions {
        body_timeout: Duration::from_millis(20),
        ..HttpOptions::default()
    };
    let app = http_router(
        router.frontend.clone(),
        router.groups.clone(),
        router.overview.clone(),
        Registry::new(),
        options,
    );
    let request = Request::post("/tokenize").header(header::CONTENT_TYPE, "application/json");
    let never = Body::from_stream(futures::stream::pending::<Result<&str, std::io::Error>>());
    let response = app.oneshot(request.body(never).unwrap()).await.unwrap();
    assert_eq!(response.status(), StatusCode::REQUEST_TIMEOUT);
}

#[tokio::test]
async fn no_workers_is_503_and_no_room_429() {
    let retry = RetryLimits {
        worker_wait: Duration::from_millis(1),
        ..limits().retry
    };
    let router = Router::start(Limits { retry, ..limits() }).await;
    let (status, kind, _, code) = refused(
        &router,
        post("/v1/chat/completions", &chat(json!({"stream": true}))),
    )
    .await;
    assert_eq!(
        (status, kind, code),
        (503, json!("server_error"), json!("service_unavailable"))
    );

    let router = Router::start(one_at_a_time(0)).await;
    let _worker = Worker::decode_with(&router, "d0", 1).await;
    let mut running = router.complete(request(&[1, 2], 100)).await.unwrap();
    read_tokens(&mut running, 1).await;
    let response = send(&router, post("/v1/chat/completions", &chat(json!({})))).await;
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    let seconds: u32 = response.headers()[header::RETRY_AFTER]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!(seconds > 0);
    assert_eq!(body(response).await["error"]["code"], "rate_limit_exceeded");
}

#[tokio::test]
async fn a_deadline_that_passes_before_the_first_token_is_504() {
    let limits = Limits {
        request_timeout: Some(Duration::from_millis(50)),
        ..limits()
    };
    let router = Router::start(limits).await;
    let worker = Worker::decode_with(&router, "d0", 0).await;
    let asked = chat(json!({"stream": true}));
    let (status, _, _, code) = refused(&router, post("/v1/chat/completions", &asked)).await;
    assert_eq!((status, code), (504, json!("deadline_exceeded")));
    worker.until_idle().await;
}

#[tokio::test]
async fn an_error_after_the_first_token_is_an_event() {
    let retry = RetryLimits {
        worker_wait: Duration::from_millis(1),
        ..limits().retry
    };
    let router = Router::start(Limits { retry, ..limits() }).await;
    let worker = Worker::decode_with(&router, "d0", 3).await;
    *worker.control.script.lock() = super::script();
    until_ready(&router).await;
    let asked = chat(json!({"stream": true}));
    let response = send(&router, post("/v1/chat/completions", &asked)).await;
    assert_eq!(response.status(), StatusCode::OK);
    worker.kill();
    let events = events(response).await;
    let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "service_unavailable");
    assert!(!events.contains(&"[DONE]".to_owned()));
}

#[tokio::test]
async fn request_ids_are_kept_if_usable() {
    let (router, worker) = with_script().await;
    let id_of = async |offered: &str| {
        let mut request = post("/v1/completions", &json!({"prompt": "a", "max_tokens": 1}));
        request
            .headers_mut()
            .insert("x-request-id", offered.parse().unwrap());
        let response = send(&router, request).await;
        let header = response.headers()["x-request-id"]
            .to_str()
            .unwrap()
            .to_owned();
        (
            header,
            body(response).await["id"].as_str().unwrap().to_owned(),
        )
    };
    assert_eq!(
        id_of("trace-7").await,
        ("trace-7".to_owned(), "cmpl-trace-7".to_owned())
    );
    assert_eq!(worker.calls()[0].request_id, "trace-7");
    let (header, id) = id_of("not usable").await;
    assert_eq!(format!("cmpl-{}", header.strip_prefix("req-").unwrap()), id);
}

#[tokio::test]
async fn models_health_and_the_rest() {
    let router = Router::start(limits()).await;
    assert_eq!(send(&router, get("/health")).await.status(), StatusCode::OK);
    let response = send(&router, get("/ready")).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(body(response).await, json!({"ready": false, "models": []}));
    let _worker = Worker::decode(&router, "d0").await;
    until_ready(&router).await;
    let response = send(&router, get("/ready")).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(
        body(response).await,
        json!({"ready": true, "models": ["tiny-r1"]})
    );
    let list = body(send(&router, get("/v1/models")).await).await;
    assert_eq!(list["object"], "list");
    let card = &list["data"][0];
    let created = model().created;
    let expected = json!({"id": "tiny-r1", "object": "model", "created": created, "owned_by": "millrace", "max_model_len": 4096});
    assert_eq!(card, &expected);
    assert_eq!(
        &body(send(&router, get("/v1/models/tiny-r1")).await).await,
        card
    );
    let version = body(send(&router, get("/version")).await).await;
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));

    let registry = Registry::new();
    let counter = prometheus::IntCounter::new("seen_total", "Seen.").unwrap();
    registry.register(Box::new(counter)).unwrap();
    let app = http_router(
        router.frontend.clone(),
        router.groups.clone(),
        router.overview.clone(),
        registry,
        HttpOptions::default(),
    );
    let response = app.oneshot(get("/metrics")).await.unwrap();
    assert_eq!(
        response.headers()[header::CONTENT_TYPE],
        prometheus::TEXT_FORMAT
    );
    assert!(text(response).await.contains("seen_total 0"));
}

#[tokio::test]
async fn tokens_there_and_back() {
    let router = Router::start(limits()).await;
    let tokenize = async |asked: Value| body(send(&router, post("/tokenize", &asked)).await).await;
    let plain = tokenize(json!({"prompt": SCRIPT, "add_special_tokens": false})).await;
    assert_eq!(plain["count"], plain["tokens"].as_array().unwrap().len());
    assert_eq!(plain["max_model_len"], 4096);
    let back = json!({"model": "tiny-r1", "tokens": plain["tokens"]});
    assert_eq!(
        body(send(&router, post("/detokenize", &back)).await).await,
        json!({"prompt": SCRIPT})
    );
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let open = tokenize(json!({"messages": messages})).await;
    let closed = tokenize(json!({"messages": messages, "add_generation_prompt": false})).await;
    assert!(open["count"].as_u64() > closed["count"].as_u64());
    let asked = post("/detokenize", &json!({"tokens": [999_999]}));
    assert_eq!(send(&router, asked).await.status(), StatusCode::BAD_REQUEST);
}

/// Serves over a socket, so that a client can hang up.
async fn listen(router: &Router) -> (std::net::SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = app(router);
    (
        address,
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() }),
    )
}

async fn ask(address: std::net::SocketAddr, body: &Value) -> TcpStream {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let body = body.to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all((head + &body).as_bytes()).await.unwrap();
    socket
}

#[tokio::test]
async fn a_client_that_hangs_up_cancels_its_request() {
    // In mid-stream, before the first token, and while waiting for a whole body.
    for (tokens, stream) in [(3, true), (0, true), (3, false)] {
        let (router, worker) = with_script_up_to(tokens).await;
        let (address, server) = listen(&router).await;
        let mut socket = ask(address, &chat(json!({"stream": stream}))).await;
        while worker.calls().is_empty() || worker.tokens.available_permits() > 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        if stream && tokens > 0 {
            let mut piece = [0; 64];
            assert!(socket.read(&mut piece).await.unwrap() > 0);
            assert!(piece.starts_with(b"HTTP/1.1 200"));
        }
        drop(socket);
        worker.until_idle().await;
        assert_eq!(worker.control.cancelled.load(Ordering::SeqCst), 1);
        server.abort();
    }
}

#[tokio::test]
async fn groups_of_experts_are_shown() {
    let router = Router::start(limits()).await;
    let shown = async || {
        let request = Request::get("/experts").body(Body::empty()).unwrap();
        let response = app(&router).oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        serde_json::from_slice::<ExpertsView>(&body).unwrap()
    };
    let empty = shown().await;
    assert_eq!(empty.groups, []);
    assert!(empty.store.up && empty.store.leading);
    let mut rank = Rank::attach(&[&router.address], group_rank(0, 1, 4, 9)).await;
    rank.until_epoch(1).await;
    let group = shown().await.groups.pop().unwrap();
    assert_eq!(group.group, "g");
    assert_eq!(group.ranks[0].member.incarnation, "0000000000000009");
    assert_eq!(group.placement, vec![vec![vec![0, 1, 2, 3]]; 2]);
    assert_eq!(group.replicas, [8, 0, 0, 0]);
}

#[tokio::test]
async fn the_fleet_is_shown_with_its_traffic() {
    let router = Router::start(limits()).await;
    let _worker = Worker::decode_with(&router, "d0", 100).await;
    router.until_available(1, 0).await;
    let body = json!({"prompt": [1, 2, 3], "max_tokens": 4, "temperature": 0});
    let answered = send(&router, post("/v1/completions", &body)).await;
    assert_eq!(answered.status(), StatusCode::OK);
    let shown = text(send(&router, get("/fleet")).await).await;
    let shown: FleetAnswer = serde_json::from_str(&shown).unwrap();
    let [worker] = &shown.fleet.workers[..] else {
        panic!("{shown:?}")
    };
    assert_eq!(
        (worker.worker_id.as_str(), worker.role),
        ("d0", Role::Decode)
    );
    assert_eq!(worker.unavailable, None);
    assert_eq!(shown.fleet.model, "tiny-r1");
    let sums = &shown.traffic.sums;
    assert_eq!((sums.arrived, sums.prompt_tokens), (1, 3));
    assert_eq!(sums.first_token_seconds.counts.iter().sum::<u64>(), 1);
}
