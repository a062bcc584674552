//! One request, from its arrival to its last token.

use std::sync::Arc;

use tokio::time::{Instant, timeout_at};
use tonic::Status;
use tracing::{Instrument as _, Span};

use millrace_engine::Kind;
use millrace_proto::worker::v1 as wire;
use millrace_telemetry::traces;
use millrace_worker::engine::{ActiveRequest, RequestEvent};

use crate::{
    context::{Context, Reserved},
    failure::Failure,
    lease::PagesAtPeer,
    remote::{Filled, RemotePrefill},
    request::Generation,
    update::{Timing, update},
};

/// A request that the engine has. Dropping it, wherever it stands, aborts it there, cancels its
/// prefill, and takes all of its pages back.
pub struct Call {
    context: Arc<Context>,
    request: ActiveRequest<Reserved>,
    /// The prefill to ask for once pages are reserved.
    prefill: Option<RemotePrefill>,
    deadline: Option<Instant>,
    arrived: Instant,
    /// When its wait ended: its rows were computed, or its pages reserved.
    began: Option<Instant>,
    /// A prefill worker was asked.
    remote: bool,
    /// When its first token was there, until the next one is.
    first_token: Option<Instant>,
    /// When its first token was there.
    generating: Option<Instant>,
    finished: bool,
    span: Span,
    trace: traces::Span,
}

impl Call {
    /// Submits the request.
    pub async fn start(
        context: Arc<Context>,
        generation: Generation,
        deadline: Option<Instant>,
        trace: traces::Span,
    ) -> Result<Call, Failure> {
        let arrived = Instant::now();
        let span = tracing::error_span!(
            parent: &context.span,
            "request",
            request_id = generation.request_id,
            trace_id = trace.trace_id()
        );
        let prefill = RemotePrefill::plan(&generation, &context.compatibility);
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
            began: None,
            remote: false,
            first_token: None,
            generating: None,
            finished: false,
            span,
            trace,
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
                let status = Status::from(failure);
                let code = format_args!("{:?}", status.code());
                self.trace.failed(code, &status.message());
                Err(status)
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
                RequestEvent::Started(at) => self.began = Some(at.into()),
                RequestEvent::Reserved(pages) => {
                    self.began = Some(Instant::now());
                    self.remote = true;
                    let filled = self.prefill(pages?).await?;
                    self.request
                        .prefilled(filled.pages, filled.first, filled.draft);
                }
                RequestEvent::Output(output) => {
                    self.finished = output.finish.is_some();
                    if let Some(first) = self.first_token.take() {
                        let seconds = first.elapsed().as_secs_f64();
                        let metrics = &self.context.metrics;
                        metrics.first_step_seconds.observe_in(&self.trace, seconds);
                    }
                    let begins = output.start.is_some();
                    let timing = begins.then(|| self.timing());
                    if let (true, Some(first)) = (self.finished, self.generating) {
                        let (from, until) = (first.into_std(), Instant::now().into_std());
                        self.trace.past("generate", from, until);
                    }
                    return Ok(update(output, timing));
                }
                RequestEvent::Failed { message } => return Err(Failure::Computation(message)),
                RequestEvent::Evicted => return Err(Failure::Evicted),
                RequestEvent::PageFinished { .. } | RequestEvent::Prefilled { .. } => {
                    return Err(Failure::Engine("it prefilled for a peer unasked"));
                }
            }
        }
    }

    /// Has the prefill worker fill `pages`. Whatever goes wrong, and also if this future is
    /// dropped, they are taken back.
    async fn prefill(&mut self, pages: PagesAtPeer) -> Result<Filled, Failure> {
        let prefill = self.prefill.take();
        let prefill = prefill.ok_or(Failure::Engine("it reserved pages for no peer"))?;
        let context = self.context.clone();
        tokio::select! {
            filled = prefill.run(&context, pages, self.deadline, &self.trace) => filled,
            // Nothing can happen to the request meanwhile, but to the engine.
            event = self.request.next() => Err(match event {
                Some(RequestEvent::Evicted) => Failure::Evicted,
                _ => Failure::Stopped,
            }),
        }
    }

    /// At the first token.
    fn timing(&mut self) -> Timing {
        let prefilling = self.began.unwrap_or(self.arrived);
        let now = Instant::now();
        (self.first_token, self.generating) = (Some(now), Some(now));
        let timing = Timing {
            queue_seconds: (prefilling - self.arrived).as_secs_f64(),
            prefill_seconds: (now - prefilling).as_secs_f64(),
        };
        let (arrived, prefilling) = (self.arrived.into_std(), prefilling.into_std());
        self.trace.past("queue", arrived, prefilling);
        // That of a peer is its own to tell.
        if !self.remote {
            self.trace.past("prefill", prefilling, now.into_std());
        }
        let metrics = &self.context.metrics;
        let trace = &self.trace;
        metrics
            .queue_seconds
            .observe_in(trace, timing.queue_seconds);
        let prefill_seconds = match self.remote {
            true => &metrics.remote_prefill_seconds,
            false => &metrics.local_prefill_seconds,
        };
        prefill_seconds.observe_in(trace, timing.prefill_seconds);
        timing
    }
}
