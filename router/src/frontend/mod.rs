//! The handle that every edge holds: requests in, streams of events out.
//!
//! ```text
//! complete, chat:  which model -> sampling -> tokens -> does it fit -> ask for a turn
//! generate:        the turn -> the first choice's first token -> all choices, merged
//! choice:          tokens -> text -> stop strings -> reasoning -> events
//! ```

mod choice;
mod generate;
mod meter;
mod model;
mod prompt;
mod sampling;
mod stop;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use millrace_telemetry::traces::Span;

pub use model::{LoadError, ServedModel};

use crate::api::{
    ChatRequest, CompletionRequest, EventStream, ModelCard, Prompt, RequestError, RequestOptions,
    SamplingRequest, TokenizeInput, TokenizeRequest,
};
use crate::dispatch::{Admission, Dispatcher};
use crate::metrics::Metrics;
use choice::Style;
use generate::{Plan, generate};
use meter::RequestMeter;
use prompt::{Conversation, Tokeniser};
use sampling::{Resolved, Room, resolve};

/// The router as its edges see it. Cheap to clone.
#[derive(Clone)]
pub struct Frontend {
    inner: Arc<Inner>,
}

struct Inner {
    model: Arc<ServedModel>,
    tokeniser: Tokeniser,
    admission: Admission,
    dispatcher: Arc<Dispatcher>,
    metrics: Arc<Metrics>,
    max_choices: u32,
    request_timeout: Option<Duration>,
    closing: AtomicBool,
}

/// What a request's prompt became.
struct Prepared {
    tokens: Vec<u32>,
    /// Text to begin each choice with.
    echo: String,
    /// As [`Style::reasoning`].
    reasoning: Option<bool>,
    default_max_tokens: Option<u32>,
}

impl Frontend {
    /// `max_choices` bounds `n`; `request_timeout` is for requests without a deadline.
    pub fn new(
        model: Arc<ServedModel>,
        admission: Admission,
        dispatcher: Arc<Dispatcher>,
        metrics: Arc<Metrics>,
        max_choices: u32,
        request_timeout: Option<Duration>,
    ) -> Frontend {
        let tokeniser = Tokeniser::new(Arc::clone(&model));
        let closing = AtomicBool::new(false);
        let inner = Inner {
            model,
            tokeniser,
            admission,
            dispatcher,
            metrics,
            max_choices,
            request_timeout,
            closing,
        };
        Frontend {
            inner: Arc::new(inner),
        }
    }

    /// Completes a prompt.
    ///
    /// Dropping the stream cancels the request. Nothing is generated until it is polled: streams
    /// that are to run together must be polled together.
    ///
    /// # Errors
    /// At once, if the request is not valid or there is no room to wait. What goes wrong later, the
    /// wait for a turn included, is the last item of the stream; an edge that wants to answer it with
    /// a status looks at the first item before it begins its answer.
    pub async fn complete(&self, request: CompletionRequest) -> Result<EventStream, RequestError> {
        let meter = self.meter("text_completion", &request.sampling, &request.options);
        let stream = self.try_complete(request, &meter).await;
        stream.inspect_err(|error| meter.failed(error))
    }

    /// Answers a conversation through the model's chat template. As [`Frontend::complete`].
    ///
    /// # Errors
    /// As [`Frontend::complete`].
    pub async fn chat(&self, request: ChatRequest) -> Result<EventStream, RequestError> {
        let meter = self.meter("chat", &request.sampling, &request.options);
        let stream = self.try_chat(request, &meter).await;
        stream.inspect_err(|error| meter.failed(error))
    }

    /// A request has come. Its span is described as OpenTelemetry's conventions for generative AI say.
    fn meter(
        &self,
        operation: &'static str,
        sampling: &SamplingRequest,
        options: &RequestOptions,
    ) -> RequestMeter {
        let model = &self.inner.model.name;
        let span = Span::server(format_args!("{operation} {model}"), &options.trace);
        span.set("gen_ai.operation.name", operation);
        span.set("gen_ai.provider.name", "millrace");
        span.set_text("gen_ai.request.model", model);
        span.set_text("gen_ai.response.id", &options.request_id);
        if let Some(max_tokens) = sampling.max_tokens {
            span.set("gen_ai.request.max_tokens", i64::from(max_tokens));
        }
        if let Some(temperature) = sampling.temperature {
            span.set("gen_ai.request.temperature", f64::from(temperature));
        }
        if let Some(n) = sampling.n.filter(|n| *n != 1) {
            span.set("gen_ai.request.choice.count", i64::from(n));
        }
        RequestMeter::arrived(Arc::clone(&self.inner.metrics), span)
    }

    async fn try_complete(
        &self,
        request: CompletionRequest,
        meter: &RequestMeter,
    ) -> Result<EventStream, RequestError> {
        let Inner {
            model,
            tokeniser,
            max_choices,
            ..
        } = &*self.inner;
        model.check_name(&request.model)?;
        let scores_prompt = request.echo || request.sampling.prompt_logprobs.is_some();
        let resolved = resolve(
            &request.sampling,
            model,
            *max_choices,
            scores_prompt,
            rand::random,
        )?;
        let echo = match &request.prompt {
            Prompt::Text(text) if request.echo => Some(text.clone()),
            _ => None,
        };
        let tokens = tokeniser.prompt(request.prompt).await?;
        let echo = match echo {
            None if request.echo => model
                .tokenizer
                .decode(&tokens, !resolved.keep_special_tokens),
            echo => echo.unwrap_or_default(),
        };
        let default_max_tokens = request.default_max_tokens;
        let prepared = Prepared {
            tokens,
            echo,
            reasoning: None,
            default_max_tokens,
        };
        self.begin(prepared, resolved, request.options, meter)
    }

    async fn try_chat(
        &self,
        request: ChatRequest,
        meter: &RequestMeter,
    ) -> Result<EventStream, RequestError> {
        let Inner {
            model,
            tokeniser,
            max_choices,
            ..
        } = &*self.inner;
        model.check_name(&request.model)?;
        let resolved = resolve(&request.sampling, model, *max_choices, false, rand::random)?;
        let conversation = Conversation {
            messages: request.messages,
            template_kwargs: request.template_kwargs,
            add_generation_prompt: true,
        };
        let rendered = tokeniser.chat(conversation, false).await?;
        let prepared = Prepared {
            tokens: rendered.tokens,
            echo: String::new(),
            reasoning: Some(rendered.starts_in_reasoning),
            default_max_tokens: None,
        };
        self.begin(prepared, resolved, request.options, meter)
    }

    /// The last step before generating: does it fit, and may it wait for a turn.
    fn begin(
        &self,
        prepared: Prepared,
        resolved: Resolved,
        options: RequestOptions,
        meter: &RequestMeter,
    ) -> Result<EventStream, RequestError> {
        let Inner {
            model,
            admission,
            dispatcher,
            ..
        } = &*self.inner;
        let Prepared {
            tokens,
            echo,
            reasoning,
            default_max_tokens,
        } = prepared;
        let room = resolved.fit(tokens.len(), model.max_model_len, default_max_tokens)?;
        let mut sampling = resolved.sampling;
        sampling.max_tokens = match room {
            Room::Generate { max_tokens } => max_tokens,
            Room::ScorePrompt => 1,
        };
        let style = Style {
            stop: resolved.stop,
            include_stop: resolved.include_stop,
            keep_special_tokens: resolved.keep_special_tokens,
            min_tokens: sampling.min_tokens,
            logprobs: sampling.logprobs.is_some(),
            reasoning,
            hide_output: room == Room::ScorePrompt,
            echo,
        };
        let request_id = match options.request_id {
            id if id.is_empty() => Frontend::new_request_id(),
            id => id,
        };
        let waiting_tokens = tokens.len() as u64 * u64::from(resolved.choices);
        let turn = admission.ask(resolved.choices, waiting_tokens)?;
        let plan = Plan {
            model: Arc::clone(model),
            dispatcher: Arc::clone(dispatcher),
            request_id,
            prompt: tokens.into(),
            sampling,
            choices: resolved.choices,
            style,
            cache_salt: options.cache_salt.into(),
            deadline: self.deadline(options.deadline, meter.arrival()),
            asked: Instant::now(),
            meter: meter.clone(),
        };
        Ok(generate(plan, turn))
    }

    fn deadline(&self, asked: Option<Instant>, arrived: Instant) -> Option<Instant> {
        let ours = self.inner.request_timeout.map(|timeout| arrived + timeout);
        asked.into_iter().chain(ours).min()
    }

    /// Token ids of a text or a rendered conversation. Generates nothing, needs no worker.
    ///
    /// # Errors
    /// `UnknownModel`, or `Invalid` as for a prompt. An empty text is no error.
    pub async fn tokenize(&self, request: TokenizeRequest) -> Result<Vec<u32>, RequestError> {
        let Inner {
            model, tokeniser, ..
        } = &*self.inner;
        model.check_name(&request.model)?;
        match request.input {
            TokenizeInput::Text(text) => {
                tokeniser
                    .text(text, request.add_special_tokens.unwrap_or(true))
                    .await
            }
            TokenizeInput::Chat {
                messages,
                template_kwargs,
                add_generation_prompt,
            } => {
                let conversation = Conversation {
                    messages,
                    template_kwargs,
                    add_generation_prompt,
                };
                // The template writes its own special tokens.
                let add_special = request.add_special_tokens.unwrap_or(false);
                Ok(tokeniser.chat(conversation, add_special).await?.tokens)
            }
        }
    }

    /// The text of `tokens`, special tokens included.
    ///
    /// # Errors
    /// `UnknownModel`, or `Invalid` for an id outside the vocabulary.
    pub async fn detokenize(&self, model: &str, tokens: Vec<u32>) -> Result<String, RequestError> {
        self.inner.model.check_name(model)?;
        self.inner.tokeniser.check_ids("tokens", &tokens)?;
        Ok(self.inner.model.tokenizer.decode(&tokens, false))
    }

    /// What is served: one model, under each of its names.
    pub fn models(&self) -> Vec<ModelCard> {
        let card = self.inner.model.card(self.ready());
        let named = |name: &str| ModelCard {
            name: name.to_owned(),
            ..card.clone()
        };
        self.inner.model.names().map(named).collect()
    }

    /// The card of one model, under the name that answers carry. Empty: the only one.
    ///
    /// # Errors
    /// `UnknownModel`.
    pub fn model(&self, name: &str) -> Result<ModelCard, RequestError> {
        self.inner.model.check_name(name)?;
        Ok(self.inner.model.card(self.ready()))
    }

    /// A request sent now would find a decode worker, and the router is not shutting down.
    pub fn ready(&self) -> bool {
        !self.inner.closing.load(Ordering::Relaxed) && self.inner.dispatcher.is_ready()
    }

    /// Sequences that wait for a turn.
    pub fn waiting(&self) -> u32 {
        self.inner.admission.waiting()
    }

    /// From now on not [`ready`](Frontend::ready), so that no new requests are sent here. Those that
    /// come are still answered.
    pub fn close(&self) {
        self.inner.closing.store(true, Ordering::Relaxed);
    }

    /// An id for a request that brought none: `req-` and 32 hex digits. An edge that shows the id to
    /// its client (`chatcmpl-...`) draws it here and sets `RequestOptions::request_id`.
    pub fn new_request_id() -> String {
        format!("req-{:032x}", rand::random::<u128>())
    }
}
