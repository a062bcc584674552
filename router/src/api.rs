//! What every edge asks of the router, and what it gets back: no wire types, no HTTP, no gRPC.

use std::collections::HashMap;

use millrace_telemetry::traces::Parent;

/// A prompt to complete.
#[derive(Debug, Clone, Default)]
pub struct CompletionRequest {
    /// Empty: the only model served.
    pub model: String,
    pub prompt: Prompt,
    pub sampling: SamplingRequest,
    /// What an absent `max_tokens` means, as far as the context has room: 16 in OpenAI's completions. `None`: the rest
    /// of the context.
    pub default_max_tokens: Option<u32>,
    /// Give the prompt back before the completion: its text starts the first event's `text`. With `echo`,
    /// `max_tokens: Some(0)` is allowed and scores the prompt alone.
    pub echo: bool,
    pub options: RequestOptions,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

impl Default for Prompt {
    fn default() -> Prompt {
        Prompt::Text(String::new())
    }
}

/// A conversation to answer.
#[derive(Debug, Clone, Default)]
pub struct ChatRequest {
    pub model: String,
    pub messages: Vec<millrace_model::chat::Message>,
    pub sampling: SamplingRequest,
    /// Extra variables for the chat template (`chat_template_kwargs`).
    pub template_kwargs: serde_json::Map<String, serde_json::Value>,
    pub options: RequestOptions,
}

#[derive(Debug, Clone, Default)]
pub struct RequestOptions {
    /// Empty: the router makes one. Appears in every log line and in the response, so an edge that shows it draws it
    /// itself (`Frontend::new_request_id`).
    pub request_id: String,
    /// Requests with different salts share no cached prefix.
    pub cache_salt: String,
    /// When the client stops waiting.
    pub deadline: Option<std::time::Instant>,
    /// The client's span, if it has one.
    pub trace: Parent,
}

/// Sampling as a client asked for it. `None` takes the model's recommendation, then vLLM's default.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SamplingRequest {
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<i64>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
    pub frequency_penalty: Option<f32>,
    pub presence_penalty: Option<f32>,
    pub logit_bias: HashMap<u32, f32>,
    pub seed: Option<u64>,
    pub stop: Vec<String>,
    pub stop_token_ids: Vec<u32>,
    pub min_tokens: Option<u32>,
    pub max_tokens: Option<u32>,
    pub ignore_eos: bool,
    pub n: Option<u32>,
    /// Alternatives a generated token; `Some(0)` gives the chosen token's log-prob alone.
    pub logprobs: Option<u32>,
    pub prompt_logprobs: Option<u32>,
    pub include_stop: bool,
    pub keep_special_tokens: bool,
}

/// One step of one choice. The first event of a choice may be empty but for `prompt`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Event {
    /// Which of the `n` choices.
    pub index: u32,
    /// New answer text (all text, for completions).
    pub text: String,
    /// New text inside `<think>` (chat only).
    pub reasoning: String,
    pub token_ids: Vec<u32>,
    /// As many as `token_ids` where log-probs were asked for, otherwise empty.
    pub logprobs: Vec<TokenLogProbs>,
    /// With the first event of choice 0.
    pub prompt: Option<PromptInfo>,
    /// With the last event of a choice.
    pub finish: Option<Finish>,
}

/// What became of the prompt.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PromptInfo {
    pub token_ids: Vec<u32>,
    /// One entry a prompt token where asked for; the first is `None`.
    pub logprobs: Vec<Option<TokenLogProbs>>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogProbs {
    pub chosen: LogProb,
    /// Most probable first.
    pub top: Vec<LogProb>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct LogProb {
    pub token_id: u32,
    pub logprob: f32,
    /// The token's own bytes; not always whole characters.
    pub bytes: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Finish {
    pub reason: FinishReason,
    /// The stop string or token that ended it.
    pub stop: Option<StopMatch>,
    pub usage: Usage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    Stop,
    Length,
}

impl FinishReason {
    /// As OpenAI and everybody since names it.
    pub fn as_str(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum StopMatch {
    Text(String),
    Token(u32),
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub prompt_tokens: u32,
    /// Of this choice.
    pub completion_tokens: u32,
    pub cached_tokens: u32,
}

/// Why a request ended without an answer. Each edge has one table from these to its own codes.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RequestError {
    /// 400 `invalid_request_error` / INVALID_ARGUMENT. `param` names the field where one is to blame.
    #[error("{message}")]
    Invalid {
        message: String,
        param: Option<&'static str>,
    },
    /// 404 `model_not_found` / NOT_FOUND.
    #[error("the model `{model}` is not served here; served: {served}")]
    UnknownModel { model: String, served: String },
    /// 429 / RESOURCE_EXHAUSTED with retry-after.
    #[error("{what}; try again in {retry_after_seconds} s")]
    Overloaded {
        what: &'static str,
        retry_after_seconds: u32,
    },
    /// 503 / UNAVAILABLE: no workers, or all attempts failed.
    #[error("{message}")]
    Unavailable { message: String },
    /// 504 / DEADLINE_EXCEEDED.
    #[error("the deadline passed {stage}")]
    Deadline { stage: &'static str },
    /// 500 / INTERNAL: a bug of ours; `message` is safe to show.
    #[error("internal error: {message}")]
    Internal { message: String },
}

impl RequestError {
    /// For metrics and traces.
    pub fn label(&self) -> &'static str {
        match self {
            RequestError::Invalid { .. } => "invalid",
            RequestError::UnknownModel { .. } => "unknown_model",
            RequestError::Overloaded { .. } => "overloaded",
            RequestError::Unavailable { .. } => "unavailable",
            RequestError::Deadline { .. } => "deadline",
            RequestError::Internal { .. } => "internal",
        }
    }
}

/// What is answered for a model: one event a step of a choice. Dropping it cancels the request
/// everywhere: the workers stop computing and free its pages.
pub type EventStream =
    std::pin::Pin<Box<dyn futures::Stream<Item = Result<Event, RequestError>> + Send>>;

/// A model as `/v1/models`, ListModels and KServe's ModelMetadata show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelCard {
    /// The name clients ask for.
    pub name: String,
    /// `architectures[0]` of its config.json.
    pub architecture: String,
    /// Hash of the checkpoint; prefix caches of different revisions never match.
    pub revision: String,
    /// Prompt plus output, in tokens.
    pub max_model_len: u32,
    /// Token ids are below this.
    pub vocab_size: u32,
    /// Some attached workers can serve it now.
    pub ready: bool,
    /// When the router loaded it, in seconds since the Unix epoch.
    pub created: u64,
}

/// Text or a conversation to turn into token ids, without generating anything.
#[derive(Debug, Clone)]
pub struct TokenizeRequest {
    pub model: String,
    pub input: TokenizeInput,
    /// `None`: true for text, false for a conversation, whose template adds its own.
    pub add_special_tokens: Option<bool>,
}

#[derive(Debug, Clone)]
pub enum TokenizeInput {
    Text(String),
    Chat {
        messages: Vec<millrace_model::chat::Message>,
        template_kwargs: serde_json::Map<String, serde_json::Value>,
        /// End with the start of the assistant's turn, as a generation would.
        add_generation_prompt: bool,
    },
}
