//! `millrace.worker.v1.Prefill`: one prefill from its request to its answer.

use std::convert::Infallible;

use tokio::time::Instant;
use tonic::{Request, Response, Status};
use tracing::{Instrument as _, Span};

use millrace_engine::Kind;
use millrace_proto::worker::v1::{
    PrefillRequest, PrefillResponse,
    prefill_server::{Prefill, PrefillServer},
};
use millrace_telemetry::traces::{self, Parent};
use millrace_worker::{
    Compatibility,
    engine::{EngineHandle, RequestEvent},
    wire::token_to_wire,
};

use crate::{delivery::Outgoing, failure::Failure, metrics::PrefillMetrics, request::Job};

/// A prompt of 163 840 tokens is half a mebibyte; a bias for every token of a large vocabulary is
/// about two.
const MAX_REQUEST_BYTES: usize = 16 << 20;

pub struct Service {
    /// Nothing is ever reserved here.
    pub engine: EngineHandle<Infallible>,
    pub outgoing: Outgoing,
    pub compatibility: Compatibility,
    pub vocab_size: usize,
    pub metrics: PrefillMetrics,
    /// The worker's.
    pub span: Span,
}

impl Service {
    pub fn server(self) -> PrefillServer<Service> {
        PrefillServer::new(self).max_decoding_message_size(MAX_REQUEST_BYTES)
    }

    /// If this future is dropped (the decode worker hung up), so is the engine's request, and the
    /// delivery tells the receiver that it ends here.
    async fn answer(&self, job: Job, trace: &traces::Span) -> Result<PrefillResponse, Failure> {
        let arrived = Instant::now();
        self.compatibility.check(&job.compatibility)?;
        let Job { first_page, .. } = job;
        let kind = Kind::Prefill { first_page };
        let mut request = self
            .engine
            .submit(
                job.tokens,
                job.prompt_tokens,
                job.sampling,
                job.cache_salt,
                kind,
            )
            .await?;
        // The engine computes while the connection is made.
        let mut delivery = self.outgoing.open(job.grant).await?;
        let mut first_page_at = None;
        let mut began = arrived;
        loop {
            match request.next().await.ok_or(Failure::Stopped)? {
                RequestEvent::Started(at) => {
                    began = at.into();
                    let seconds = (began - arrived).as_secs_f64();
                    self.metrics.queue_seconds.observe_in(trace, seconds);
                    trace.past("queue", arrived.into_std(), began.into_std());
                }
                RequestEvent::PageFinished { index, page } => {
                    first_page_at.get_or_insert_with(Instant::now);
                    delivery.write(index - first_page, page).await?;
                }
                RequestEvent::Prefilled {
                    first,
                    draft,
                    cached_tokens,
                } => {
                    let sampled = Instant::now();
                    let seconds = (sampled - began).as_secs_f64();
                    self.metrics.prefill_seconds.observe_in(trace, seconds);
                    trace.past("compute", began.into_std(), sampled.into_std());
                    let written = delivery.finish().await?;
                    let seconds = sampled.elapsed().as_secs_f64();
                    self.metrics.exposed_seconds.observe_in(trace, seconds);
                    if let Some(first_page_at) = first_page_at {
                        let (from, until) = (first_page_at.into_std(), Instant::now().into_std());
                        trace.past("transfer", from, until);
                    }
                    trace.set("millrace.pages", written.pages as i64);
                    trace.set("millrace.cached_tokens", cached_tokens as i64);
                    tracing::debug!(pages = written.pages, cached_tokens, "prefilled");
                    return Ok(PrefillResponse {
                        first_token: Some(token_to_wire(first)),
                        draft,
                        cached_tokens: cached_tokens as u32,
                    });
                }
                RequestEvent::Failed { message } => return Err(Failure::Computation(message)),
                RequestEvent::Evicted => return Err(Failure::Evicted),
                RequestEvent::Output(_) => {
                    return Err(Failure::Engine("it went on past the first token"));
                }
                RequestEvent::Reserved(never) => match never {},
            }
        }
    }
}

#[tonic::async_trait]
impl Prefill for Service {
    async fn prefill(
        &self,
        request: Request<PrefillRequest>,
    ) -> Result<Response<PrefillResponse>, Status> {
        let trace = traces::Span::server("prefill", &Parent::of(request.metadata().as_ref()));
        let job = Job::from_wire(request.into_inner(), self.vocab_size)?;
        let span = tracing::error_span!(
            parent: &self.span,
            "request",
            request_id = job.request_id,
            trace_id = trace.trace_id()
        );
        async {
            match self.answer(job, &trace).await {
                Ok(response) => Ok(Response::new(response)),
                Err(failure) => {
                    tracing::warn!(error = %failure, "prefill failed");
                    let status = Status::from(failure);
                    let code = format_args!("{:?}", status.code());
                    trace.failed(code, &status.message());
                    Err(status)
                }
            }
        }
        .instrument(span)
        .await
    }
}
