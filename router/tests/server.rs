//! The whole process: three ports, both dialects, and an orderly stop.

mod common;

use std::time::Duration;

use common::expected;
use common::process::{config, http, ready, refused, start};
use common::worker::Worker;
use millrace_proto::inference::v1::inference_client::InferenceClient;
use millrace_proto::inference::v1::{GenerateRequest, SamplingParams, TokenIds, generate_request};
use millrace_router::ServeError;
use tokio::net::TcpStream;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_dialects_answer_and_a_stop_waits_for_running_requests() {
    let process = start(config()).await;
    assert!(
        http(&process.bound, "GET /ready", "")
            .await
            .starts_with("HTTP/1.1 503")
    );
    let worker = Worker::decode(&process.bound.worker.to_string(), "d0").await;
    ready(&process.bound).await;

    let body = r#"{"model":"tiny-r1","prompt":[11,12,13],"max_tokens":4,"seed":7}"#;
    let answer = http(&process.bound, "POST /v1/completions", body).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let text = common::model()
        .tokenizer
        .decode(&expected(&[11, 12, 13], 7, 4), true);
    let quoted = serde_json::to_string(&text).unwrap();
    assert!(answer.contains(&format!(r#""text":{quoted}"#)), "{answer}");
    let metrics = http(&process.bound, "GET /metrics", "").await;
    let counted = r#"millrace_generation_tokens_total{model_name="tiny-r1"} 4"#;
    assert!(metrics.contains(counted), "{metrics}");

    let uri = format!("http://{}", process.bound.grpc);
    let mut client = InferenceClient::connect(uri).await.unwrap();
    let request = GenerateRequest {
        prompt: Some(generate_request::Prompt::Tokens(TokenIds {
            ids: vec![11, 12, 13],
        })),
        sampling: Some(SamplingParams {
            max_tokens: Some(6),
            seed: Some(7),
            ..SamplingParams::default()
        }),
        ..GenerateRequest::default()
    };
    // From here the worker generates one token a permit.
    worker.tokens.forget_permits(usize::MAX);
    worker.tokens.add_permits(2);
    let mut updates = client.generate(request).await.unwrap().into_inner();
    let mut tokens = updates.message().await.unwrap().unwrap().token_ids;
    process.stop.send(()).unwrap();
    // Told to stop, it takes no connections but goes on with what runs.
    while TcpStream::connect(process.bound.grpc).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    worker.tokens.add_permits(100);
    while let Some(update) = updates.message().await.unwrap() {
        tokens.extend(update.token_ids);
    }
    assert_eq!(tokens, expected(&[11, 12, 13], 7, 6));
    drop(client);
    process.ended.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_port_in_use_and_a_missing_model_are_named() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut wrong = config();
    wrong.grpc_addr = taken.local_addr().unwrap();
    let error = refused(wrong).await.to_string();
    assert!(
        error.contains("gRPC") && error.contains("is another process there"),
        "{error}"
    );
    let mut wrong = config();
    wrong.model_dir = "/nowhere".into();
    let error = refused(wrong).await;
    assert!(matches!(error, ServeError::Model(_)), "{error}");
    let mut wrong = config();
    wrong.max_model_len = Some(5000);
    let error = refused(wrong).await.to_string();
    assert!(error.contains("5000") && error.contains("4096"), "{error}");
}
