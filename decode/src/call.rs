//! One request, from its arrival to its last token.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout, timeout_at};
use tonic::Status;
use tracing::{Instrument as _, Span};

use millrace_engine::{Kind, PageRef, TokenOutput};
use millrace_proto::worker::v1 as wire;
use millrace_transfer::GrantError;
use millrace_worker::{
    Compatibility,
    engine::{ActiveRequest, EngineHandle, RequestEvent},
    wire::{sampling_to_wire, token_from_wire},
};

use crate::{
    failure::{Failure, PrefillFailure},
    lease::PagesAtPeer,
    metrics::DecodeMetrics,
    peers::Peers,
    request::{Generation, PrefillWorker},
    update::{Timing, update},
};

/// What the engine's thread makes of pages that it reserves for a peer.
pub type Reserved = Result<PagesAtPeer, GrantError>;

/// What all calls share.
pub struct Context {
    pub engine: EngineHandle<Reserved>,
    pub peers: Peers,
    pub prefill_timeout: Duration,
    pub compatibility: Compatibility,
    pub vocab_size: usize,
    pub metrics: DecodeMetrics,
    /// The worker's.
    pub span: Span,
}

/// A request that the engine has. Dropping it, wherever it stands, aborts it there, cancels its
/// prefill, and takes all of its pages back.
pub struct Call {
    context: Arc<Context>,
    request: ActiveRequest<Reserved>,
    /// The prefill to ask for once pages are reserved.
    prefill: Option<Prefill>,
    deadline: Option<Instant>,
    arrived: Instant,
    reserved: Option<Instant>,
    finished: bool,
    span: Span,
}

struct Prefill {
    worker: PrefillWorker,
    /// Complete but for what the reservation decides: grant and first page.
    request: wire::PrefillRequest,
}

/// What a prefill worker gave for the pages it was lent.
struct Prefilled {
    pages: Vec<PageRef>,
    first: TokenOutput,
    draft: Option<u32>,
}

impl Call {
    /// Submits the request.
    pub async fn start(
        context: Arc<Context>,
        generation: Generation,
        deadline: Option<Instant>,
    ) -> Result<Call, Failure> {
        let arrived = Instant::now();
        let span =
            tracing::info_span!(parent: &context.span, "request", request = generation.request_id);
        let prefill = Prefill::plan(&generation, &context.compatibility);
        let kind = match prefill {
            Some(_) => Kind::Decode,
            None => Kind::Whole,
        };
        let request = context
            .engine
            .submit(
                generation.tokens,
                generation.prompt_tokens,
                generation.sampling,
                generation.cache_salt,
                kind,
            )
            .instrument(span.clone())
            .await?;
        Ok(Call {
            context,
            request,
            prefill,
            deadline,
            arrived,
            reserved: None,
            finished: false,
            span,
        })
    }

    /// The next update and the call that goes on after it; `None` after the last one.
    pub async fn next(mut self) -> Result<Option<(wire::GenerateUpdate, Call)>, Status> {
        if self.finished {
            return Ok(None);
        }
        let span = self.span.clone();
        match self.until_deadline().instrument(span.clone()).await {
            Ok(update) => Ok(Some((update, self))),
            Err(failure) => {
                span.in_scope(|| tracing::warn!(error = %failure, "request failed"));
                Err(failure.into())
            }
        }
    }

    async fn until_deadline(&mut self) -> Result<wire::GenerateUpdate, Failure> {
        match self.deadline {
            None => self.advance().await,
            Some(deadline) => timeout_at(deadline, self.advance())
                .await
                .unwrap_or(Err(Failure::Deadline)),
        }
    }

    /// Follows the engine until there is something to tell.
    async fn advance(&mut self) -> Result<wire::GenerateUpdate, Failure> {
        loop {
            match self.request.next().await.ok_or(Failure::Stopped)? {
                RequestEvent::Reserved(pages) => {
                    self.reserved = Some(Instant::now());
                    let filled = self.prefill(pages?).await?;
                    self.request
                        .prefilled(filled.pages, filled.first, filled.draft);
                }
                RequestEvent::Output(output) => {
                    self.finished = output.finish.is_some();
                    return Ok(update(output, || self.timing()));
                }
                RequestEvent::Failed { message } => return Err(Failure::Computation(message)),
                RequestEvent::PageFinished { .. } | RequestEvent::Prefilled { .. } => {
                    return Err(Failure::Engine("it prefilled for a peer unasked"));
                }
            }
        }
    }

    /// Has the prefill worker fill `pages`. Whatever goes wrong, and also if this future is
    /// dropped, they are taken back.
    async fn prefill(&mut self, pages: PagesAtPeer) -> Result<Prefilled, Failure> {
        let Prefill { worker, request } = self
            .prefill
            .take()
            .ok_or(Failure::Engine("it reserved pages for no peer"))?;
        let request = wire::PrefillRequest {
            grant: Some(wire::WriteGrant {
                descriptor: pages.descriptor().to_vec(),
            }),
            first_page: pages.first_page() as u32,
            ..request
        };
        let context = self.context.clone();
        let answer = tokio::select! {
            answer = context.ask(&worker, request, self.deadline) => answer,
            // Nothing can happen to the request meanwhile, but to the engine.
            _ = self.request.next() => return Err(Failure::Stopped),
        };
        let filled = answer.and_then(|answer| context.accept(answer, pages));
        filled.map_err(|failure| context.blame(worker, failure, self.deadline))
    }

    /// At the first token.
    fn timing(&self) -> Timing {
        let prefilling = self.reserved.unwrap_or(self.arrived);
        let timing = Timing {
            queue_seconds: (prefilling - self.arrived).as_secs_f64(),
            prefill_seconds: prefilling.elapsed().as_secs_f64(),
        };
        let metrics = &self.context.metrics;
        metrics.queue_seconds.observe(timing.queue_seconds);
        metrics.prefill_seconds.observe(timing.prefill_seconds);
        timing
    }
}

impl Prefill {
    fn plan(generation: &Generation, compatibility: &Compatibility) -> Option<Prefill> {
        let worker = generation.prefill.clone()?;
        let request = wire::PrefillRequest {
            request_id: generation.request_id.clone(),
            token_ids: generation.tokens.clone(),
            prompt_tokens: generation.prompt_tokens as u32,
            sampling: Some(sampling_to_wire(&generation.sampling)),
            compatibility: Some(compatibility.clone().into()),
            cache_salt: generation.cache_salt.clone(),
            grant: None,
            first_page: 0,
        };
        Some(Prefill { worker, request })
    }
}

impl Context {
    /// Calls the prefill worker. It answers when every page has been written and acknowledged.
    async fn ask(
        &self,
        worker: &PrefillWorker,
        request: wire::PrefillRequest,
        deadline: Option<Instant>,
    ) -> Result<wire::PrefillResponse, PrefillFailure> {
        let mut client = self.peers.client(&worker.address)?;
        let mut request = tonic::Request::new(request);
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let patience = self.prefill_timeout.min(left.unwrap_or(Duration::MAX));
        // The header also ends the call on our side, with a vaguer error: let it come second.
        request.set_timeout(patience + Duration::from_secs(1));
        match timeout(patience, client.prefill(request)).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(PrefillFailure::Call(Box::new(status))),
            Err(_) => Err(PrefillFailure::Timeout(patience)),
        }
    }

    /// Another prefill worker may do better, unless it was the caller's time that ran out.
    fn blame(
        &self,
        worker: PrefillWorker,
        failure: PrefillFailure,
        deadline: Option<Instant>,
    ) -> Failure {
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Failure::Deadline;
        }
        let failures = &self.metrics.prefill_failures;
        failures.with_label_values(&[failure.label()]).inc();
        self.peers.forget(&worker.address);
        Failure::Prefill { worker, failure }
    }

    /// Checks the answer and ends the lease.
    fn accept(
        &self,
        answer: wire::PrefillResponse,
        pages: PagesAtPeer,
    ) -> Result<Prefilled, PrefillFailure> {
        let first = answer.first_token.ok_or(PrefillFailure::NoToken)?;
        for token in [Some(first.id), answer.draft].into_iter().flatten() {
            if token as usize >= self.vocab_size {
                return Err(PrefillFailure::UnknownToken {
                    token,
                    vocab_size: self.vocab_size,
                });
            }
        }
        Ok(Prefilled {
            pages: pages.complete()?,
            first: token_from_wire(first),
            draft: answer.draft,
        })
    }
}
