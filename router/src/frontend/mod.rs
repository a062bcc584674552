//! The handle that every edge holds: requests in, streams of events out.

use crate::api::{ChatRequest, CompletionRequest, EventStream, ModelCard, RequestError, TokenizeRequest};

/// The router as its edges see it. Cheap to clone.
#[derive(Clone)]
pub struct Frontend {}

impl Frontend {
    /// Completes a prompt. Dropping the stream cancels the request; an error may also come as the
    /// last item of the stream, after events.
    pub async fn complete(&self, request: CompletionRequest) -> Result<EventStream, RequestError> {
        let _ = request;
        Err(RequestError::Unavailable { message: "no dispatcher yet".into() })
    }

    /// Answers a conversation through the model's chat template.
    pub async fn chat(&self, request: ChatRequest) -> Result<EventStream, RequestError> {
        let _ = request;
        Err(RequestError::Unavailable { message: "no dispatcher yet".into() })
    }

    /// Token ids of a text or a rendered conversation. Generates nothing, needs no worker.
    pub async fn tokenize(&self, request: TokenizeRequest) -> Result<Vec<u32>, RequestError> {
        let _ = request;
        Err(RequestError::Unavailable { message: "no dispatcher yet".into() })
    }

    /// The text of `tokens`, special tokens included.
    ///
    /// # Errors
    /// `UnknownModel`, or `Invalid` for an id outside the vocabulary.
    pub async fn detokenize(&self, model: &str, tokens: Vec<u32>) -> Result<String, RequestError> {
        let _ = (model, tokens);
        Err(RequestError::Unavailable { message: "no dispatcher yet".into() })
    }

    /// What is served: one model today, but clients list them.
    pub fn models(&self) -> Vec<ModelCard> {
        Vec::new()
    }

    /// The card of one model. Empty: the only one.
    ///
    /// # Errors
    /// `UnknownModel`.
    pub fn model(&self, name: &str) -> Result<ModelCard, RequestError> {
        Err(RequestError::UnknownModel { model: name.into(), served: String::new() })
    }

    /// A request sent now would find workers.
    pub fn ready(&self) -> bool {
        false
    }

    /// An id for a request that brought none: `req-` and 32 hex digits. An edge that shows the id to its
    /// client (`chatcmpl-...`) draws it here and sets `RequestOptions::request_id`.
    pub fn new_request_id() -> String {
        format!("req-{:032x}", rand::random::<u128>())
    }
}
