//! A validated request to its stream of events: wait for a turn, run the choices, merge them.

use std::future::ready;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use futures::Stream;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use tracing::Span;

use super::choice::{Choice, Style};
use super::meter::{RequestMeter, SequenceMeter};
use super::model::ServedModel;
use crate::api::{Event, EventStream, FinishReason, RequestError};
use crate::dispatch::{Dispatcher, Job, Permit, Sampling, Turn, Update};

/// A request that is ready to run.
pub struct Plan {
    pub model: Arc<ServedModel>,
    pub dispatcher: Arc<Dispatcher>,
    pub request_id: String,
    pub prompt: Arc<[u32]>,
    /// Of the first choice; the others count its seed up.
    pub sampling: Sampling,
    pub choices: u32,
    pub style: Style,
    pub cache_salt: Arc<str>,
    pub deadline: Option<Instant>,
    /// When it asked for its turn.
    pub asked: Instant,
    pub meter: RequestMeter,
}

/// The events of all choices, ending after an error. Nothing happens until it is polled; dropping
/// it gives up the turn and cancels the choices.
pub fn generate(plan: Plan, turn: Turn) -> EventStream {
    // Of the highest level, so that no filter takes the id away from the lines it lets through.
    let span = tracing::error_span!(
        "request",
        request_id = plan.request_id,
        trace_id = plan.meter.span().trace_id()
    );
    let watch = Watch {
        meter: plan.meter.clone(),
        generated: 0,
        reasons: Vec::new(),
        remaining: plan.choices,
        permit: None,
        failed: false,
    };
    let events = stream::once(begin(plan, turn))
        .try_flatten()
        .scan(watch, |watch, step| ready(watch.see(step)))
        .filter_map(ready);
    Box::pin(InSpan {
        events: Box::pin(events),
        span,
    })
}

/// What passes through a request's stream.
enum Step {
    Turn(Permit),
    Event(Event),
}

/// Waits for the turn, then runs the first choice up to its first token and all of them from there:
/// by then the prompt is in a prefix cache, so it is computed once and not once a choice.
async fn begin(
    plan: Plan,
    turn: Turn,
) -> Result<impl Stream<Item = Result<Step, RequestError>>, RequestError> {
    let permit = turn.come(plan.deadline).await?;
    plan.meter.begun(plan.prompt.len(), plan.asked);
    tracing::debug!(
        prompt_tokens = plan.prompt.len(),
        choices = plan.choices,
        "begun"
    );

    let mut first = sequence(&plan, 0);
    let mut head = vec![Ok(Step::Turn(permit))];
    while let Some(event) = first.next().await {
        let event = event?;
        let begun = !event.token_ids.is_empty() || event.finish.is_some();
        head.push(Ok(Step::Event(event)));
        if begun {
            break;
        }
    }
    plan.meter.first_token();
    let others = (1..plan.choices).map(|index| sequence(&plan, index));
    let choices = stream::select_all(std::iter::once(first).chain(others));
    Ok(stream::iter(head).chain(choices.map_ok(Step::Event)))
}

/// Ends the request's accounts with its last event, and its stream with the first error.
struct Watch {
    meter: RequestMeter,
    /// Tokens, of all choices.
    generated: usize,
    /// Why those ended that did.
    reasons: Vec<FinishReason>,
    /// Choices that have not finished.
    remaining: u32,
    permit: Option<Permit>,
    failed: bool,
}

impl Watch {
    /// The item to pass on; `None` ends the stream.
    fn see(
        &mut self,
        step: Result<Step, RequestError>,
    ) -> Option<Option<Result<Event, RequestError>>> {
        if self.failed {
            return None;
        }
        match step {
            Ok(Step::Turn(permit)) => {
                self.permit = Some(permit);
                Some(None)
            }
            Ok(Step::Event(event)) => {
                self.generated += event.token_ids.len();
                self.remaining -= u32::from(event.finish.is_some());
                self.reasons
                    .extend(event.finish.as_ref().map(|finish| finish.reason));
                if self.remaining == 0 {
                    self.permit = None;
                    self.meter.finished(self.generated, &self.reasons);
                }
                Some(Some(Ok(event)))
            }
            Err(error) => {
                tracing::info!(%error, "failed");
                self.meter.failed(&error);
                self.failed = true;
                self.permit = None;
                Some(Some(Err(error)))
            }
        }
    }
}

/// The events of one choice.
fn sequence(plan: &Plan, index: u32) -> BoxStream<'static, Result<Event, RequestError>> {
    let Plan {
        model,
        style,
        prompt,
        ..
    } = plan;
    let mut sampling = plan.sampling.clone();
    sampling.seed = sampling.seed.wrapping_add(index.into());
    let mut request_id = plan.request_id.clone();
    if index > 0 {
        request_id.push_str(&format!("-c{index}"));
        // The prompt is the same for all; its log-probs go with choice 0.
        sampling.prompt_logprobs = None;
    }
    let job = Job {
        request_id,
        prompt: Arc::clone(prompt),
        sampling,
        cache_salt: Arc::clone(&plan.cache_salt),
        deadline: plan.deadline,
        span: plan.meter.span().clone(),
    };
    let sequence = Sequence {
        updates: Some(plan.dispatcher.run(job).boxed()),
        choice: Choice::new(Arc::clone(model), style.clone(), index, Arc::clone(prompt)),
        meter: plan.meter.sequence(),
    };
    stream::try_unfold(sequence, Sequence::next).boxed()
}

struct Sequence {
    /// `None` once the choice has finished, which may be before the worker knows.
    updates: Option<BoxStream<'static, Result<Update, RequestError>>>,
    choice: Choice,
    meter: SequenceMeter,
}

impl Sequence {
    async fn next(mut self) -> Result<Option<(Event, Sequence)>, RequestError> {
        let Some(updates) = &mut self.updates else {
            return Ok(None);
        };
        let update = match updates.next().await {
            Some(Ok(update)) => update,
            Some(Err(error)) => {
                self.meter.failed();
                return Err(error);
            }
            None => {
                self.meter.failed();
                let message = "a sequence ended without a reason".to_owned();
                return Err(RequestError::Internal { message });
            }
        };
        self.meter.received(&update);
        let event = self.choice.push(update);
        self.meter.shown(&event);
        if event.finish.is_some() {
            // Cancels the worker, where it would go on.
            self.updates = None;
        }
        Ok(Some((event, self)))
    }
}

/// Polls within a span, so that every log line of the request carries its id.
struct InSpan<S> {
    events: Pin<Box<S>>,
    span: Span,
}

impl<S: Stream> Stream for InSpan<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        let this = &mut *self;
        let _entered = this.span.enter();
        this.events.as_mut().poll_next(cx)
    }
}
