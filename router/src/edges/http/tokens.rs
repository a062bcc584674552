//! `POST /tokenize` and `POST /detokenize`, in vLLM's form.

use axum::extract::State;
use axum::response::Response;
use millrace_model::chat::Message;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Shared;
use super::answer::json;
use super::body::JsonBody;
use super::chat;
use super::error::ApiError;
use crate::api::{TokenizeInput, TokenizeRequest};

#[derive(Deserialize)]
struct TokenizeFields {
    model: Option<String>,
    /// Either a text ...
    prompt: Option<String>,
    /// ... or a conversation, which goes through the chat template.
    messages: Option<Vec<Message>>,
    add_special_tokens: Option<bool>,
    add_generation_prompt: Option<bool>,
    chat_template_kwargs: Option<Map<String, Value>>,
    return_token_strs: Option<bool>,
    continue_final_message: Option<bool>,
    chat_template: Option<Value>,
}

#[derive(Serialize)]
struct Tokenized {
    count: usize,
    max_model_len: u32,
    tokens: Vec<u32>,
}

/// The ids that a prompt becomes.
pub(super) async fn tokenize(State(edge): Shared, body: JsonBody) -> Result<Response, ApiError> {
    let request = tokenize_request(body.read()?)?;
    let max_model_len = edge.frontend.model(&request.model)?.max_model_len;
    let tokens = edge.frontend.tokenize(request).await?;
    Ok(json(&Tokenized {
        count: tokens.len(),
        max_model_len,
        tokens,
    }))
}

fn tokenize_request(fields: TokenizeFields) -> Result<TokenizeRequest, ApiError> {
    let asked = [
        (
            "return_token_strs",
            fields.return_token_strs.unwrap_or(false),
        ),
        (
            "continue_final_message",
            fields.continue_final_message.unwrap_or(false),
        ),
        ("chat_template", fields.chat_template.is_some()),
    ];
    if let Some((name, _)) = asked.into_iter().find(|(_, asked)| *asked) {
        return Err(ApiError::unsupported(name));
    }
    let input = match (fields.prompt, fields.messages) {
        (Some(text), None) => TokenizeInput::Text(text),
        (None, Some(messages)) => TokenizeInput::Chat {
            messages: chat::messages(messages)?,
            template_kwargs: fields.chat_template_kwargs.unwrap_or_default(),
            add_generation_prompt: fields.add_generation_prompt.unwrap_or(true),
        },
        _ => {
            return Err(ApiError::invalid(
                "prompt",
                "send either `prompt` or `messages`",
            ));
        }
    };
    let model = fields.model.unwrap_or_default();
    Ok(TokenizeRequest {
        model,
        input,
        add_special_tokens: fields.add_special_tokens,
    })
}

/// The text that ids stand for.
pub(super) async fn detokenize(State(edge): Shared, body: JsonBody) -> Result<Response, ApiError> {
    #[derive(Deserialize)]
    struct Fields {
        model: Option<String>,
        tokens: Vec<u32>,
    }
    #[derive(Serialize)]
    struct Detokenized {
        prompt: String,
    }
    let Fields { model, tokens } = body.read()?;
    let prompt = edge
        .frontend
        .detokenize(&model.unwrap_or_default(), tokens)
        .await?;
    Ok(json(&Detokenized { prompt }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(json: &str) -> Result<TokenizeRequest, String> {
        let fields = JsonBody(bytes::Bytes::copy_from_slice(json.as_bytes())).read();
        fields
            .and_then(tokenize_request)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_text_or_a_conversation() {
        let text = request(r#"{"prompt":"a","add_special_tokens":false}"#).unwrap();
        assert!(matches!(text.input, TokenizeInput::Text(text) if text == "a"));
        assert_eq!(text.add_special_tokens, Some(false));
        let chat = request(
            r#"{"messages":[{"role":"user","content":"a"}],"add_generation_prompt":false}"#,
        )
        .unwrap();
        assert!(matches!(
            chat.input,
            TokenizeInput::Chat {
                add_generation_prompt: false,
                ..
            }
        ));
        assert!(
            request("{}")
                .unwrap_err()
                .contains("either `prompt` or `messages`")
        );
        assert!(request(r#"{"prompt":"a","messages":[]}"#).is_err());
        assert!(
            request(r#"{"prompt":"a","return_token_strs":true}"#)
                .unwrap_err()
                .contains("`return_token_strs`")
        );
    }
}
