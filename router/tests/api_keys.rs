//! API keys in front of both dialects, and names that clients may ask for.

mod common;

use std::time::Duration;

use common::process::{Process, config, eventually, exchange, http, ready, refused, start};
use common::volume::Volume;
use common::worker::Worker;
use millrace_proto::inference::v1::inference_client::InferenceClient;
use millrace_proto::inference::v1::{ListModelsRequest, TokenizeRequest};
use millrace_proto::kserve::ServerLiveRequest;
use millrace_proto::kserve::grpc_inference_service_client::GrpcInferenceServiceClient;
use millrace_router::config::AccessConfig;
use millrace_router::{RouterConfig, ServeError};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;

fn with_keys(volume: &Volume) -> RouterConfig {
    RouterConfig {
        access: AccessConfig {
            api_keys: Some(volume.path().to_owned()),
            reload_interval: Duration::from_millis(20),
            ..AccessConfig::default()
        },
        ..config()
    }
}

/// The head of the answer, and its body.
async fn ask(process: &Process, head: &str, headers: &str, body: &str) -> (String, String) {
    let stream = TcpStream::connect(process.bound.http).await.unwrap();
    let answer = exchange(stream, head, headers, body).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_lowercase(), body.to_owned())
}

fn bearer(key: &str) -> String {
    format!("Authorization: Bearer {key}\r\n")
}

/// Whether a key opens `/v1/models`.
async fn opens(process: &Process, key: &str) -> bool {
    let (head, _) = ask(process, "GET /v1/models", &bearer(key), "").await;
    head.starts_with("http/1.1 200")
}

async fn channel(process: &Process) -> Channel {
    let uri = format!("http://{}", process.bound.grpc);
    Channel::from_shared(uri).unwrap().connect().await.unwrap()
}

fn authorized<T>(message: T, value: &str) -> Request<T> {
    let mut request = Request::new(message);
    let value = value.parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    request
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_asks_for_a_key() {
    let volume = Volume::new(&[
        ("alice", "key-of-alice\n"),
        ("bob", "key-1-of-bob\nkey-2-of-bob\n"),
    ]);
    let process = start(with_keys(&volume)).await;
    let _worker = Worker::decode(&process.bound.worker.to_string(), "d0").await;
    ready(&process.bound).await;

    let completion = r#"{"prompt":[11,12],"max_tokens":2}"#;
    for (head, body) in [
        ("POST /v1/completions", completion),
        ("POST /v1/chat/completions", "{}"),
        ("GET /v1/models", ""),
        ("GET /v1/models/tiny-r1", ""),
        ("POST /tokenize", r#"{"prompt":"x"}"#),
        ("POST /detokenize", r#"{"tokens":[11]}"#),
        ("GET /experts", ""),
        ("GET /version", ""),
        ("GET /nothing", ""),
        ("DELETE /v1/models", ""),
        ("GET /health/../experts", ""),
    ] {
        let (answer, body) = ask(&process, head, "", body).await;
        assert!(answer.starts_with("http/1.1 401"), "{head}: {answer}");
        assert!(
            answer.contains("www-authenticate: bearer realm=\"millrace\"\r\n"),
            "{answer}"
        );
        assert!(answer.contains("x-request-id: "), "{answer}");
        let error: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(error["error"]["type"], "invalid_request_error");
        assert_eq!(error["error"]["code"], Value::Null);
        assert!(
            error["error"]["message"]
                .as_str()
                .unwrap()
                .contains("Bearer")
        );
    }
    for open in ["GET /health", "GET /ready", "GET /metrics"] {
        let (answer, _) = ask(&process, open, "", "").await;
        assert!(answer.starts_with("http/1.1 200"), "{open}: {answer}");
    }
    for key in ["key-of-alice", "key-1-of-bob", "key-2-of-bob"] {
        let (answer, body) = ask(&process, "POST /v1/completions", &bearer(key), completion).await;
        assert!(answer.starts_with("http/1.1 200"), "{answer} {body}");
    }
    for (headers, error) in [
        (bearer("key-of-mallory"), "invalid_token"),
        (bearer("key-of-alic"), "invalid_token"),
        (bearer("key-of-alice2"), "invalid_token"),
        (
            "Authorization: key-of-alice\r\n".to_owned(),
            "invalid_request",
        ),
        (
            "Authorization: Basic key-of-alice\r\n".to_owned(),
            "invalid_request",
        ),
        ("Authorization: Bearer\r\n".to_owned(), "invalid_request"),
    ] {
        let (answer, body) = ask(&process, "POST /v1/completions", &headers, completion).await;
        assert!(answer.starts_with("http/1.1 401"), "{headers}: {answer}");
        assert!(answer.contains(&format!(", error=\"{error}\"")), "{answer}");
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["error"]["code"], "invalid_api_key");
    }
    let metrics = http(&process.bound, "GET /metrics", "").await;
    for (reason, count) in [("missing", 11), ("malformed", 3), ("unknown", 3)] {
        let line = format!(
            r#"millrace_router_unauthorized_total{{edge="http",model_name="tiny-r1",reason="{reason}"}} {count}"#
        );
        assert!(metrics.contains(&line), "{line}\n{metrics}");
    }
}

/// Clients keep connections, and send heads and bodies apart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_body_does_not_spoil_its_connection() {
    let volume = Volume::new(&[("alice", "key-of-alice")]);
    let process = start(with_keys(&volume)).await;
    let mut stream = TcpStream::connect(process.bound.http).await.unwrap();
    for _ in 0..3 {
        let head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(30)).await;
        stream.write_all(b"12345").await.unwrap();
        let mut answer = [0; 4096];
        let read = stream.read(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer[..read]).to_lowercase();
        assert!(answer.starts_with("http/1.1 401"), "{answer}");
        assert!(!answer.contains("connection: close"), "{answer}");
    }
    // One that does not come is not waited for forever, and the client is told.
    let head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n12";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    assert!(answer.contains("connection: close\r\n"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_asks_for_a_key() {
    let volume = Volume::new(&[("alice", "key-of-alice")]);
    let process = start(with_keys(&volume)).await;
    let channel = channel(&process).await;
    let mut client = InferenceClient::new(channel.clone());
    let mut kserve = GrpcInferenceServiceClient::new(channel.clone());

    let reason = |status: Status| {
        assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
        status.get_details_error_info().unwrap().reason
    };
    let missing = client.list_models(ListModelsRequest {}).await.unwrap_err();
    assert_eq!(reason(missing), "API_KEY_MISSING");
    let missing = client
        .tokenize(TokenizeRequest::default())
        .await
        .unwrap_err();
    assert_eq!(reason(missing), "API_KEY_MISSING");
    let missing = kserve.server_live(ServerLiveRequest {}).await.unwrap_err();
    assert_eq!(reason(missing), "API_KEY_MISSING");
    for bad in ["Bearer key-of-bob", "key-of-alice"] {
        let wrong = client
            .list_models(authorized(ListModelsRequest {}, bad))
            .await;
        assert_eq!(reason(wrong.unwrap_err()), "API_KEY_INVALID", "{bad}");
    }
    for good in ["Bearer key-of-alice", "bearer key-of-alice"] {
        client
            .list_models(authorized(ListModelsRequest {}, good))
            .await
            .unwrap();
    }
    let live = kserve
        .server_live(authorized(ServerLiveRequest {}, "Bearer key-of-alice"))
        .await;
    assert!(live.unwrap().into_inner().live);
    // Kubelets and meshes ask without one.
    let mut health = HealthClient::new(channel);
    health.check(HealthCheckRequest::default()).await.unwrap();
    let metrics = http(&process.bound, "GET /metrics", "").await;
    let counted = r#"millrace_router_unauthorized_total{edge="grpc",model_name="tiny-r1",reason="missing"} 3"#;
    assert!(metrics.contains(counted), "{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_rotated_and_never_lost() {
    let mut volume = Volume::new(&[("alice", "old")]);
    let process = start(with_keys(&volume)).await;
    assert!(opens(&process, "old").await && !opens(&process, "new").await);
    // Both for a while, so that no client is cut off, and then the new one alone.
    volume.replace(&[("alice", "old\nnew\n")]);
    eventually("the new one opens", async || opens(&process, "new").await).await;
    assert!(opens(&process, "old").await);
    volume.replace(&[("alice", "new\n")]);
    eventually("the old one is refused", async || {
        !opens(&process, "old").await
    })
    .await;
    assert!(opens(&process, "new").await);

    // What is no set of keys changes nothing.
    let failed = r#"result="error",what="api_keys"} "#;
    let looks = async || {
        let text = http(&process.bound, "GET /metrics", "").await;
        let count = text.lines().find_map(|line| line.split_once(failed));
        count.map_or(0, |(_, count)| count.trim().parse::<u64>().unwrap())
    };
    for bad in ["", "two words\n"] {
        let before = looks().await;
        volume.replace(&[("alice", bad)]);
        eventually("it was looked at", async || looks().await >= before + 2).await;
        assert!(opens(&process, "new").await && !opens(&process, "old").await);
    }
}

#[tokio::test]
async fn a_router_does_not_start_without_the_keys_it_is_told_of() {
    let volume = Volume::new(&[("alice", "\n# nobody yet\n")]);
    let error = refused(with_keys(&volume)).await;
    assert!(matches!(error, ServeError::Keys(_)), "{error}");
    let mut config = with_keys(&volume);
    config.access.api_keys = Some("/nowhere".into());
    let error = refused(config).await.to_string();
    assert!(error.contains("/nowhere"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_served_name_is_accepted_and_answers_carry_the_first() {
    let process = start(RouterConfig {
        served_model_names: vec!["first".into(), "org/second".into()],
        ..config()
    })
    .await;
    let _worker = Worker::decode(&process.bound.worker.to_string(), "d0").await;
    ready(&process.bound).await;
    let get = async |path: &str| -> Value {
        let (_, body) = ask(&process, &format!("GET {path}"), "", "").await;
        serde_json::from_str(&body).unwrap()
    };
    let listed = get("/v1/models").await;
    let ids: Vec<&str> = listed["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| {
            assert_eq!(model["object"], "model");
            model["id"].as_str().unwrap()
        })
        .collect();
    assert_eq!(ids, ["first", "org/second"]);
    assert_eq!(get("/v1/models/org/second").await["id"], "org/second");
    for name in ["first", "org/second"] {
        let body = json!({"model": name, "prompt": [11, 12], "max_tokens": 1}).to_string();
        let (head, body) = ask(&process, "POST /v1/completions", "", &body).await;
        assert!(head.starts_with("http/1.1 200"), "{head} {body}");
        let answer: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(answer["model"], "first");
    }
    let body = json!({"model": "tiny-r1", "prompt": [11]}).to_string();
    let (head, _) = ask(&process, "POST /v1/completions", "", &body).await;
    assert!(head.starts_with("http/1.1 404"), "{head}");

    let channel = channel(&process).await;
    let mut client = InferenceClient::new(channel.clone());
    let models = client.list_models(ListModelsRequest {}).await.unwrap();
    let names: Vec<String> = models
        .into_inner()
        .models
        .into_iter()
        .map(|it| it.id)
        .collect();
    assert_eq!(names, ["first", "org/second"]);
    let mut kserve = GrpcInferenceServiceClient::new(channel);
    for (name, served) in [("first", true), ("org/second", true), ("tiny-r1", false)] {
        let request = millrace_proto::kserve::ModelReadyRequest {
            name: name.into(),
            version: String::new(),
        };
        let ready = kserve
            .model_ready(request)
            .await
            .unwrap()
            .into_inner()
            .ready;
        assert_eq!(ready, served, "{name}");
    }
}
