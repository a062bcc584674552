//! Prompts to token ids: text, ids, or a conversation through the chat template.

use std::sync::Arc;

use millrace_model::chat::Message;
use millrace_model::reasoning::ReasoningSplitter;
use serde_json::{Map, Value};
use tokio::sync::Semaphore;

use super::model::ServedModel;
use super::sampling::{invalid, not_in_vocabulary};
use crate::api::{Prompt, RequestError};

/// Texts up to this many bytes are tokenised where they are: a fraction of a millisecond.
const INLINE_BYTES: usize = 4096;
/// What a message costs beside its text.
const MESSAGE_BYTES: usize = 64;

/// A conversation as a template takes it.
pub struct Conversation {
    pub messages: Vec<Message>,
    pub template_kwargs: Map<String, Value>,
    pub add_generation_prompt: bool,
}

/// A rendered and tokenised conversation.
pub struct RenderedChat {
    pub tokens: Vec<u32>,
    /// The prompt ends inside `<think>`, so the model begins with reasoning.
    pub starts_in_reasoning: bool,
}

/// Turns prompts into tokens without holding up other tasks.
#[derive(Clone)]
pub struct Tokeniser {
    model: Arc<ServedModel>,
    /// Long texts at once: more than there are cores would only slow each other down.
    long: Arc<Semaphore>,
}

impl Tokeniser {
    pub fn new(model: Arc<ServedModel>) -> Tokeniser {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Tokeniser {
            model,
            long: Arc::new(Semaphore::new(cores)),
        }
    }

    /// # Errors
    /// `Invalid` for an empty prompt, an id outside the vocabulary, or a text that cannot fit the
    /// context.
    pub async fn prompt(&self, prompt: Prompt) -> Result<Vec<u32>, RequestError> {
        let tokens = match prompt {
            Prompt::Text(text) => self.text(text, true).await?,
            Prompt::Tokens(tokens) => {
                self.check_ids("prompt", &tokens)?;
                tokens
            }
        };
        if tokens.is_empty() {
            return Err(invalid(
                "prompt",
                "the prompt is empty; give at least one token".into(),
            ));
        }
        Ok(tokens)
    }

    /// # Errors
    /// `Invalid` for a text that cannot fit the context.
    pub async fn text(&self, text: String, add_special: bool) -> Result<Vec<u32>, RequestError> {
        self.check_length("prompt", text.len())?;
        let bytes = text.len();
        self.run(bytes, move |model| encode(model, &text, add_special))
            .await
    }

    /// # Errors
    /// `Invalid` if the model has no template, the template refuses the messages, or they cannot
    /// fit the context.
    pub async fn chat(
        &self,
        chat: Conversation,
        add_special: bool,
    ) -> Result<RenderedChat, RequestError> {
        if self.model.template.is_none() {
            let message = "this model has no chat template; use completions".to_owned();
            return Err(RequestError::Invalid {
                message,
                param: None,
            });
        }
        if chat.messages.is_empty() {
            return Err(invalid("messages", "messages must not be empty".into()));
        }
        let text = |message: &Message| match message.text(0) {
            Ok(text) => text.map_or(0, |text| text.len()),
            // The template will say what is wrong with it.
            Err(_) => 0,
        };
        let bytes = chat.messages.iter().map(|m| MESSAGE_BYTES + text(m)).sum();
        let rendered = self
            .run(bytes, move |model| render(model, &chat, add_special))
            .await?;
        if rendered.tokens.is_empty() {
            return Err(invalid(
                "messages",
                "the chat template rendered an empty prompt".into(),
            ));
        }
        Ok(rendered)
    }

    /// # Errors
    /// `Invalid` for the first id outside the vocabulary.
    pub fn check_ids(&self, field: &'static str, ids: &[u32]) -> Result<(), RequestError> {
        let vocab = self.model.vocab_size;
        match ids.iter().find(|&&id| id >= vocab) {
            Some(&id) => Err(invalid(field, not_in_vocabulary(field, id, vocab))),
            None => Ok(()),
        }
    }

    /// Refuses a text that would not fit even in the longest tokens, before any work is spent on it.
    fn check_length(&self, field: &'static str, bytes: usize) -> Result<(), RequestError> {
        check_length(&self.model, field, bytes)
    }

    async fn run<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce(&ServedModel) -> Result<T, RequestError> + Send + 'static,
    ) -> Result<T, RequestError> {
        if bytes <= INLINE_BYTES {
            return work(&self.model);
        }
        let internal = |message: String| RequestError::Internal { message };
        let turn = Arc::clone(&self.long)
            .acquire_owned()
            .await
            .map_err(|e| internal(e.to_string()))?;
        let model = Arc::clone(&self.model);
        let job = move || {
            // Held to the end even if the client goes away: the work cannot be stopped.
            let _turn = turn;
            work(&model)
        };
        let joined = tokio::task::spawn_blocking(job).await;
        joined.map_err(|e| internal(format!("tokenising failed: {e}")))?
    }
}

fn check_length(
    model: &ServedModel,
    field: &'static str,
    bytes: usize,
) -> Result<(), RequestError> {
    let at_least = bytes.div_ceil(model.longest_token);
    if at_least <= model.max_model_len as usize {
        return Ok(());
    }
    let context = model.max_model_len;
    Err(invalid(
        field,
        format!(
            "the model's context is {context} tokens, but the prompt's {bytes} bytes are at least {at_least}; shorten it"
        ),
    ))
}

fn encode(model: &ServedModel, text: &str, add_special: bool) -> Result<Vec<u32>, RequestError> {
    let error = |e: millrace_model::tokenizer::TextError| invalid("prompt", e.to_string());
    model.tokenizer.encode(text, add_special).map_err(error)
}

fn render(
    model: &ServedModel,
    chat: &Conversation,
    add_special: bool,
) -> Result<RenderedChat, RequestError> {
    let Some(template) = &model.template else {
        return Err(RequestError::Internal {
            message: "the chat template is gone".into(),
        });
    };
    let rendered = template.render(
        &chat.messages,
        None,
        chat.add_generation_prompt,
        &chat.template_kwargs,
    );
    let prompt = rendered.map_err(|error| {
        if error.is_clients_fault() {
            invalid("messages", error.to_string())
        } else {
            RequestError::Internal {
                message: error.to_string(),
            }
        }
    })?;
    check_length(model, "messages", prompt.len())?;
    Ok(RenderedChat {
        tokens: encode(model, &prompt, add_special)?,
        starts_in_reasoning: ReasoningSplitter::starts_inside(&prompt),
    })
}
