//! A router on loopback, and workers that speak the real contracts to it.
//!
//! A worker here has no model: its next token is a hash of the seed and all tokens before, so that
//! any worker continues any sequence the same way, as real ones do.
#![allow(dead_code)] // Each test file uses its own part.

#[cfg(feature = "etcd")]
pub mod etcd;
pub mod fleet;
pub mod process;
pub mod rank;
pub mod volume;
pub mod worker;

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures::StreamExt;
use millrace_router::api::{
    CompletionRequest, Event, EventStream, Finish, Prompt, RequestError, SamplingRequest,
};
use millrace_router::assemble::{Parts, assemble};
use millrace_router::config::{AdmissionLimits, ExpertsConfig, Limits, RetryLimits};
use millrace_router::experts::Groups;
use millrace_router::fleet::{Role, roster::Roster};
use millrace_router::frontend::{Frontend, ServedModel};
use millrace_router::overview::Overview;
use millrace_router::{membership, watch};
use millrace_telemetry::Registry;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::transport::server::TcpIncoming;

pub fn model() -> Arc<ServedModel> {
    static MODEL: OnceLock<Arc<ServedModel>> = OnceLock::new();
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny-r1");
    MODEL
        .get_or_init(|| ServedModel::load(&dir, &[], None).unwrap().into())
        .clone()
}

/// A router with its membership port open.
pub struct Router {
    pub frontend: Frontend,
    pub groups: Arc<Groups>,
    pub overview: Arc<Overview>,
    roster: Arc<Roster>,
    pub address: String,
    registry: Registry,
    server: JoinHandle<()>,
}

/// Where workers attach.
impl AsRef<str> for Router {
    fn as_ref(&self) -> &str {
        &self.address
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Generous enough for a busy machine, where nothing is meant to run out.
pub fn limits() -> Limits {
    let retry = RetryLimits {
        worker_wait: Duration::from_secs(60),
        leave_out: Duration::from_millis(10),
        ..RetryLimits::default()
    };
    Limits {
        retry,
        ..Limits::default()
    }
}

pub fn one_at_a_time(max_waiting: u32) -> Limits {
    let admission = AdmissionLimits {
        max_running: 1,
        max_waiting,
        ..AdmissionLimits::default()
    };
    Limits {
        admission,
        ..limits()
    }
}

impl Router {
    pub async fn start(limits: Limits) -> Router {
        Router::start_with(limits, ExpertsConfig::default()).await
    }

    pub async fn start_with(limits: Limits, experts: ExpertsConfig) -> Router {
        let registry = Registry::new();
        let Parts {
            frontend,
            roster,
            groups,
            metrics,
            overview,
        } = assemble(&limits, &experts, model(), &registry).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (served, shown, attached) = (groups.clone(), overview.clone(), roster.clone());
        let server = tokio::spawn(async move {
            let watch = watch::service(overview);
            let service = membership::service(roster, served, metrics);
            let incoming = TcpIncoming::from(listener);
            membership::server()
                .add_service(service)
                .add_service(watch)
                .serve_with_incoming(incoming)
                .await
                .unwrap();
        });
        Router {
            frontend,
            groups,
            overview: shown,
            roster: attached,
            address,
            registry,
            server,
        }
    }

    pub async fn complete(&self, request: CompletionRequest) -> Result<EventStream, RequestError> {
        self.frontend.complete(request).await
    }

    /// The sum of a metric's series whose labels include `label` (`""`: all).
    pub fn metric(&self, name: &str, label: &str) -> f64 {
        let text = prometheus::TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .unwrap();
        let of_name = |line: &&str| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(['{', ' ']))
        };
        text.lines()
            .filter(of_name)
            .filter(|line| line.contains(label))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// Waits for a metric to have a value.
    pub async fn until(&self, name: &str, label: &str, value: f64) {
        let what = format!("{name} {label} is {value}");
        until(&what, || self.metric(name, label) == value).await;
    }

    pub async fn until_workers(&self, decode: usize, prefill: usize) {
        self.until("millrace_router_workers", "decode", decode as f64)
            .await;
        self.until("millrace_router_workers", "prefill", prefill as f64)
            .await;
    }

    /// Attached is not yet available: that takes a first report.
    pub async fn until_available(&self, decode: usize, prefill: usize) {
        for (role, count) in [(Role::Decode, decode), (Role::Prefill, prefill)] {
            let available = || self.roster.lock().fleet.available(role).count() >= count;
            until("workers take requests", available).await;
        }
    }
}

/// Waits for what must come, and fails where it has not in a minute: a hung test says nothing.
pub async fn until(what: &str, done: impl Fn() -> bool) {
    let given_up = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < given_up, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A greedy-looking request for `max_tokens` after `tokens`.
pub fn request(tokens: &[u32], max_tokens: u32) -> CompletionRequest {
    CompletionRequest {
        prompt: Prompt::Tokens(tokens.to_vec()),
        sampling: SamplingRequest {
            max_tokens: Some(max_tokens),
            seed: Some(7),
            ..SamplingRequest::default()
        },
        ..CompletionRequest::default()
    }
}

/// One choice's events joined.
#[derive(Debug, Default)]
pub struct Answer {
    pub text: String,
    pub token_ids: Vec<u32>,
    pub finish: Option<Finish>,
}

impl Answer {
    pub fn add(&mut self, event: Event) {
        self.text.push_str(&event.text);
        self.token_ids.extend(event.token_ids);
        self.finish = self.finish.take().or(event.finish);
    }
}

async fn next(stream: &mut EventStream) -> Option<Result<Event, RequestError>> {
    let patience = Duration::from_secs(60);
    tokio::time::timeout(patience, stream.next())
        .await
        .expect("a stream says something within a minute")
}

/// Reads to the end of the stream, by choice.
pub async fn read_all(
    mut stream: EventStream,
    choices: usize,
) -> Result<Vec<Answer>, RequestError> {
    let mut answers: Vec<Answer> = (0..choices).map(|_| Answer::default()).collect();
    while let Some(event) = next(&mut stream).await {
        let event = event?;
        answers[event.index as usize].add(event);
    }
    Ok(answers)
}

/// Reads at least `count` tokens.
pub async fn read_tokens(stream: &mut EventStream, count: usize) -> Answer {
    let mut answer = Answer::default();
    while answer.token_ids.len() < count {
        answer.add(next(stream).await.expect("the stream goes on").unwrap());
    }
    answer
}

/// What any worker generates after `prompt` with `seed`.
pub fn expected(prompt: &[u32], seed: u64, count: usize) -> Vec<u32> {
    let mut all = prompt.to_vec();
    for _ in 0..count {
        all.push(worker::next_token(seed, &all));
    }
    all.split_off(prompt.len())
}
