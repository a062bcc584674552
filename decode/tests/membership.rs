//! What a worker tells its routers, heard by a router that does as the test says.

mod common;

use std::{
    collections::HashSet,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use common::*;
use futures::{Stream, StreamExt as _};
use millrace_model::{
    blocks::{BlockHash, block_hashes},
    checkpoint::Checkpoint,
    text,
};
use millrace_proto::worker::v1::{
    Admitted, Delta, Draining, ExpertCounts, Hello, Rejected, Resync, Role, RouterMessage,
    WorkerMessage,
    membership_server::{Membership, MembershipServer},
    router_message::Message as Answer,
    worker_message::Message,
};
use millrace_worker::{attach::Resolver, notice::Notice};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// One stream of a worker.
struct Attached {
    messages: Streaming<WorkerMessage>,
    answers: mpsc::Sender<Result<RouterMessage, Status>>,
}

impl Attached {
    /// Expert counts come between the others, whenever a second is over.
    async fn next(&mut self) -> Message {
        loop {
            match self.any().await {
                Message::ExpertCounts(_) => continue,
                other => return other,
            }
        }
    }

    async fn any(&mut self) -> Message {
        let message = self.messages.next().await.unwrap();
        message.unwrap().message.unwrap()
    }

    async fn expert_counts(&mut self) -> ExpertCounts {
        loop {
            match self.any().await {
                Message::ExpertCounts(counts) => return counts,
                Message::Delta(_) => continue,
                other => panic!("counts come now: {other:?}"),
            }
        }
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
    config.worker.revision = "5f3a90c1".to_string();
    let model_dir = config.worker.model_dir.clone();
    let mut worker = Running::decode(config).await;

    let mut link = router.recv().await.unwrap();
    let hello = link.hello().await;
    assert_eq!(hello.worker_id, "decode-7");
    assert_eq!(hello.role(), Role::Decode);
    assert_eq!(hello.address, worker.addresses.grpc.to_string());
    assert_eq!(hello.kv_pages, 256);
    assert_eq!(hello.revision, "5f3a90c1");
    let model = hello.model.unwrap();
    assert_eq!(
        (model.served_name.as_str(), model.vocab_size, model.mtp),
        ("tiny-r1", 2048, true)
    );
    let checkpoint = Checkpoint::open(&model_dir).unwrap();
    let text_revision = text::revision(&model_dir, &checkpoint.config().common);
    assert_eq!(model.text_revision, text_revision.unwrap());
    let revision = checkpoint.revision();
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
async fn a_router_hears_how_often_experts_were_chosen() {
    let (address, mut router) = router().await;
    let mut config = decode_config();
    config.worker.routers = vec![address.to_string()];
    let worker = Running::decode(config).await;
    let mut link = router.recv().await.unwrap();
    link.hello().await;
    link.snapshot().await;
    let mut client = worker.client().await;
    let request = request(prompt(100, 1), &sampling(1));
    generate(&mut client, request).await.unwrap();
    // 3 MoE layers and the MTP layer of 32 experts; 4 of them for each of 100 rows.
    let layers = 4;
    loop {
        let counts = link.expert_counts().await;
        assert_eq!(counts.chosen.len(), layers * 32);
        let chosen: Vec<u64> = counts.chosen.chunks(32).map(|l| l.iter().sum()).collect();
        assert_eq!(
            chosen, counts.computed,
            "alone, it computes what it chooses"
        );
        if chosen[..3] == [400; 3] {
            break;
        }
    }
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

/// What a name leads to, for a test to change. `None`: lookups fail.
struct Name {
    addresses: Arc<Mutex<Option<Vec<SocketAddr>>>>,
    lookups: watch::Receiver<usize>,
}

impl Name {
    fn new() -> (Name, Resolver) {
        let addresses = Arc::new(Mutex::new(None));
        let (count, lookups) = watch::channel(0);
        let known: Arc<Mutex<Option<Vec<SocketAddr>>>> = addresses.clone();
        let resolver = Resolver::new(Duration::from_millis(10), move |name| {
            assert_eq!(name, "router:9001");
            let found = known.lock().unwrap().clone();
            count.send_modify(|count| *count += 1);
            std::future::ready(found.ok_or_else(|| io::Error::other("no such name")))
        });
        (Name { addresses, lookups }, resolver)
    }

    /// Returns once the worker has heard of it.
    async fn leads_to(&mut self, addresses: Option<&[SocketAddr]>) {
        *self.addresses.lock().unwrap() = addresses.map(<[SocketAddr]>::to_vec);
        self.looked_up(3).await;
    }

    async fn looked_up(&mut self, times: usize) {
        let enough = *self.lookups.borrow() + times;
        self.lookups
            .wait_for(|count| *count >= enough)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_routers_name_is_followed_wherever_it_leads() {
    let (first, mut first_router) = router().await;
    let (second, mut second_router) = router().await;
    let (mut name, resolver) = Name::new();
    let mut config = decode_config();
    config.worker.routers = vec!["router:9001".to_string(), second.to_string()];
    config.worker.resolver = resolver;
    let mut worker = Running::decode(config).await;

    // A name that leads nowhere yet stops nothing.
    name.leads_to(None).await;
    let mut at_second = second_router.recv().await.unwrap();
    assert!(worker.get("/ready").await.starts_with("HTTP/1.1 503"));
    name.leads_to(Some(&[first])).await;
    let mut at_first = first_router.recv().await.unwrap();
    assert_eq!(at_first.hello().await, at_second.hello().await);
    at_first.snapshot().await;
    at_first.answer(Answer::Admitted(Admitted {})).await;
    until_ready(&worker, "HTTP/1.1 200").await;

    // Nobody is dialled twice, whatever leads there, and nobody's stream is cut: not by another
    // answer, nor by none.
    for addresses in [Some(&[first, second][..]), Some(&[second]), Some(&[]), None] {
        name.leads_to(addresses).await;
        at_first.delta().await;
        assert!(first_router.is_empty() && second_router.is_empty());
    }

    // Once it ends by itself, an address that the name has lost is left alone.
    name.leads_to(Some(&[second])).await;
    drop(at_first);
    until_ready(&worker, "HTTP/1.1 503").await;
    name.looked_up(50).await;
    assert!(first_router.is_empty());

    // Until the name has it again.
    name.leads_to(Some(&[second, first])).await;
    let mut at_first = first_router.recv().await.unwrap();
    at_first.answer(Answer::Admitted(Admitted {})).await;
    until_ready(&worker, "HTTP/1.1 200").await;

    worker.shut_down();
    for link in [&mut at_first, &mut at_second] {
        while !matches!(link.next().await, Message::Draining(_)) {}
    }
    drop((at_first, at_second));
    worker.ended().await.unwrap();
}
