//! A worker: attaches to a router, and as a decode worker serves `Decode` over TCP.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::{Stream, StreamExt, stream};
use millrace_model::blocks::BLOCK_TOKENS;
use millrace_proto::worker::v1 as proto;
use parking_lot::Mutex;
use proto::decode_server::{Decode, DecodeServer};
use proto::membership_client::MembershipClient;
use proto::router_message::Message as FromRouter;
use proto::worker_message::Message as FromWorker;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, mpsc};
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::{model, until};

/// A token that decodes to plain text, drawn from all that came before.
pub fn next_token(seed: u64, tokens: &[u32]) -> u32 {
    let mut hash = seed ^ 0xcbf2_9ce4_8422_2325;
    for &token in tokens {
        hash = (hash ^ u64::from(token))
            .wrapping_mul(0x0000_0100_0000_01b3)
            .rotate_left(23);
    }
    300 + (hash % 1000) as u32
}

/// What a worker does with its next call instead of answering it.
pub enum Fault {
    /// This status at once.
    Status(Status),
    /// This status instead of the token after so many.
    StatusAfter(usize, Status),
    /// The stream ends without a word after so many tokens.
    EndAfter(usize),
    /// All tokens come, but not why the last was the last.
    NoReason,
}

/// As a decode worker reports that its prefill worker has failed.
pub fn prefill_failed(worker_id: &str) -> Status {
    let metadata = [("worker_id".to_owned(), worker_id.to_owned())];
    let details = ErrorDetails::with_error_info("PREFILL_FAILED", "millrace", metadata);
    Status::with_error_details(tonic::Code::Unavailable, "connection refused", details)
}

/// What a test sees and controls of a worker.
#[derive(Default)]
pub struct Control {
    /// Requests received, oldest first.
    pub calls: Mutex<Vec<proto::GenerateRequest>>,
    pub faults: Mutex<VecDeque<Fault>>,
    /// Tokens to generate instead of hashes.
    pub script: Mutex<Vec<u32>>,
    /// Calls whose caller went away before the end.
    pub cancelled: AtomicUsize,
    pub running: AtomicUsize,
}

/// A worker in a runtime of its own: killing it closes all its connections at once and lets nothing
/// finish, as SIGKILL does.
pub struct Worker {
    pub id: String,
    pub control: Arc<Control>,
    /// One permit a token, for all calls together.
    pub tokens: Arc<Semaphore>,
    pub outbox: mpsc::Sender<proto::WorkerMessage>,
    /// What the router said after it admitted the worker.
    pub inbox: tokio::sync::Mutex<mpsc::Receiver<FromRouter>>,
    runtime: Option<Runtime>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

pub fn message(message: FromWorker) -> proto::WorkerMessage {
    proto::WorkerMessage {
        message: Some(message),
    }
}

pub fn load() -> proto::Load {
    proto::Load {
        free_pages: 1000,
        ..proto::Load::default()
    }
}

pub fn hello(id: &str, role: proto::Role, address: &str) -> proto::Hello {
    let model = model();
    proto::Hello {
        worker_id: id.to_owned(),
        role: role.into(),
        address: address.to_owned(),
        compatibility: Some(proto::Compatibility {
            model_revision: model.revision.clone(),
            page_tokens: BLOCK_TOKENS as u32,
            cached_layers: 5,
            row_values: 576,
            kv_dtype: "bf16".into(),
            parallelism: "replicated".into(),
        }),
        model: Some(proto::ModelInfo {
            served_name: model.name.clone(),
            architecture: model.architecture.clone(),
            max_model_len: model.max_model_len,
            vocab_size: model.vocab_size,
            mtp: true,
            text_revision: model.text_revision.clone(),
        }),
        kv_pages: 1000,
        max_running: 64,
        group: None,
        revision: String::new(),
        aggregated: false,
    }
}

/// Of a deployment's revision, with weights of another name than the router's.
pub fn of(revision: &str, model: &str) -> impl FnOnce(&mut proto::Hello) + use<> {
    let (revision, model) = (revision.to_owned(), model.to_owned());
    move |hello| {
        hello.revision = revision;
        hello.compatibility.as_mut().unwrap().model_revision = model;
    }
}

impl Worker {
    /// Attaches to the router at an address, as a decode worker that generates as many tokens as are asked for.
    pub async fn decode(router: &impl AsRef<str>, id: &str) -> Worker {
        Worker::decode_with(router, id, Semaphore::MAX_PERMITS).await
    }

    /// Attaches a decode worker that generates one token a permit.
    pub async fn decode_with(router: &impl AsRef<str>, id: &str, tokens: usize) -> Worker {
        Worker::decode_as(router, id, tokens, |_| ()).await
    }

    /// The same, introducing itself otherwise.
    pub async fn decode_as(
        router: &impl AsRef<str>,
        id: &str,
        tokens: usize,
        change: impl FnOnce(&mut proto::Hello),
    ) -> Worker {
        let runtime = runtime();
        let control = Arc::new(Control::default());
        let tokens = Arc::new(Semaphore::new(tokens));
        let service = DecodeServer::new(Service {
            control: control.clone(),
            tokens: tokens.clone(),
        });
        let bind = async { TcpListener::bind("127.0.0.1:0").await };
        let listener = runtime.spawn(bind).await.unwrap().unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = tonic::transport::Server::builder().add_service(service);
        runtime.spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        let mut hello = hello(id, proto::Role::Decode, &address);
        change(&mut hello);
        Worker::attach(router.as_ref(), runtime, hello, control, tokens).await
    }

    /// Attaches a prefill worker; nothing calls it, since the decode workers here compute nothing.
    pub async fn prefill(router: &impl AsRef<str>, id: &str) -> Worker {
        Worker::prefill_as(router, id, |_| ()).await
    }

    /// The same, introducing itself otherwise.
    pub async fn prefill_as(
        router: &impl AsRef<str>,
        id: &str,
        change: impl FnOnce(&mut proto::Hello),
    ) -> Worker {
        let mut hello = hello(id, proto::Role::Prefill, "127.0.0.1:9");
        change(&mut hello);
        Worker::attach(
            router.as_ref(),
            runtime(),
            hello,
            Arc::default(),
            Arc::new(Semaphore::new(0)),
        )
        .await
    }

    async fn attach(
        router: &str,
        runtime: Runtime,
        hello: proto::Hello,
        control: Arc<Control>,
        tokens: Arc<Semaphore>,
    ) -> Worker {
        let id = hello.worker_id.clone();
        let (outbox, mut from_router) = dial(&runtime, router, hello).await;
        let first = from_router.recv().await.expect("the router answers");
        assert_eq!(first, FromRouter::Admitted(proto::Admitted {}));
        let snapshot = proto::Snapshot {
            load: Some(load()),
            blocks: Vec::new(),
        };
        outbox
            .send(message(FromWorker::Snapshot(snapshot)))
            .await
            .unwrap();
        let inbox = tokio::sync::Mutex::new(from_router);
        Worker {
            id,
            control,
            tokens,
            outbox,
            inbox,
            runtime: Some(runtime),
        }
    }

    pub async fn say(&self, what: FromWorker) {
        self.outbox.send(message(what)).await.unwrap();
    }

    pub async fn drain(&self) {
        self.say(FromWorker::Draining(proto::Draining {})).await;
    }

    /// As SIGKILL: connections are closed by the kernel, nothing else is said.
    pub fn kill(mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    pub fn calls(&self) -> Vec<proto::GenerateRequest> {
        self.control.calls.lock().clone()
    }

    pub fn fault(&self, fault: Fault) {
        self.control.faults.lock().push_back(fault);
    }

    /// Calls in progress.
    pub fn running(&self) -> usize {
        self.control.running.load(Ordering::SeqCst)
    }

    pub async fn until_idle(&self) {
        until("the worker is idle", || self.running() == 0).await;
    }
}

pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

/// Opens a membership stream with `hello`: what to send on it, and what the router says.
pub async fn dial(
    runtime: &Runtime,
    router: &str,
    hello: proto::Hello,
) -> (
    mpsc::Sender<proto::WorkerMessage>,
    mpsc::Receiver<FromRouter>,
) {
    let (outbox, outgoing) = mpsc::channel(16);
    let (incoming, inbox) = mpsc::channel(16);
    outbox
        .send(message(FromWorker::Hello(hello)))
        .await
        .unwrap();
    let uri = format!("http://{router}");
    runtime.spawn(async move {
        let mut client = MembershipClient::connect(uri).await.unwrap();
        let outgoing = tokio_stream::wrappers::ReceiverStream::new(outgoing);
        let mut messages = client.attach(outgoing).await.unwrap().into_inner();
        while let Ok(Some(message)) = messages.message().await {
            let Some(message) = message.message else {
                continue;
            };
            if incoming.send(message).await.is_err() {
                return;
            }
        }
    });
    (outbox, inbox)
}

struct Service {
    control: Arc<Control>,
    tokens: Arc<Semaphore>,
}

#[tonic::async_trait]
impl Decode for Service {
    type GenerateStream = Pin<Box<dyn Stream<Item = Result<proto::GenerateUpdate, Status>> + Send>>;

    async fn generate(
        &self,
        request: Request<proto::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let request = request.into_inner();
        self.control.calls.lock().push(request.clone());
        let fault = self.control.faults.lock().pop_front();
        if let Some(Fault::Status(status)) = fault {
            return Err(status);
        }
        let prompt = request.prompt_token_ids;
        let generated = request.output_token_ids.len();
        self.control.running.fetch_add(1, Ordering::SeqCst);
        let call = Call {
            sampling: request.sampling.unwrap(),
            all: [prompt, request.output_token_ids].concat(),
            generated,
            sent: 0,
            fault,
            tokens: self.tokens.clone(),
            over: Over {
                control: self.control.clone(),
                ended: false,
            },
        };
        let updates = stream::unfold(Some(call), |call| async {
            let (update, call) = call?.next().await;
            Some((update, call))
        });
        Ok(Response::new(
            updates.filter_map(std::future::ready).boxed(),
        ))
    }
}

struct Call {
    sampling: proto::Sampling,
    all: Vec<u32>,
    generated: usize,
    /// By this call.
    sent: usize,
    fault: Option<Fault>,
    tokens: Arc<Semaphore>,
    over: Over,
}

type Step = Option<Result<proto::GenerateUpdate, Status>>;

impl Call {
    /// `None` as the call: it is over. `None` as the update: without a word.
    async fn next(mut self) -> (Step, Option<Call>) {
        match &self.fault {
            Some(Fault::StatusAfter(after, status)) if self.sent == *after => {
                let status = status.clone();
                self.over.ended = true;
                return (Some(Err(status)), None);
            }
            Some(Fault::EndAfter(after)) if self.sent == *after => {
                self.over.ended = true;
                return (None, None);
            }
            _ => {}
        }
        self.tokens.acquire().await.unwrap().forget();
        let scripted = self.over.control.script.lock().get(self.generated).copied();
        let id = scripted.unwrap_or_else(|| next_token(self.sampling.seed, &self.all));
        self.all.push(id);
        self.generated += 1;
        self.sent += 1;
        let mut update = proto::GenerateUpdate {
            tokens: vec![proto::Token {
                id,
                logprob: Some(-1.0),
                top: Vec::new(),
            }],
            ..proto::GenerateUpdate::default()
        };
        if self.sent == 1 {
            update.cached_tokens = Some(3);
        }
        if self.generated < self.sampling.max_tokens as usize {
            return (Some(Ok(update)), Some(self));
        }
        if !matches!(self.fault, Some(Fault::NoReason)) {
            update.finish = proto::FinishReason::Length.into();
        }
        self.over.ended = true;
        (Some(Ok(update)), None)
    }
}

/// Notices when a call is dropped before its end.
struct Over {
    control: Arc<Control>,
    ended: bool,
}

impl Drop for Over {
    fn drop(&mut self) {
        self.control.running.fetch_sub(1, Ordering::SeqCst);
        if !self.ended {
            self.control.cancelled.fetch_add(1, Ordering::SeqCst);
        }
    }
}
