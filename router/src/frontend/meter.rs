//! Times and counts one request and its sequences, in metrics and in the request's span.

use std::sync::Arc;
use std::time::Instant;

use millrace_telemetry::traces::{Span, StringValue, Value};

use crate::api::{Event, FinishReason, RequestError};
use crate::dispatch::Update;
use crate::metrics::{Metrics, Outcome};

/// One request, from its arrival.
#[derive(Clone)]
pub struct RequestMeter {
    metrics: Arc<Metrics>,
    span: Span,
    arrived: Instant,
}

impl RequestMeter {
    pub fn arrived(metrics: Arc<Metrics>, span: Span) -> RequestMeter {
        RequestMeter {
            metrics,
            span,
            arrived: Instant::now(),
        }
    }

    pub fn span(&self) -> &Span {
        &self.span
    }

    pub fn arrival(&self) -> Instant {
        self.arrived
    }

    /// Its turn came, after waiting since `asked`.
    pub fn begun(&self, prompt_tokens: usize, asked: Instant) {
        let now = Instant::now();
        self.metrics.begun(&self.span, prompt_tokens, now - asked);
        self.span.past("queue", asked, now);
        self.span
            .set("gen_ai.usage.input_tokens", prompt_tokens as i64);
    }

    pub fn first_token(&self) {
        let since_arrival = self.arrived.elapsed();
        self.metrics.first_token(&self.span, since_arrival);
        self.span.set(
            "gen_ai.latency.time_to_first_token",
            since_arrival.as_secs_f64(),
        );
    }

    /// `generated` tokens in all; why each choice ended.
    pub fn finished(&self, generated: usize, reasons: &[FinishReason]) {
        self.metrics.finished(&self.span, self.arrived.elapsed());
        self.span
            .set("gen_ai.usage.output_tokens", generated as i64);
        let reasons = reasons.iter().map(|reason| reason.as_str().into());
        self.span.set(
            "gen_ai.response.finish_reasons",
            Value::Array(reasons.collect::<Vec<StringValue>>().into()),
        );
    }

    pub fn failed(&self, error: &RequestError) {
        self.metrics.failed(error);
        self.span.failed(error.label(), error);
    }

    /// One of its sequences begins.
    pub fn sequence(&self) -> SequenceMeter {
        SequenceMeter {
            metrics: Arc::clone(&self.metrics),
            span: self.span.clone(),
            first: None,
            last: None,
            tokens: 0,
            ended: false,
        }
    }
}

/// One sequence. Dropped before its end, it counts as aborted.
pub struct SequenceMeter {
    metrics: Arc<Metrics>,
    span: Span,
    first: Option<Instant>,
    last: Option<Instant>,
    tokens: u32,
    ended: bool,
}

impl SequenceMeter {
    /// The workers sent something.
    pub fn received(&self, update: &Update) {
        if !update.tokens.is_empty() {
            self.metrics.updated();
        }
        if let Some(first) = &update.first {
            let prefill = first.timing.map(|t| t.prefill);
            self.metrics
                .prompt_done(&self.span, first.cached_tokens, prefill);
        }
    }

    /// It goes on to the client.
    pub fn shown(&mut self, event: &Event) {
        let now = Instant::now();
        let count = event.token_ids.len();
        if count > 0 {
            let before = self.last.replace(now);
            self.first.get_or_insert(now);
            self.tokens += count as u32;
            self.metrics
                .tokens(&self.span, count, before.map(|before| now - before));
        }
        if let Some(finish) = &event.finish {
            let decoding = self.first.map(|first| now - first);
            self.ended = true;
            let outcome = Outcome::Finished(finish.reason);
            self.metrics
                .sequence_ended(&self.span, outcome, self.tokens, decoding);
        }
    }

    /// It failed: that is counted with the request, not as aborted.
    pub fn failed(&mut self) {
        self.ended = true;
    }
}

impl Drop for SequenceMeter {
    fn drop(&mut self) {
        if !self.ended {
            self.metrics
                .sequence_ended(&self.span, Outcome::Aborted, self.tokens, None);
            self.span.failed("aborted", &"the client went away");
        }
    }
}
