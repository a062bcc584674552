//! What can go wrong with a chat template.

use crate::text::TextError;

/// Why a template cannot be loaded, or messages cannot be rendered.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    #[error(transparent)]
    Text(#[from] TextError),
    /// The checkpoint's template does not compile.
    #[error("the chat template {template:?} is broken at line {line}: {reason}")]
    Broken {
        template: String,
        line: usize,
        reason: String,
    },
    /// `chat_template` has a form transformers does not write.
    #[error(
        "tokenizer_config.json: `chat_template` must be a string or a list of objects with name and template"
    )]
    Form,
    /// The template refused the messages (`raise_exception`): the client's mistake.
    #[error("the model's chat template refuses these messages: {message}")]
    Refused { message: String },
    /// A message holds something other than text: the client's mistake.
    #[error("message {index} has a content part of type {kind:?}; this model takes text only")]
    Part { index: usize, kind: String },
    /// The template did too much work: endless, or the conversation is far too long.
    #[error("rendering the chat template took too much work; send fewer or shorter messages")]
    TooMuchWork,
    /// The template failed on these messages: a key it needs is absent, or it uses what is not supported.
    #[error("the chat template failed at line {line}: {reason}")]
    Failed { line: usize, reason: String },
}

impl ChatError {
    /// Whether other messages might succeed (HTTP 400, INVALID_ARGUMENT) as opposed to a template
    /// that no message can satisfy.
    pub fn is_clients_fault(&self) -> bool {
        use ChatError::*;
        match self {
            Refused { .. } | Part { .. } | TooMuchWork | Failed { .. } => true,
            Text(_) | Broken { .. } | Form => false,
        }
    }
}
