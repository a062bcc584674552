//! A chat request's JSON, read into the router's own terms.

use millrace_model::chat::{Content, Message};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::super::answer::StreamOptions;
use super::super::body::JsonBody;
use super::super::error::ApiError;
use super::super::logprobs::TokenForm;
use super::super::sampling::SamplingFields;
use super::super::unsupported;
use millrace_telemetry::traces::Parent;

use crate::api::{ChatRequest, RequestOptions};
use crate::edges::roles;

/// The fields of chat alone; [`SamplingFields`] has the rest.
#[derive(Deserialize)]
struct ChatFields {
    #[serde(default)]
    model: Option<String>,
    messages: Vec<Message>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    logprobs: Option<bool>,
    top_logprobs: Option<u32>,
    chat_template_kwargs: Option<Map<String, Value>>,
    cache_salt: Option<String>,
    include_reasoning: Option<bool>,
    return_tokens_as_token_ids: Option<bool>,
    return_token_ids: Option<bool>,
}

/// A request, and how its answer is to look.
pub(super) struct Call {
    pub(super) request: ChatRequest,
    pub(super) reply: Reply,
}

/// The answer's form.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Reply {
    /// `None`: one body.
    pub(super) stream: Option<StreamOptions>,
    pub(super) n: u32,
    pub(super) token_form: TokenForm,
    /// vLLM's `include_reasoning: false` leaves the thinking out.
    pub(super) without_reasoning: bool,
    /// vLLM's `return_token_ids`.
    pub(super) with_token_ids: bool,
}

/// # Errors
/// 400 with the field to blame.
pub(super) fn read(body: &JsonBody, request_id: &str) -> Result<Call, ApiError> {
    unsupported::check_chat(body)?;
    let fields: ChatFields = body.read()?;
    let mut sampling = body.read::<SamplingFields>()?.into_request();
    sampling.logprobs = match (fields.logprobs.unwrap_or(false), fields.top_logprobs) {
        (true, top) => Some(top.unwrap_or(0)),
        (false, None | Some(0)) => None,
        (false, Some(_)) => {
            return Err(ApiError::invalid(
                "top_logprobs",
                "`top_logprobs` needs `logprobs` to be true",
            ));
        }
    };
    let stream = stream_form(fields.stream, fields.stream_options)?;
    if stream.is_some() && sampling.prompt_logprobs.is_some() {
        return Err(ApiError::invalid(
            "prompt_logprobs",
            "`prompt_logprobs` are not available with `stream`",
        ));
    }
    let reply = Reply {
        stream,
        n: sampling.n.unwrap_or(1),
        token_form: TokenForm::from_flag(fields.return_tokens_as_token_ids),
        without_reasoning: !fields.include_reasoning.unwrap_or(true),
        with_token_ids: fields.return_token_ids.unwrap_or(false),
    };
    let request = ChatRequest {
        model: fields.model.unwrap_or_default(),
        messages: messages(fields.messages)?,
        sampling,
        template_kwargs: fields.chat_template_kwargs.unwrap_or_default(),
        options: RequestOptions {
            request_id: request_id.to_owned(),
            cache_salt: fields.cache_salt.unwrap_or_default(),
            deadline: None,
            trace: Parent::default(),
        },
    };
    Ok(Call { request, reply })
}

/// # Errors
/// 400 where options for a stream come without one.
pub(in super::super) fn stream_form(
    stream: Option<bool>,
    options: Option<StreamOptions>,
) -> Result<Option<StreamOptions>, ApiError> {
    match (stream.unwrap_or(false), options) {
        (true, options) => Ok(Some(options.unwrap_or_default())),
        (false, None) => Ok(None),
        (false, Some(_)) => Err(ApiError::invalid(
            "stream_options",
            "`stream_options` needs `stream` to be true",
        )),
    }
}

/// Puts messages into the form that templates know, and refuses what text-only models cannot take.
///
/// # Errors
/// 400 naming the message and its field.
pub(in super::super) fn messages(mut messages: Vec<Message>) -> Result<Vec<Message>, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::invalid(
            "messages",
            "`messages` is empty; send at least one",
        ));
    }
    for (at, message) in messages.iter_mut().enumerate() {
        match roles::canonical(&message.role) {
            Ok(role) => message.role = role.into(),
            Err(unknown) => {
                return Err(ApiError::invalid(
                    format!("messages[{at}].role"),
                    unknown.to_string(),
                ));
            }
        }
        for field in ["tool_calls", "function_call", "audio"] {
            let asks = |value: &Value| {
                !value.is_null() && value.as_array().is_none_or(|all| !all.is_empty())
            };
            if message.extra.get(field).is_some_and(asks) {
                return Err(ApiError::unsupported(format!("messages[{at}].{field}")));
            }
        }
        if let Some(Content::Parts(parts)) = &message.content
            && let Some(part) = parts
                .iter()
                .position(|part| part.kind != "text" || part.text.is_none())
        {
            let kind = &parts[part].kind;
            let message = format!(
                "this model takes text only: a content part of type {kind:?} is not supported"
            );
            return Err(ApiError::invalid(
                format!("messages[{at}].content[{part}]"),
                message,
            ));
        }
        // vLLM's newer name; templates know the older one, which is DeepSeek's.
        if let Some(reasoning) = message.extra.remove("reasoning") {
            message
                .extra
                .entry("reasoning_content")
                .or_insert(reasoning);
        }
    }
    Ok(messages)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(body: &str) -> Result<Call, String> {
        let body = JsonBody(bytes::Bytes::copy_from_slice(body.as_bytes()));
        read(&body, "req-1").map_err(|error| serde_json::to_string(&error.body()).unwrap())
    }

    #[test]
    fn reads_a_full_request() {
        let call = call(
            r#"{"model":"tiny-r1","messages":[{"role":"developer","content":"Be brief."},
               {"role":"assistant","content":null,"reasoning":"hm","tool_calls":[]},
               {"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}],
               "stream":true,"stream_options":{"include_usage":true},"logprobs":true,"top_logprobs":3,"n":2,"max_tokens":9,
               "chat_template_kwargs":{"thinking":true},"cache_salt":"s","user":"u","include_reasoning":false}"#,
        )
        .unwrap();
        let request = call.request;
        assert_eq!(request.model, "tiny-r1");
        assert_eq!(request.messages[0], Message::new("system", "Be brief."));
        assert_eq!(request.messages[1].extra["reasoning_content"], "hm");
        assert_eq!(request.messages[2].text(2).unwrap().as_deref(), Some("ab"));
        assert_eq!(request.sampling.logprobs, Some(3));
        assert_eq!(request.sampling.max_tokens, Some(9));
        assert_eq!(request.template_kwargs["thinking"], true);
        assert_eq!(request.options.request_id, "req-1");
        assert_eq!(request.options.cache_salt, "s");
        let options = StreamOptions {
            include_usage: true,
            continuous_usage_stats: false,
        };
        assert_eq!(
            call.reply,
            Reply {
                stream: Some(options),
                n: 2,
                without_reasoning: true,
                ..Reply::default()
            }
        );
    }

    #[test]
    fn refuses_with_the_field_to_blame() {
        for (body, param) in [
            (r#"{}"#, "null"),
            (r#"{"messages":[]}"#, "\"messages\""),
            (r#"{"messages":"hi"}"#, "\"messages\""),
            (
                r#"{"messages":[{"role":"robot","content":"x"}]}"#,
                "\"messages[0].role\"",
            ),
            (
                r#"{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{}}]}]}"#,
                "\"messages[0].content[0]\"",
            ),
            (
                r#"{"messages":[{"role":"assistant","tool_calls":[{}]}]}"#,
                "\"messages[0].tool_calls\"",
            ),
            (
                r#"{"messages":[{"role":"user","content":"x"}],"top_logprobs":2}"#,
                "\"top_logprobs\"",
            ),
            (
                r#"{"messages":[{"role":"user","content":"x"}],"stream_options":{"include_usage":true}}"#,
                "\"stream_options\"",
            ),
            (
                r#"{"messages":[{"role":"user","content":"x"}],"stream":"yes"}"#,
                "\"stream\"",
            ),
            (
                r#"{"messages":[{"role":"user","content":"x"}],"max_tokens":-1}"#,
                "\"max_tokens\"",
            ),
            (
                r#"{"messages":[{"role":"user","content":"x"}],"logit_bias":{"a":1}}"#,
                "\"logit_bias",
            ),
            (
                r#"{"messages":[{"role":"user","content":"x"}],"tools":[{}]}"#,
                "\"tools\"",
            ),
        ] {
            let error = call(body).map(|_| ()).unwrap_err();
            assert!(
                error.contains(&format!("\"param\":{param}")),
                "{body}: {error}"
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn no_json_panics(value in super::super::super::json_values::arbitrary(), field in "[a-z_]{1,12}") {
            let fields = ["messages", "stream", "stop", "logit_bias", "tools", "response_format", "temperature", field.as_str()];
            for name in fields {
                let mut body = serde_json::json!({"messages": [{"role": "user", "content": "x"}]});
                body[name] = value.clone();
                let _ = call(&body.to_string());
            }
        }
    }
}
