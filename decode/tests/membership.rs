//! What a worker tells its routers, heard by a router that does as the test says.

mod common;

use std::{collections::HashSet, net::SocketAddr, pin::Pin};

use common::*;
use futures::{Stream, StreamExt as _};
use millrace_model::{
    blocks::{BlockHash, block_hashes},
    checkpoint::Checkpoint,
};
use millrace_proto::worker::v1::{
    Admitted, Delta, Draining, Hello, Rejected, Resync, Role, RouterMessage, WorkerMessage,
    membership_server::{Membership, MembershipServer},
    router_message::Message as Answer,
    worker_message::Message,
};
use millrace_worker::notice::Notice;
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// One stream of a worker.
struct Attached {
    messages: Streaming<WorkerMessage>,
    answers: mpsc::Sender<Result<RouterMessage, Status>>,
}

impl Attached {
    async fn next(&mut self) -> Message {
        self.messages
            .next()
            .await
            .unwrap()
            .unwrap()
            .message
            .unwrap()
    }

    async fn hello(&mut self) -> Hello {
        match self.next().await {
            Message::Hello(hello) => hello,
            other => panic!("a hello comes first: {other:?}"),
        }
    }

    /// The blocks of a snapshot.
    async fn snapshot(&mut self) -> HashSet<Vec<u8>> {
        match self.next().await {
            Message::Snapshot(snapshot) => snapshot.blocks.into_iter().collect(),
            other => panic!("a snapshot comes now: {other:?}"),
        }
    }

    async fn delta(&mut self) -> Delta {
        match self.next().await {
            Message::Delta(delta) => delta,
            other => panic!("deltas come now: {other:?}"),
        }
    }

    async fn answer(&self, answer: Answer) {
        let message = Some(answer);
        let _ = self.answers.send(Ok(RouterMessage { message })).await;
    }
}

struct Router(mpsc::Sender<Attached>);

#[tonic::async_trait]
impl Membership for Router {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<RouterMessage, Status>> + Send>>;

    async fn attach(
        &self,
        request: Request<Streaming<WorkerMessage>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let (answers, stream) = mpsc::channel(8);
        let messages = request.into_inner();
        let _ = self.0.send(Attached { messages, answers }).await;
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

async fn router() -> (SocketAddr, mpsc::Receiver<Attached>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, attached) = mpsc::channel(8);
    let server = tonic::transport::Server::builder()
        .add_service(MembershipServer::new(Router(sender)))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(server);
    (address, attached)
}

async fn until_ready(worker: &Running, status: &str) {
    while !worker.get("/ready").await.starts_with(status) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_router_follows_load_and_cache_from_the_stream_alone() {
    let (address, mut router) = router().await;
    let mut config = decode_config();
    config.worker.routers = vec![address.to_string()];
    config.worker.worker_id = Some("decode-7".to_string());
    let model_dir = config.worker.model_dir.clone();
    let mut worker = Running::decode(config).await;

    let mut link = router.recv().await.unwrap();
    let hello = link.hello().await;
    assert_eq!(hello.worker_id, "decode-7");
    assert_eq!(hello.role(), Role::Decode);
    assert_eq!(hello.address, worker.addresses.grpc.to_string());
    assert_eq!(hello.kv_pages, 256);
    let model = hello.model.unwrap();
    assert_eq!(
        (model.served_name.as_str(), model.vocab_size, model.mtp),
        ("tiny-r1", 2048, true)
    );
    let revision = Checkpoint::open(&model_dir).unwrap().revision();
    let compatibility = hello.compatibility.unwrap();
    assert_eq!(compatibility.model_revision, revision);
    assert_eq!(
        (compatibility.cached_layers, compatibility.row_values),
        (5, 576)
    );
    assert_eq!(link.snapshot().await, HashSet::new());

    // Ready is what a router has admitted.
    assert!(worker.get("/ready").await.starts_with("HTTP/1.1 503"));
    link.answer(Answer::Admitted(Admitted {})).await;
    until_ready(&worker, "HTTP/1.1 200").await;
    assert!(worker.notices().contains(&Notice::Ready));

    // Load and blocks come as deltas without gaps.
    let tokens = prompt(200, 1);
    let mut client = worker.client().await;
    let request = request(tokens.clone(), &sampling(4));
    generate(&mut client, request.clone()).await.unwrap();
    let blocks: HashSet<Vec<u8>> = block_hashes(BlockHash::root(&revision, ""), &tokens)
        .into_iter()
        .map(|hash| hash.to_bytes().to_vec())
        .collect();
    assert_eq!(blocks.len(), 3);
    let mut known = HashSet::new();
    let mut sequence = 0;
    loop {
        let delta = link.delta().await;
        sequence += 1;
        assert_eq!(delta.sequence, sequence);
        known.extend(delta.stored);
        let load = delta.load.unwrap();
        if known == blocks && load.running == 0 {
            assert_eq!((load.waiting, load.leased_pages), (0, 0));
            assert_eq!(load.free_pages, 256);
            break;
        }
    }

    // A router that lost its place gets everything anew.
    link.answer(Answer::Resync(Resync {})).await;
    let again = loop {
        match link.next().await {
            Message::Delta(_) => continue,
            Message::Snapshot(snapshot) => break snapshot,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(again.blocks.into_iter().collect::<HashSet<_>>(), blocks);
    assert_eq!(link.delta().await.sequence, 1);

    // So does one that was away.
    drop(link);
    let mut link = router.recv().await.unwrap();
    assert!(worker.get("/ready").await.starts_with("HTTP/1.1 503"));
    link.hello().await;
    assert_eq!(link.snapshot().await, blocks);
    link.answer(Answer::Admitted(Admitted {})).await;
    until_ready(&worker, "HTTP/1.1 200").await;

    // It says goodbye before it closes its door.
    worker.shut_down();
    loop {
        match link.next().await {
            Message::Delta(_) => continue,
            Message::Draining(Draining {}) => break,
            other => panic!("{other:?}"),
        }
    }
    worker.ended().await.unwrap();
}

#[tokio::test]
async fn a_worker_is_ready_while_any_router_has_it() {
    let (first, mut first_router) = router().await;
    let (second, mut second_router) = router().await;
    let mut config = decode_config();
    config.worker.routers = vec![first.to_string(), second.to_string()];
    let worker = Running::decode(config).await;

    let mut refused = first_router.recv().await.unwrap();
    refused.hello().await;
    let reason = "kv_dtype is bf16 there and f32 here".to_string();
    refused.answer(Answer::Rejected(Rejected { reason })).await;
    let admitted = second_router.recv().await.unwrap();
    assert!(worker.get("/ready").await.starts_with("HTTP/1.1 503"));
    admitted.answer(Answer::Admitted(Admitted {})).await;
    until_ready(&worker, "HTTP/1.1 200").await;
    drop(admitted);
    until_ready(&worker, "HTTP/1.1 503").await;
    assert!(worker.get("/health").await.starts_with("HTTP/1.1 200"));
}
