//! A prefill at another worker: ask, check the answer, end the lease.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use millrace_engine::{PageRef, TokenOutput};
use millrace_proto::worker::v1 as wire;
use millrace_telemetry::traces;
use millrace_worker::{
    Compatibility,
    wire::{sampling_to_wire, token_from_wire},
};

use crate::{
    context::Context,
    failure::{Failure, PrefillFailure},
    lease::PagesAtPeer,
    request::{Generation, PrefillWorker},
};

/// How much later than here the worker learns that nobody waits for it any more.
const GRACE: Duration = Duration::from_secs(1);

pub struct RemotePrefill {
    worker: PrefillWorker,
    /// Complete but for what the reservation decides: grant and first page.
    request: wire::PrefillRequest,
}

/// What a prefill worker gave for the pages it was lent.
pub struct Filled {
    pub pages: Vec<PageRef>,
    pub first: TokenOutput,
    pub draft: Option<u32>,
}

impl RemotePrefill {
    /// For a request whose router named a prefill worker.
    pub fn plan(generation: &Generation, compatibility: &Compatibility) -> Option<RemotePrefill> {
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
        Some(RemotePrefill { worker, request })
    }

    /// Has the worker fill `pages`. They are taken back on every failure, and if this future is
    /// dropped.
    pub async fn run(
        self,
        context: &Context,
        pages: PagesAtPeer,
        deadline: Option<Instant>,
        trace: &traces::Span,
    ) -> Result<Filled, Failure> {
        let RemotePrefill { worker, request } = self;
        let span = trace.call("prefill");
        span.set_text("millrace.prefill.worker", &worker.id);
        let request = wire::PrefillRequest {
            grant: Some(wire::WriteGrant {
                descriptor: pages.descriptor().to_vec(),
            }),
            first_page: pages.first_page() as u32,
            ..request
        };
        let answer = ask(context, &worker, request, deadline, &span).await;
        let filled = answer.and_then(|answer| accept(answer, pages, context.vocab_size));
        filled
            .inspect_err(|failure| span.failed(failure.label(), failure))
            .map_err(|failure| blame(context, worker, failure, deadline))
    }
}

/// Calls the prefill worker. It answers when every page has been written and acknowledged.
async fn ask(
    context: &Context,
    worker: &PrefillWorker,
    request: wire::PrefillRequest,
    deadline: Option<Instant>,
    span: &traces::Span,
) -> Result<wire::PrefillResponse, PrefillFailure> {
    let mut client = context.peers.client(&worker.address)?;
    let mut request = tonic::Request::new(request);
    span.send(request.metadata_mut().as_mut());
    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    let patience = context.prefill_timeout.min(left.unwrap_or(Duration::MAX));
    // The header would end the call on this side, too, with a vaguer error.
    request.set_timeout(patience + GRACE);
    match timeout(patience, client.prefill(request)).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(PrefillFailure::Call(Box::new(status))),
        Err(_) => Err(PrefillFailure::Timeout(patience)),
    }
}

/// Checks the answer and ends the lease.
fn accept(
    answer: wire::PrefillResponse,
    pages: PagesAtPeer,
    vocab_size: usize,
) -> Result<Filled, PrefillFailure> {
    let first = answer.first_token.ok_or(PrefillFailure::NoToken)?;
    for token in [Some(first.id), answer.draft].into_iter().flatten() {
        if token as usize >= vocab_size {
            return Err(PrefillFailure::UnknownToken { token, vocab_size });
        }
    }
    Ok(Filled {
        pages: pages.complete()?,
        first: token_from_wire(first),
        draft: answer.draft,
    })
}

/// Another prefill worker may do better, unless it was the caller's time that ran out.
fn blame(
    context: &Context,
    worker: PrefillWorker,
    failure: PrefillFailure,
    deadline: Option<Instant>,
) -> Failure {
    if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
        return Failure::Deadline;
    }
    let failures = &context.metrics.prefill_failures;
    failures.with_label_values(&[failure.label()]).inc();
    context.peers.forget(&worker.address);
    Failure::Prefill { worker, failure }
}
