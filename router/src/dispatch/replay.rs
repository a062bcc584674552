//! One sequence from its first attempt to its last token, whichever workers it takes.
//!
//! ```text
//! next:  deadline around
//!   advance:  an attempt is running?  yes: its next update
//!                                     no:  place (wait for workers) -> start an attempt
//!             it failed?  recover: is there patience left? go on from the tokens so far
//! ```
//!
//! A new attempt is given the prompt and every token that was delivered, under the same seed, so
//! the client's stream goes on without a seam. For that it needs the same weights: another revision
//! of the model takes a begun sequence only when no worker of its own is left.

mod search;

use std::sync::Arc;
use std::time::Instant;

use futures::{Stream, stream};
use millrace_telemetry::traces::Span;

use super::Dispatcher;
use super::attempt::Attempt;
use super::failure::Failure;
use super::job::{End, Job, Update};
use super::patience::Patience;
use super::placement::Placement;
use super::wire;
use crate::api::{FinishReason, RequestError};

/// The updates of one sequence. Ends after the update with an `end`, or with an error. Dropping it
/// cancels the sequence on the workers.
pub fn run(
    dispatcher: Arc<Dispatcher>,
    job: Job,
) -> impl Stream<Item = Result<Update, RequestError>> + Send {
    stream::try_unfold(Run::new(dispatcher, job), Run::next)
}

struct Run {
    dispatcher: Arc<Dispatcher>,
    job: Job,
    attempt: Option<Attempt>,
    /// Tokens given to the client so far.
    output: Vec<u32>,
    /// The model revision that the last of them is of. `None` before the first.
    model: Option<String>,
    delivered_first: bool,
    ended: bool,
    patience: Patience,
}

impl Run {
    fn new(dispatcher: Arc<Dispatcher>, job: Job) -> Run {
        Run {
            patience: Patience::new(dispatcher.limits),
            dispatcher,
            job,
            attempt: None,
            output: Vec::new(),
            model: None,
            delivered_first: false,
            ended: false,
        }
    }

    async fn next(mut self) -> Result<Option<(Update, Run)>, RequestError> {
        if self.ended {
            return Ok(None);
        }
        let update = match self.job.deadline {
            None => self.advance().await?,
            Some(at) => match tokio::time::timeout_at(at.into(), self.advance()).await {
                Ok(update) => update?,
                Err(_) if self.output.is_empty() => {
                    return Err(RequestError::Deadline {
                        stage: "before the first token",
                    });
                }
                Err(_) => {
                    return Err(RequestError::Deadline {
                        stage: "during generation",
                    });
                }
            },
        };
        if update.end.is_some() {
            self.ended = true;
            // The worker is done with it: nothing is left to cancel.
            self.attempt = None;
        }
        Ok(Some((update, self)))
    }

    /// The next update, by as many attempts as it takes.
    async fn advance(&mut self) -> Result<Update, RequestError> {
        loop {
            if let Some(attempt) = &mut self.attempt {
                match attempt.next().await {
                    Ok(update) => return Ok(self.deliver(update)),
                    Err(failure) => self.fail(failure)?,
                }
            } else if self.output.len() >= self.job.sampling.max_tokens as usize {
                // The last worker died between its last token and saying that it was the last.
                let end = End {
                    reason: FinishReason::Length,
                    stop_token: None,
                };
                return Ok(Update {
                    end: Some(end),
                    ..Update::default()
                });
            } else {
                self.start().await?;
            }
        }
    }

    fn fail(&mut self, failure: Failure) -> Result<(), RequestError> {
        match self.attempt.take() {
            Some(attempt) => self.recover(attempt.placement, &attempt.span, failure),
            None => Ok(()),
        }
    }

    fn deliver(&mut self, update: millrace_proto::worker::v1::GenerateUpdate) -> Update {
        let update = wire::update(update, !std::mem::replace(&mut self.delivered_first, true));
        if !update.tokens.is_empty() {
            self.patience.progress();
            self.note_model();
            self.output
                .extend(update.tokens.iter().map(|token| token.id));
        }
        update
    }

    /// Tokens came from the running attempt.
    fn note_model(&mut self) {
        let Some(attempt) = &self.attempt else {
            return;
        };
        let placement = &attempt.placement;
        let now = &placement.model_revision;
        match &self.model {
            Some(before) if before == now => return,
            Some(before) => {
                tracing::warn!(
                    request_id = self.job.request_id,
                    decode = placement.decode.worker_id,
                    before,
                    now,
                    output = self.output.len(),
                    "no worker of its model revision is left; the sequence goes on under another"
                );
                self.dispatcher.metrics.changed_model();
            }
            None => {}
        }
        self.model = Some(now.clone());
    }

    /// Begins an attempt, or learns from its failure.
    async fn start(&mut self) -> Result<(), RequestError> {
        let asked = Instant::now();
        let placement = self.place().await?;
        self.job.span.past("pair", asked, Instant::now());
        let mut request_id = self.job.request_id.clone();
        if self.patience.attempts() > 0 {
            // Unique, so that a worker that still tears down an earlier attempt is not confused.
            request_id.push_str(&format!("-r{}", self.patience.attempts()));
        }
        self.patience.attempt();
        tracing::debug!(
            request_id,
            decode = placement.decode.worker_id,
            prefill = placement.prefill.as_ref().map(|p| p.worker_id.as_str()),
            output = self.output.len(),
            "attempt"
        );
        // A replay needs no prompt log-probs that were delivered before.
        let prompt_logprobs = self
            .job
            .sampling
            .prompt_logprobs
            .filter(|_| !self.delivered_first);
        let request = wire::request(
            &self.job,
            request_id,
            &self.output,
            placement.prefill.as_ref(),
            prompt_logprobs,
        );
        let span = self.job.span.call("decode");
        span.set_text("millrace.decode.worker", &placement.decode.worker_id);
        if let Some(prefill) = &placement.prefill {
            span.set_text("millrace.prefill.worker", &prefill.worker_id);
        }
        match Attempt::call(&placement, request, self.job.deadline, &span).await {
            Ok(updates) => self.attempt = Some(Attempt::new(placement, updates, span)),
            Err(failure) => self.recover(placement, &span, failure)?,
        }
        Ok(())
    }

    /// Prepares the next attempt after a failed one.
    ///
    /// # Errors
    /// The failure is final, or there were too many.
    fn recover(
        &mut self,
        placement: Placement,
        span: &Span,
        failure: Failure,
    ) -> Result<(), RequestError> {
        let Placement {
            decode, prefill, ..
        } = &placement;
        let prefill_id = prefill.as_ref().map(|p| p.worker_id.as_str());
        let attempts = self.patience.attempts();
        tracing::warn!(decode = decode.worker_id, prefill = prefill_id, attempts, %failure, "attempt failed");
        span.failed(failure.label(), &failure);
        let prefill = prefill.as_ref().map(|p| p.worker);
        if !self
            .patience
            .failed(&failure, decode.worker, prefill, Instant::now())
        {
            return Err(failure.after(attempts));
        }
        match failure {
            Failure::Prefill { .. } => self.dispatcher.metrics.prefill_retried(),
            Failure::Decode { reason, .. } => self.dispatcher.metrics.replayed(reason),
            Failure::Final(error) => return Err(error),
        }
        Ok(())
    }
}
