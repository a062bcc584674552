//! Times and counts one request and its sequences.

use std::sync::Arc;
use std::time::Instant;

use crate::api::{Event, RequestError};
use crate::dispatch::Update;
use crate::metrics::{Metrics, Outcome};

/// One request, from its arrival.
#[derive(Clone)]
pub struct RequestMeter {
    metrics: Arc<Metrics>,
    arrived: Instant,
}

impl RequestMeter {
    pub fn arrived(metrics: Arc<Metrics>) -> RequestMeter {
        RequestMeter {
            metrics,
            arrived: Instant::now(),
        }
    }

    pub fn arrival(&self) -> Instant {
        self.arrived
    }

    /// Its turn came, after waiting since `asked`.
    pub fn begun(&self, prompt_tokens: usize, asked: Instant) {
        self.metrics.begun(prompt_tokens, asked.elapsed());
    }

    pub fn first_token(&self) {
        self.metrics.first_token(self.arrived.elapsed());
    }

    pub fn finished(&self) {
        self.metrics.finished(self.arrived.elapsed());
    }

    pub fn failed(&self, error: &RequestError) {
        self.metrics.failed(error);
    }

    /// One of its sequences begins.
    pub fn sequence(&self) -> SequenceMeter {
        SequenceMeter {
            metrics: Arc::clone(&self.metrics),
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
            self.metrics
                .prompt_done(first.cached_tokens, first.timing.map(|t| t.prefill));
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
                .tokens(count, before.map(|before| now - before));
        }
        if let Some(finish) = &event.finish {
            let decoding = self.first.map(|first| now - first);
            self.ended = true;
            self.metrics
                .sequence_ended(Outcome::Finished(finish.reason), self.tokens, decoding);
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
                .sequence_ended(Outcome::Aborted, self.tokens, None);
        }
    }
}
