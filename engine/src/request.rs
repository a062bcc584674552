//! What goes into an engine and what comes out.

use crate::{LeasedPages, PageRef, SamplingParams};

/// Names a request within one engine; the caller picks it and never reuses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

#[derive(Debug, Clone)]
pub struct Request {
    pub id: RequestId,
    /// The prompt, followed by output that was generated elsewhere before (a replay).
    pub tokens: Vec<u32>,
    /// How many of `tokens` are the prompt.
    pub prompt_tokens: usize,
    pub sampling: SamplingParams,
    /// Requests with different salts share no cached prefix.
    pub cache_salt: String,
    pub kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Prefill and decode here.
    Whole,
    /// Decode here; a peer prefills into pages reserved here, if that is worth while.
    Decode,
    /// Prefill here for a peer that already has the pages before `first_page`.
    Prefill { first_page: usize },
}

/// Why a request was refused when it was submitted. All are the request's own fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reject {
    #[error("the prompt is empty")]
    EmptyPrompt,
    #[error("{tokens} tokens do not fit the context of {max_model_len}")]
    TooLong { tokens: usize, max_model_len: usize },
    #[error("token id {token} is not in the vocabulary of {vocab_size}")]
    UnknownToken { token: u32, vocab_size: usize },
    #[error("the replayed output already has {output} of max_tokens {max_tokens}")]
    NothingToGenerate { output: usize, max_tokens: usize },
    #[error("request {0:?} is already here")]
    Duplicate(RequestId),
}

/// What a step (or a submission) led to. Events of one request come in order.
#[derive(Debug)]
pub enum Event {
    /// The request's first rows are in the step at hand: its wait for a turn is over. Not for one that
    /// a peer prefills, whose `Reserved` says so.
    Started { id: RequestId },
    /// A `Decode` request has its pages: have a peer compute `tokens` from `first_page` on, into
    /// `lease` (its page `i` is the sequence's page `first_page + i`). Then call
    /// [`Engine::prefilled`](crate::Engine::prefilled), or
    /// [`Engine::abort`](crate::Engine::abort) and settle the lease.
    Reserved {
        id: RequestId,
        lease: LeasedPages,
        first_page: usize,
    },
    /// A `Prefill` request finished page `index` of its sequence; the page stays as it is while
    /// `page` is held.
    PageFinished {
        id: RequestId,
        index: usize,
        page: PageRef,
    },
    /// A `Prefill` request is done; every page was announced before. Its log-probs are the first token's.
    Prefilled {
        id: RequestId,
        first: TokenOutput,
        draft: Option<u32>,
        cached_tokens: usize,
    },
    /// Something to tell the client.
    Output { id: RequestId, output: Output },
    /// The request ended without a result: its logits were not finite.
    Failed { id: RequestId, message: String },
}

/// New tokens of a `Whole` or `Decode` request.
#[derive(Debug, Clone, Default)]
pub struct Output {
    pub tokens: Vec<TokenOutput>,
    /// With the first output.
    pub start: Option<Start>,
    /// With the last output.
    pub finish: Option<Finish>,
}

/// How a request came to its first token.
#[derive(Debug, Clone)]
pub struct Start {
    /// Prompt tokens found in this engine's prefix cache.
    pub cached_tokens: usize,
    pub place: PrefillPlace,
    /// One entry a prompt token where asked for; the first is `None`.
    pub prompt_logprobs: Vec<Option<PromptLogProbs>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PrefillPlace {
    Local(LocalPrefillReason),
    Remote,
}

/// Why the decode worker prefilled by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LocalPrefillReason {
    /// The request was whole: the router named no prefill worker.
    NoPrefillWorker,
    /// The prompt is at most `local_prefill_tokens` long.
    Short,
    /// The prefix cache has all but that many tokens.
    Cached,
    /// The client wants the prompt's log-probs, which stay where they are computed.
    PromptLogProbs,
}

impl LocalPrefillReason {
    pub const ALL: [LocalPrefillReason; 4] = [
        Self::NoPrefillWorker,
        Self::Short,
        Self::Cached,
        Self::PromptLogProbs,
    ];

    /// As a metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::NoPrefillWorker => "no_prefill_worker",
            Self::Short => "short",
            Self::Cached => "cached",
            Self::PromptLogProbs => "prompt_logprobs",
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct TokenOutput {
    pub id: u32,
    /// Log-probability under the model (before temperature, penalties and bias), if asked for.
    pub logprob: Option<f32>,
    /// Most probable first.
    pub top: Vec<(u32, f32)>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct PromptLogProbs {
    pub logprob: f32,
    pub top: Vec<(u32, f32)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finish {
    pub reason: FinishReason,
    /// The end or stop token that finished it (also the last of the tokens).
    pub stop_token: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    Stop,
    Length,
}
