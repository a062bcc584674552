//! What `up` prints once it serves: where, and lines to paste.

use std::net::SocketAddr;

use super::{UpArgs, ports::reachable};

/// One that tiny-r1 answers right (5859) and whose prompt is long enough to go through a prefill worker.
const QUESTION: &str = "What is 2718 + 3141?";

/// `names` and `metrics` are all processes' in the same order, the router first.
pub fn print(
    args: &UpArgs,
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
        .write_all(text(args, model, http, grpc, names, metrics).as_bytes());
}

fn text(
    args: &UpArgs,
    model: &str,
    http: SocketAddr,
    grpc: SocketAddr,
    names: &[String],
    metrics: &[SocketAddr],
) -> String {
    let (http, grpc) = (reachable(http), reachable(grpc));
    let decode = workers(args.decode, "decode", args.decode_ranks);
    let split = match args.prefill_workers() {
        0 => format!("{decode}, no prefill (aggregated)"),
        count => format!(
            "{}, {decode}",
            workers(count, "prefill", args.prefill_ranks)
        ),
    };
    // As wide as the column above, unless a rank's name is longer.
    let width = names.iter().map(String::len).max().unwrap_or(0).max(10);
    let metrics: String = names
        .iter()
        .zip(metrics)
        .map(|(name, address)| format!("\n  {name:<width$} http://{address}/metrics"))
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

fn workers(count: usize, role: &str, ranks: usize) -> String {
    match ranks {
        1 => format!("{count} {role}"),
        _ => format!("{count} {role} of {ranks} ranks"),
    }
}
