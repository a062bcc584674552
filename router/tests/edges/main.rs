//! The edges as clients meet them: over sockets, in front of a real router with scripted workers.

#[path = "../common/mod.rs"]
mod common;

mod grpc;
mod http;
mod kserve;

use common::worker::Worker;
use common::{Router, limits, model};
use millrace_router::edges::grpc::{GrpcOptions, routes};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::transport::server::TcpIncoming;

/// What the scripted worker answers: thinking, then an answer, then more than is asked for.
const SCRIPT: &str = "It is easy.\n</think>\n\n42 and so on and so on";

/// A router with one worker that says [`SCRIPT`].
async fn with_script() -> (Router, Worker) {
    with_script_up_to(tokio::sync::Semaphore::MAX_PERMITS).await
}

/// As [`with_script`]; the worker stalls after `tokens`.
async fn with_script_up_to(tokens: usize) -> (Router, Worker) {
    let router = Router::start(limits()).await;
    let worker = Worker::decode_with(&router, "d0", tokens).await;
    *worker.control.script.lock() = script();
    until_ready(&router).await;
    (router, worker)
}

/// A worker that is attached is not yet known to be free: its first report comes after its hello.
async fn until_ready(router: &Router) {
    while !router.frontend.ready() {
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
}

fn script() -> Vec<u32> {
    model().tokenizer.encode(SCRIPT, false).unwrap()
}

/// How many tokens `text`, a start of [`SCRIPT`], has.
fn tokens_of(text: &str) -> usize {
    assert!(SCRIPT.starts_with(text));
    model().tokenizer.encode(text, false).unwrap().len()
}

/// The gRPC port of a router.
struct Grpc {
    channel: Channel,
    server: JoinHandle<()>,
}

impl Drop for Grpc {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Grpc {
    async fn start(router: &Router) -> Grpc {
        Grpc::start_with(router, GrpcOptions::default()).await
    }

    async fn start_with(router: &Router, options: GrpcOptions) -> Grpc {
        let routes = routes(router.frontend.clone(), options).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let incoming = TcpIncoming::from(listener);
            let server = tonic::transport::Server::builder().add_routes(routes);
            server.serve_with_incoming(incoming).await.unwrap();
        });
        let uri = format!("http://{address}");
        let channel = Channel::from_shared(uri).unwrap().connect().await.unwrap();
        Grpc { channel, server }
    }
}
