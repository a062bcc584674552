//! One call of one decode worker.

use std::time::Instant;

use millrace_proto::worker::v1 as proto;
use millrace_telemetry::traces::Span;
use proto::decode_client::DecodeClient;
use tonic::{Request, Streaming};

use super::failure::{Failure, Reason, classify};
use super::placement::Placement;

/// Log-probs of a long prompt come in one update.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// A running call. Dropping it cancels the sequence on both workers.
pub struct Attempt {
    pub placement: Placement,
    pub span: Span,
    updates: Streaming<proto::GenerateUpdate>,
}

impl Attempt {
    /// Sends the request to the placement's decode worker, which hears of the deadline and the span too.
    ///
    /// # Errors
    /// The worker refused it or was not reached. The placement stays the caller's to judge.
    pub async fn call(
        placement: &Placement,
        request: proto::GenerateRequest,
        deadline: Option<Instant>,
        span: &Span,
    ) -> Result<Streaming<proto::GenerateUpdate>, Failure> {
        let mut request = Request::new(request);
        span.send(request.metadata_mut().as_mut());
        if let Some(at) = deadline {
            request.set_timeout(at.saturating_duration_since(Instant::now()));
        }
        let mut client = DecodeClient::new(placement.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let mut evicted = placement.evicted.clone();
        tokio::select! {
            answer = client.generate(request) => match answer {
                Ok(response) => Ok(response.into_inner()),
                Err(status) => Err(classify(&status).before_start()),
            },
            () = evicted.wait() => Err(left_out()),
        }
    }

    /// A call that was accepted.
    pub fn new(
        placement: Placement,
        updates: Streaming<proto::GenerateUpdate>,
        span: Span,
    ) -> Attempt {
        Attempt {
            placement,
            span,
            updates,
        }
    }

    /// The worker's next update.
    ///
    /// # Errors
    /// A stream that ends before it said why is a failure too.
    pub async fn next(&mut self) -> Result<proto::GenerateUpdate, Failure> {
        let update = tokio::select! {
            // What has come already is still good.
            biased;
            update = self.updates.message() => update,
            () = self.placement.evicted.wait() => return Err(left_out()),
        };
        let update = match update {
            Ok(Some(update)) => update,
            Ok(None) => {
                let message = "the worker's stream ended too early".to_owned();
                return Err(Failure::Decode {
                    reason: Reason::Truncated,
                    message,
                });
            }
            Err(status) => return Err(classify(&status)),
        };
        if !update.tokens.is_empty() {
            // With the first token the prefill worker is done with this sequence.
            self.placement.prefill = None;
        }
        Ok(update)
    }
}

fn left_out() -> Failure {
    Failure::Decode {
        reason: Reason::Evicted,
        message: "the worker's group went on without it".to_owned(),
    }
}
