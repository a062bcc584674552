//! The whole router, as a process runs it, and clients of its HTTP port.

use std::path::Path;
use std::time::{Duration, Instant};

use millrace_router::config::{AccessConfig, ExpertsConfig};
use millrace_router::{BoundAddresses, RouterConfig, ServeError, run};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::limits;

pub fn config() -> RouterConfig {
    let any = "127.0.0.1:0".parse().unwrap();
    RouterConfig {
        http_addr: any,
        grpc_addr: any,
        worker_addr: any,
        model_dir: Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny-r1"),
        served_model_names: Vec::new(),
        max_model_len: None,
        limits: limits(),
        experts: ExpertsConfig::default(),
        drain_timeout: Duration::from_secs(60),
        access: AccessConfig::default(),
    }
}

pub struct Process {
    pub bound: BoundAddresses,
    pub stop: oneshot::Sender<()>,
    pub ended: JoinHandle<Result<(), ServeError>>,
}

pub async fn start(config: RouterConfig) -> Process {
    let (report, bound) = oneshot::channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let on_bound = move |bound| report.send(bound).unwrap();
    let ended = tokio::spawn(run(config, on_bound, async { drop(stopped.await) }));
    Process {
        bound: bound.await.unwrap(),
        stop,
        ended,
    }
}

/// Why a router with this configuration does not start.
pub async fn refused(config: RouterConfig) -> ServeError {
    run(config, |_| (), std::future::pending())
        .await
        .unwrap_err()
}

/// One exchange; `headers` end their lines. The connection is closed after it.
pub async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    head: &str,
    headers: &str,
    body: &str,
) -> String {
    let length = body.len();
    let request = format!(
        "{head} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// [`exchange`] over TCP.
pub async fn http(bound: &BoundAddresses, head: &str, body: &str) -> String {
    let stream = TcpStream::connect(bound.http).await.unwrap();
    exchange(stream, head, "", body).await
}

pub async fn ready(bound: &BoundAddresses) {
    let ready = async || {
        let answer = http(bound, "GET /ready", "").await;
        answer.starts_with("HTTP/1.1 200")
    };
    eventually("the router is ready", ready).await;
}

/// As [`super::until`], for what has to be asked for.
pub async fn eventually(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let given_up = Instant::now() + Duration::from_secs(60);
    while !done().await {
        assert!(Instant::now() < given_up, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
