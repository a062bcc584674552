//! What a router counts. Names follow vLLM after the prefix `millrace_`; what only a router knows
//! begins with `millrace_router_`. Every series carries `model_name`.
//!
//! Times are those a client sees at this router. How long a worker queued, computed or transferred
//! is that worker's to say, but for the two it reports with a sequence's first token.

mod maker;

use std::time::Duration;

use millrace_telemetry::traces::Span;
use millrace_telemetry::{Histogram, Registry};
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec};
use serde::{Deserialize, Serialize};

use crate::api::{FinishReason, RequestError};
use crate::config::AdmissionLimits;
use crate::dispatch::{AdmissionFull, Reason};
use crate::fleet::Role;
use maker::Maker;

/// All metrics of a router, registered once.
#[derive(Debug)]
pub struct Metrics {
    running: IntGauge,
    waiting: IntGauge,
    ttft: Histogram,
    inter_token: Histogram,
    per_token: Histogram,
    e2e: Histogram,
    queue: Histogram,
    prefill: Histogram,
    decode: Histogram,
    prompt_tokens: IntCounter,
    cached_prompt_tokens: IntCounter,
    generation_tokens: IntCounter,
    generation_updates: IntCounter,
    prompt_length: Histogram,
    generation_length: Histogram,
    success: IntCounterVec,
    failures: IntCounterVec,
    workers: IntGaugeVec,
    available: IntGaugeVec,
    limits: IntGaugeVec,
    indexed_blocks: IntGauge,
    membership: IntCounterVec,
    pairings: IntCounterVec,
    overlap_tokens: IntCounterVec,
    paired_tokens: IntCounter,
    arrivals: IntCounter,
    admission_rejections: IntCounterVec,
    replays: IntCounterVec,
    prefill_retries: IntCounter,
    model_changes: IntCounter,
    unauthorized: IntCounterVec,
    handshake_failures: IntCounterVec,
    reloads: IntCounterVec,
}

const ROLES: [&str; 2] = ["prefill", "decode"];
const EDGES: [&str; 2] = ["http", "grpc"];
/// How requests fail.
const FAILURES: [&str; 6] = [
    "invalid",
    "unknown_model",
    "overloaded",
    "unavailable",
    "deadline",
    "internal",
];

/// A port that clients speak to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edge {
    Http,
    Grpc,
}

impl Edge {
    fn label(self) -> &'static str {
        match self {
            Edge::Http => "http",
            Edge::Grpc => "grpc",
        }
    }
}

/// Why a TLS handshake came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandshakeFailure {
    /// The client spoke no TLS, none that fits, or does not trust this router.
    Failed,
    /// It took too long.
    Timeout,
}

/// What happened to a worker's membership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MembershipEvent {
    Admitted,
    Rejected,
    /// A gap in its deltas was seen.
    Resync,
    Detached,
}

/// How a sequence ended that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Finished(FinishReason),
    /// The client went away.
    Aborted,
}

impl Metrics {
    /// # Errors
    /// A name is registered already: a registry serves one router.
    pub fn new(registry: &Registry, model_name: &str) -> Result<Metrics, prometheus::Error> {
        let make = Maker {
            registry,
            model_name,
        };
        Ok(Metrics {
            running: make.gauge("num_requests_running", "Sequences with the workers")?,
            waiting: make.gauge(
                "num_requests_waiting",
                "Sequences that wait for a turn here",
            )?,
            ttft: make.seconds(
                "time_to_first_token_seconds",
                "From a request's arrival to its first token",
            )?,
            inter_token: make.short_seconds(
                "inter_token_latency_seconds",
                "Between two tokens of a sequence; tokens that come together share the time evenly",
            )?,
            per_token: make.short_seconds(
                "request_time_per_output_token_seconds",
                "Mean time between the tokens of a finished sequence",
            )?,
            e2e: make.seconds(
                "e2e_request_latency_seconds",
                "From a request's arrival to its end, failed and aborted ones left out",
            )?,
            queue: make.seconds("request_queue_time_seconds", "Waiting for a turn here")?,
            prefill: make.seconds(
                "request_prefill_time_seconds",
                "From the end of a request's wait at its decode worker to its first token, as that worker says",
            )?,
            decode: make.seconds(
                "request_decode_time_seconds",
                "From a sequence's first token to its last",
            )?,
            prompt_tokens: make
                .counter("prompt_tokens_total", "Prompt tokens of requests begun")?,
            cached_prompt_tokens: make.counter(
                "prompt_tokens_cached_total",
                "Prompt tokens found in a prefix cache, as the workers say",
            )?,
            generation_tokens: make.counter(
                "generation_tokens_total",
                "Generated tokens given to clients",
            )?,
            generation_updates: make.counter(
                "router_generation_updates_total",
                "Updates from workers that brought tokens: one a step, with more than one token where drafts were right",
            )?,
            prompt_length: make.tokens("request_prompt_tokens", "Prompt tokens of a request")?,
            generation_length: make.tokens(
                "request_generation_tokens",
                "Generated tokens of a finished sequence",
            )?,
            success: make.counters(
                "request_success_total",
                "Sequences that ended by themselves, or when their client went away (abort)",
                &[("finished_reason", &["stop", "length", "abort"])],
            )?,
            failures: make.counters(
                "request_failures_total",
                "Requests answered with an error",
                &[("reason", &FAILURES)],
            )?,
            workers: make.gauges("router_workers", "Attached workers", "role", &ROLES)?,
            available: make.gauges(
                "router_workers_available",
                "Attached workers that take new requests: they do not drain, and a rank's group computes with it",
                "role",
                &ROLES,
            )?,
            limits: make.gauges(
                "router_admission_limit",
                "Most sequences that may be with the workers (running) and wait for a turn (waiting)",
                "state",
                &["running", "waiting"],
            )?,
            indexed_blocks: make.gauge(
                "router_prefix_index_blocks",
                "Entries (block, worker) in the prefix index",
            )?,
            membership: make.counters(
                "router_membership_events_total",
                "Workers admitted, rejected, resynchronised, detached",
                &[("event", &["admitted", "rejected", "resync", "detached"])],
            )?,
            pairings: make.counters(
                "router_pairings_total",
                "Sequences given to workers: split, or aggregated where decode prefills too",
                &[("kind", &["split", "aggregated"])],
            )?,
            overlap_tokens: make.counters(
                "router_pairing_overlap_tokens_total",
                "Tokens of paired sequences expected in the chosen workers' prefix caches",
                &[("role", &ROLES)],
            )?,
            paired_tokens: make
                .counter("router_pairing_tokens_total", "Tokens of paired sequences")?,
            arrivals: make.counter(
                "router_arrivals_total",
                "Sequences that asked for a turn, refused ones included",
            )?,
            admission_rejections: make.counters(
                "router_admission_rejections_total",
                "Requests refused because too much was waiting",
                &[("reason", &AdmissionFull::ALL.map(AdmissionFull::label))],
            )?,
            replays: make.counters(
                "router_replays_total",
                "Attempts at a decode worker that failed and were made again",
                &[("reason", &Reason::ALL.map(Reason::label))],
            )?,
            prefill_retries: make.counter(
                "router_prefill_retries_total",
                "Attempts that failed at the prefill worker and were made again",
            )?,
            model_changes: make.counter(
                "router_model_changes_total",
                "Begun sequences that went on under another model revision, as no worker of theirs was left",
            )?,
            unauthorized: make.counters(
                "router_unauthorized_total",
                "Requests refused for their API key: missing, malformed or unknown",
                &[("edge", &EDGES), ("reason", &["missing", "malformed", "unknown"])],
            )?,
            handshake_failures: make.counters(
                "router_tls_handshake_failures_total",
                "Connections of clients that came to no TLS session",
                &[("edge", &EDGES), ("reason", &["failed", "timeout"])],
            )?,
            reloads: make.counters(
                "router_reloads_total",
                "Replaced certificates or API keys that were adopted (ok), and looks at some that cannot be used (error)",
                &[("what", &["certificates", "api_keys"]), ("result", &["ok", "error"])],
            )?,
        })
    }

    /// Sequences that run and that wait for a turn.
    pub fn admission(&self, running: u32, waiting: u32) {
        self.running.set(running.into());
        self.waiting.set(waiting.into());
    }

    /// A request of so many sequences asks for a turn.
    pub fn asked(&self, sequences: u32) {
        self.arrivals.inc_by(sequences.into());
    }

    pub fn admission_refused(&self, full: AdmissionFull) {
        self.admission_rejections
            .with_label_values(&[full.label()])
            .inc();
    }

    /// A request passed admission after `queued`. Here and below, `span` is the request's.
    pub fn begun(&self, span: &Span, prompt_tokens: usize, queued: Duration) {
        self.prompt_tokens.inc_by(prompt_tokens as u64);
        self.prompt_length.observe_in(span, prompt_tokens as f64);
        self.queue.observe_in(span, queued.as_secs_f64());
    }

    pub fn first_token(&self, span: &Span, since_arrival: Duration) {
        self.ttft.observe_in(span, since_arrival.as_secs_f64());
    }

    /// As the workers say: cached prompt tokens, and the time to compute the rest.
    pub fn prompt_done(&self, span: &Span, cached_tokens: u32, prefill: Option<Duration>) {
        self.cached_prompt_tokens.inc_by(cached_tokens.into());
        if let Some(prefill) = prefill {
            self.prefill.observe_in(span, prefill.as_secs_f64());
        }
    }

    /// An update from a worker brought tokens.
    pub fn updated(&self) {
        self.generation_updates.inc();
    }

    /// `count` tokens came, `after` the ones before them (`None` for the first).
    pub fn tokens(&self, span: &Span, count: usize, after: Option<Duration>) {
        self.generation_tokens.inc_by(count as u64);
        if let Some(after) = after {
            let each = after.as_secs_f64() / count.max(1) as f64;
            for _ in 0..count {
                self.inter_token.observe_in(span, each);
            }
        }
    }

    /// A sequence ended with `tokens` generated, `decoding` after its first one.
    pub fn sequence_ended(
        &self,
        span: &Span,
        outcome: Outcome,
        tokens: u32,
        decoding: Option<Duration>,
    ) {
        let reason = match outcome {
            Outcome::Finished(reason) => reason.as_str(),
            Outcome::Aborted => "abort",
        };
        self.success.with_label_values(&[reason]).inc();
        if let Outcome::Finished(_) = outcome {
            self.generation_length.observe_in(span, tokens.into());
            if let Some(decoding) = decoding {
                let seconds = decoding.as_secs_f64();
                self.decode.observe_in(span, seconds);
                if tokens > 1 {
                    let each = seconds / f64::from(tokens - 1);
                    self.per_token.observe_in(span, each);
                }
            }
        }
    }

    /// All of a request's sequences finished.
    pub fn finished(&self, span: &Span, since_arrival: Duration) {
        self.e2e.observe_in(span, since_arrival.as_secs_f64());
    }

    pub fn failed(&self, error: &RequestError) {
        self.failures.with_label_values(&[error.label()]).inc();
    }

    /// Attached workers of a role, and those among them that take new requests.
    pub fn workers(&self, role: Role, attached: usize, available: usize) {
        for (gauge, count) in [(&self.workers, attached), (&self.available, available)] {
            gauge.with_label_values(&[role.as_str()]).set(count as i64);
        }
    }

    /// What admission allows.
    pub fn limits(&self, limits: &AdmissionLimits) {
        for (state, most) in [
            ("running", limits.max_running),
            ("waiting", limits.max_waiting),
        ] {
            self.limits.with_label_values(&[state]).set(most.into());
        }
    }

    pub fn indexed_blocks(&self, count: usize) {
        self.indexed_blocks.set(count as i64);
    }

    pub fn membership(&self, event: MembershipEvent) {
        let event = match event {
            MembershipEvent::Admitted => "admitted",
            MembershipEvent::Rejected => "rejected",
            MembershipEvent::Resync => "resync",
            MembershipEvent::Detached => "detached",
        };
        self.membership.with_label_values(&[event]).inc();
    }

    /// A sequence of `tokens` was given to workers; overlaps are expected cache hits in tokens.
    pub fn paired(&self, tokens: u32, decode_overlap: u32, prefill_overlap: Option<u32>) {
        self.paired_tokens.inc_by(tokens.into());
        let overlap = |role: Role, tokens: u32| {
            self.overlap_tokens
                .with_label_values(&[role.as_str()])
                .inc_by(tokens.into());
        };
        overlap(Role::Decode, decode_overlap);
        if let Some(tokens) = prefill_overlap {
            overlap(Role::Prefill, tokens);
        }
        let kind = if prefill_overlap.is_some() {
            "split"
        } else {
            "aggregated"
        };
        self.pairings.with_label_values(&[kind]).inc();
    }

    pub fn replayed(&self, reason: Reason) {
        self.replays.with_label_values(&[reason.label()]).inc();
    }

    pub fn prefill_retried(&self) {
        self.prefill_retries.inc();
    }

    /// A begun sequence went on under another model revision.
    pub fn changed_model(&self) {
        self.model_changes.inc();
    }

    pub fn unauthorized(&self, edge: Edge, reason: &'static str) {
        self.unauthorized
            .with_label_values(&[edge.label(), reason])
            .inc();
    }

    pub fn handshake_failed(&self, edge: Edge, failure: HandshakeFailure) {
        let reason = match failure {
            HandshakeFailure::Failed => "failed",
            HandshakeFailure::Timeout => "timeout",
        };
        self.handshake_failures
            .with_label_values(&[edge.label(), reason])
            .inc();
    }

    pub fn reloaded(&self, what: &'static str, adopted: bool) {
        let result = if adopted { "ok" } else { "error" };
        self.reloads.with_label_values(&[what, result]).inc();
    }

    /// What came in so far and how it was served.
    pub fn traffic(&self) -> Traffic {
        let refused = AdmissionFull::ALL.map(|full| {
            self.admission_rejections
                .with_label_values(&[full.label()])
                .get()
        });
        Traffic {
            arrived: self.arrivals.get(),
            refused: refused.iter().sum(),
            prompt_tokens: self.prompt_tokens.get(),
            cached_prompt_tokens: self.cached_prompt_tokens.get(),
            generated_tokens: self.generation_tokens.get(),
            updates: self.generation_updates.get(),
            queue_seconds: Distribution::of(&self.queue),
            first_token_seconds: Distribution::of(&self.ttft),
            inter_token_seconds: Distribution::of(&self.inter_token),
            prompt_length: Distribution::of(&self.prompt_length),
            generation_length: Distribution::of(&self.generation_length),
        }
    }
}

/// Sums over everything that came in at a router since it started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Traffic {
    /// Sequences that asked for a turn, refused ones included.
    pub arrived: u64,
    /// Requests refused because too much was waiting.
    pub refused: u64,
    /// Of those that got a turn.
    pub prompt_tokens: u64,
    pub cached_prompt_tokens: u64,
    pub generated_tokens: u64,
    /// In which these tokens came.
    pub updates: u64,
    pub queue_seconds: Distribution,
    pub first_token_seconds: Distribution,
    pub inter_token_seconds: Distribution,
    pub prompt_length: Distribution,
    pub generation_length: Distribution,
}

/// What a histogram has counted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Distribution {
    /// Upper, inclusive.
    pub bounds: Vec<f64>,
    /// One more than bounds; not cumulative.
    pub counts: Vec<u64>,
    pub sum: f64,
}

impl Distribution {
    fn of(histogram: &Histogram) -> Distribution {
        let (counts, sum) = histogram.counted();
        Distribution {
            bounds: histogram.bounds().to_vec(),
            counts,
            sum,
        }
    }
}
