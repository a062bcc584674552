//! Real workers on loopback, each with its own runtime, so that one can be killed alone.

#![allow(dead_code, reason = "each test binary uses its part of this")]

pub mod group;

use std::{path::PathBuf, sync::Arc, time::Duration};

use millrace_decode::DecodeConfig;
use millrace_engine::{EngineConfig, SamplingParams};
use millrace_prefill::{PrefillConfig, Transport};
use millrace_proto::worker::v1 as wire;
use millrace_worker::{
    WorkerConfig, WorkerError,
    notice::{BoundAddresses, Notice, Observer},
    wire::sampling_to_wire,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    runtime::Runtime,
    sync::{oneshot, watch},
};
use tonic::{Status, Streaming, transport::Channel};
use wire::decode_client::DecodeClient;

/// Nothing here takes this long unless it hangs.
pub const HANGS: Duration = Duration::from_secs(120);

pub fn worker_config() -> WorkerConfig {
    WorkerConfig {
        model_dir: PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/tiny-r1"),
        engine: EngineConfig {
            kv_pages: 256,
            max_running: 16,
            ..EngineConfig::default()
        },
        threads: Some(1),
        drain: Duration::from_secs(60),
        ..WorkerConfig::default()
    }
}

/// How pages go where a test does not say: by NIXL if that is what the environment's TRANSFER is.
pub fn transport() -> Transport {
    match std::env::var("TRANSFER").as_deref() {
        Ok("nixl") => Transport::Nixl,
        Ok(other) => panic!("TRANSFER={other}: only nixl can be chosen"),
        Err(_) => Transport::Auto,
    }
}

/// The label of its metrics. On one machine, what is best is shared memory.
pub fn transport_label() -> &'static str {
    match transport() {
        Transport::Nixl => "transport=\"nixl\"",
        _ => "transport=\"shm\"",
    }
}

pub fn decode_config() -> DecodeConfig {
    DecodeConfig {
        worker: worker_config(),
        transport: transport(),
        ..DecodeConfig::default()
    }
}

pub fn prefill_config() -> PrefillConfig {
    PrefillConfig {
        worker: worker_config(),
        transport: transport(),
        ..PrefillConfig::default()
    }
}

/// Two tokens a step: a long prompt takes long enough to do something meanwhile.
pub fn slow_prefill_config() -> PrefillConfig {
    let mut config = prefill_config();
    config.worker.engine.max_running = 1;
    config.worker.engine.max_batch_tokens = 2;
    config
}

/// A worker in a runtime of its own.
pub struct Running {
    pub addresses: BoundAddresses,
    runtime: Option<Runtime>,
    stop: Option<oneshot::Sender<()>>,
    ended: Option<oneshot::Receiver<Result<(), WorkerError>>>,
    notices: watch::Receiver<Vec<Notice>>,
}

impl Running {
    pub async fn decode(config: DecodeConfig) -> Running {
        Running::start(move |observer, stopped| millrace_decode::run(config, observer, stopped))
            .await
    }

    pub async fn prefill(config: PrefillConfig) -> Running {
        Running::start(move |observer, stopped| millrace_prefill::run(config, observer, stopped))
            .await
    }

    /// Returns once the worker serves.
    async fn start<F>(
        run: impl FnOnce(Observer, Box<dyn Future<Output = ()> + Send + Unpin>) -> F,
    ) -> Running
    where
        F: Future<Output = Result<(), WorkerError>> + Send + 'static,
    {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (seen, mut notices) = watch::channel(Vec::new());
        let observer: Observer = Arc::new(move |notice| seen.send_modify(|all| all.push(notice)));
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = Box::new(Box::pin(async {
            let _ = stopped.await;
        }));
        let (sender, ended) = oneshot::channel();
        let worker = run(observer, stopped);
        runtime.spawn(async {
            let _ = sender.send(worker.await);
        });
        let loaded = |all: &Vec<Notice>| all.contains(&Notice::Loaded);
        let Ok(all) = notices.wait_for(loaded).await.map(|all| all.clone()) else {
            panic!("the worker did not start: {:?}", ended.await);
        };
        let Some(Notice::Bound(addresses)) = all.first() else {
            panic!("the addresses come first: {all:?}");
        };
        Running {
            addresses: *addresses,
            runtime: Some(runtime),
            stop: Some(stop),
            ended: Some(ended),
            notices,
        }
    }

    /// What it has told so far.
    pub fn notices(&self) -> Vec<Notice> {
        self.notices.borrow().clone()
    }

    /// Begins a shutdown.
    pub fn shut_down(&mut self) {
        let _ = self.stop.take().unwrap().send(());
    }

    /// Returns when the shutdown is over.
    pub async fn ended(&mut self) -> Result<(), WorkerError> {
        self.ended.take().unwrap().await.unwrap()
    }

    /// All of its tasks and sockets are gone at once, as in a crash.
    pub fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    pub async fn client(&self) -> DecodeClient<Channel> {
        DecodeClient::connect(format!("http://{}", self.addresses.grpc))
            .await
            .unwrap()
    }

    pub async fn get(&self, path: &str) -> String {
        let mut socket = TcpStream::connect(self.addresses.http).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// The value of the first series of `millrace_<name>` whose labels contain `labels`.
    pub async fn metric(&self, name: &str, labels: &str) -> f64 {
        let text = self.get("/metrics").await;
        let line = text.lines().find(|line| {
            let rest = line.strip_prefix("millrace_").unwrap_or("");
            rest.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with('{') && rest.contains(labels))
        });
        let line = line.unwrap_or_else(|| panic!("no millrace_{name} {labels} in\n{text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Returns when `done` holds of a metric.
    pub async fn until(&self, name: &str, labels: &str, done: impl Fn(f64) -> bool) {
        let wait = async {
            while !done(self.metric(name, labels).await) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        if tokio::time::timeout(HANGS, wait).await.is_err() {
            panic!(
                "{name} {labels} never came to be so:\n{}",
                self.get("/metrics").await
            );
        }
    }

    /// Returns when nothing runs and every page is back.
    pub async fn until_idle(&self) {
        self.until("num_requests_running", "", |n| n == 0.0).await;
        self.until("num_requests_waiting", "", |n| n == 0.0).await;
        self.until("num_requests_remote_prefill", "", |n| n == 0.0)
            .await;
        self.until("kv_pages", "state=\"leased\"", |n| n == 0.0)
            .await;
        self.until("kv_pages", "state=\"used\"", |n| n == 0.0).await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Not a client's prompt, but tokens the model knows, and other ones for each `seed`.
pub fn prompt(length: usize, seed: u32) -> Vec<u32> {
    (0..length as u32)
        .map(|i| 10 + (i * i * 31 + i * 7 + seed * 1009) % 2000)
        .collect()
}

pub fn sampling(max_tokens: usize) -> SamplingParams {
    SamplingParams {
        max_tokens,
        ignore_eos: true,
        logprobs: Some(2),
        ..SamplingParams::default()
    }
}

pub fn request(prompt: Vec<u32>, sampling: &SamplingParams) -> wire::GenerateRequest {
    wire::GenerateRequest {
        request_id: "test".to_string(),
        prompt_token_ids: prompt,
        output_token_ids: Vec::new(),
        sampling: Some(sampling_to_wire(sampling)),
        prefill: None,
        cache_salt: String::new(),
    }
}

/// The same, prefilled at `address`.
pub fn split(
    request: &wire::GenerateRequest,
    address: std::net::SocketAddr,
) -> wire::GenerateRequest {
    wire::GenerateRequest {
        prefill: Some(wire::PrefillTarget {
            worker_id: "prefill-under-test".to_string(),
            address: address.to_string(),
        }),
        ..request.clone()
    }
}

/// All updates of a request.
pub async fn generate(
    client: &mut DecodeClient<Channel>,
    request: wire::GenerateRequest,
) -> Result<Vec<wire::GenerateUpdate>, Status> {
    let stream = client.generate(request).await?.into_inner();
    collect(stream).await
}

pub async fn collect(
    mut stream: Streaming<wire::GenerateUpdate>,
) -> Result<Vec<wire::GenerateUpdate>, Status> {
    let mut updates = Vec::new();
    while let Some(update) = stream.message().await? {
        updates.push(update);
    }
    Ok(updates)
}

pub fn tokens(updates: &[wire::GenerateUpdate]) -> Vec<wire::Token> {
    updates
        .iter()
        .flat_map(|update| update.tokens.clone())
        .collect()
}

pub fn first_timing(updates: &[wire::GenerateUpdate]) -> wire::Timing {
    updates[0].timing.unwrap()
}
