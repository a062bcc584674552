//! What `up` prints once it serves: where, and lines to paste.

use std::net::SocketAddr;

use super::ports::reachable;

/// One that tiny-r1 answers right (5859) and whose prompt is long enough to go through a prefill worker.
const QUESTION: &str = "What is 2718 + 3141?";

/// `names` and `metrics` are all processes' in the same order, the router first.
pub fn print(
    model: &str,
    http: SocketAddr,
    grpc: SocketAddr,
    names: &[String],
    metrics: &[SocketAddr],
) {
    // A closed standard output is no reason to stop serving.
    use std::io::Write;
    let _ = std::io::stdout()
        .lock()
        .write_all(text(model, http, grpc, names, metrics).as_bytes());
}

fn text(
    model: &str,
    http: SocketAddr,
    grpc: SocketAddr,
    names: &[String],
    metrics: &[SocketAddr],
) -> String {
    let (http, grpc) = (reachable(http), reachable(grpc));
    let count = |role: &str| names.iter().filter(|name| name.starts_with(role)).count();
    let split = match (count("prefill-"), count("decode-")) {
        (0, decode) => format!("{decode} decode, no prefill (aggregated)"),
        (prefill, decode) => format!("{prefill} prefill, {decode} decode"),
    };
    let metrics: String = names
        .iter()
        .zip(metrics)
        .map(|(name, address)| format!("\n  {name:<10} http://{address}/metrics"))
        .collect();
    // As it was called: `millrace`, `./millrace`.
    let program = std::env::args().next().unwrap_or_else(|| "millrace".into());
    // JSON inside single quotes, so that a shell passes it on as it is.
    let chat = serde_json::json!({
        "model": model,
        "temperature": 0,
        "messages": [{ "role": "user", "content": QUESTION }],
    });
    let grpc_chat = serde_json::json!({
        "messages": [{ "role": "user", "content": QUESTION }],
        "sampling": { "temperature": 0 },
    });
    format!(
        "
Millrace serves {model}: {split}

  HTTP       http://{http}/v1 (OpenAI)
  gRPC       {grpc} (millrace.inference.v1, KServe v2, health, reflection)

Metrics{metrics}

Try
  {program} chat --grpc {grpc} --temperature 0 \"{QUESTION}\"
  curl -s http://{http}/v1/chat/completions -H 'content-type: application/json' -d '{chat}'
  grpcurl -plaintext -d '{grpc_chat}' {grpc} millrace.inference.v1.Inference/Chat

Ctrl-C stops it.
"
    )
}
