//! A completion request's JSON, read into the router's own terms.

use serde::Deserialize;

use super::super::answer::StreamOptions;
use super::super::body::JsonBody;
use super::super::chat::stream_form;
use super::super::error::ApiError;
use super::super::fields::Prompts;
use super::super::logprobs::TokenForm;
use super::super::sampling::SamplingFields;
use super::super::unsupported;
use millrace_telemetry::traces::Parent;

use crate::api::{CompletionRequest, RequestOptions};

/// What an absent `max_tokens` means in this API.
const DEFAULT_MAX_TOKENS: u32 = 16;

/// The fields of completions alone; [`SamplingFields`] has the rest.
#[derive(Deserialize)]
struct CompletionFields {
    #[serde(default)]
    model: Option<String>,
    prompt: Prompts,
    echo: Option<bool>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    /// Alternatives a token.
    logprobs: Option<u32>,
    best_of: Option<u32>,
    cache_salt: Option<String>,
    return_tokens_as_token_ids: Option<bool>,
    return_token_ids: Option<bool>,
}

/// One request a prompt, and how their joint answer is to look.
pub(super) struct Call {
    /// Not empty.
    pub(super) requests: Vec<CompletionRequest>,
    pub(super) reply: Reply,
}

/// The answer's form.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Reply {
    /// `None`: one body.
    pub(super) stream: Option<StreamOptions>,
    pub(super) prompts: u32,
    pub(super) n: u32,
    pub(super) echo: bool,
    pub(super) logprobs: bool,
    /// The client asked for `prompt_logprobs` itself, and not only through `echo`.
    pub(super) prompt_logprobs: bool,
    pub(super) token_form: TokenForm,
    pub(super) with_token_ids: bool,
    /// By prompt: its first token's text, where echoed log-probs need it.
    pub(super) first_tokens: Vec<String>,
}

impl Reply {
    pub(super) fn choices(&self) -> u32 {
        self.prompts.saturating_mul(self.n)
    }

    /// The first token's text of the prompt that `choice` completes.
    pub(super) fn first_token(&self, choice: u32) -> &str {
        self.first_tokens
            .get((choice / self.n.max(1)) as usize)
            .map_or("", String::as_str)
    }
}

/// # Errors
/// 400 with the field to blame.
pub(super) fn read(
    body: &JsonBody,
    request_id: &str,
    max_prompts: usize,
) -> Result<Call, ApiError> {
    unsupported::check_completions(body)?;
    let fields: CompletionFields = body.read()?;
    let mut sampling = body.read::<SamplingFields>()?.into_request();
    let prompts = fields.prompt.0;
    if prompts.len() > max_prompts {
        let message = format!(
            "`prompt` has {} prompts; this server takes at most {max_prompts} at once",
            prompts.len()
        );
        return Err(ApiError::invalid("prompt", message));
    }
    let n = sampling.n.unwrap_or(1);
    if fields.best_of.is_some_and(|best_of| best_of != n) {
        return Err(ApiError::invalid(
            "best_of",
            "`best_of` other than `n` is not supported by this server",
        ));
    }
    let stream = stream_form(fields.stream, fields.stream_options)?;
    let prompt_logprobs = sampling.prompt_logprobs.is_some();
    if stream.is_some() && prompt_logprobs {
        return Err(ApiError::invalid(
            "prompt_logprobs",
            "`prompt_logprobs` are not available with `stream`",
        ));
    }
    let echo = fields.echo.unwrap_or(false);
    sampling.logprobs = fields.logprobs;
    if echo && stream.is_some() && fields.logprobs.is_some() && n > 1 {
        // The prompt's log-probs come once, while each choice's stream would have to start with them.
        return Err(ApiError::invalid(
            "n",
            "`echo` with `logprobs` and `stream` takes `n` of 1",
        ));
    }
    if echo {
        // The echoed prompt's tokens are shown with log-probs, like the ones generated after them.
        sampling.prompt_logprobs = sampling.prompt_logprobs.or(fields.logprobs);
    }
    let reply = Reply {
        stream,
        prompts: prompts.len() as u32,
        n,
        echo,
        logprobs: fields.logprobs.is_some(),
        prompt_logprobs,
        token_form: TokenForm::from_flag(fields.return_tokens_as_token_ids),
        with_token_ids: fields.return_token_ids.unwrap_or(false),
        first_tokens: Vec::new(),
    };
    let model = fields.model.unwrap_or_default();
    let cache_salt = fields.cache_salt.unwrap_or_default();
    let several = prompts.len() > 1;
    let requests = prompts
        .into_iter()
        .enumerate()
        .map(|(at, prompt)| CompletionRequest {
            model: model.clone(),
            prompt,
            sampling: sampling.clone(),
            default_max_tokens: Some(DEFAULT_MAX_TOKENS),
            echo,
            options: RequestOptions {
                request_id: if several {
                    format!("{request_id}-{at}")
                } else {
                    request_id.to_owned()
                },
                cache_salt: cache_salt.clone(),
                deadline: None,
                trace: Parent::default(),
            },
        });
    Ok(Call {
        requests: requests.collect(),
        reply,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Prompt;

    fn call(body: &str) -> Result<Call, String> {
        let body = JsonBody(bytes::Bytes::copy_from_slice(body.as_bytes()));
        read(&body, "req-1", 3).map_err(|error| serde_json::to_string(&error.body()).unwrap())
    }

    #[test]
    fn one_request_a_prompt() {
        let Call { requests, reply } = call(
            r#"{"prompt":[[1,2],[3]],"n":2,"best_of":2,"echo":true,"logprobs":1,"max_tokens":0}"#,
        )
        .unwrap();
        assert_eq!(requests.len(), 2);
        assert_eq!(requests[1].prompt, Prompt::Tokens(vec![3]));
        assert_eq!(requests[1].options.request_id, "req-1-1");
        assert_eq!(requests[0].default_max_tokens, Some(16));
        assert_eq!(requests[0].sampling.max_tokens, Some(0));
        assert_eq!(requests[0].sampling.prompt_logprobs, Some(1));
        assert!(requests[0].echo && reply.logprobs && !reply.prompt_logprobs);
        assert_eq!((reply.prompts, reply.n, reply.choices()), (2, 2, 4));
        let Call { requests, .. } = call(r#"{"prompt":"a"}"#).unwrap();
        assert_eq!(requests[0].options.request_id, "req-1");
        assert_eq!(requests[0].sampling.logprobs, None);
    }

    #[test]
    fn refuses_with_the_field_to_blame() {
        for (body, param) in [
            (r#"{"model":"m"}"#, "null"),
            (r#"{"prompt":"a","suffix":"b"}"#, "\"suffix\""),
            (r#"{"prompt":"a","best_of":2}"#, "\"best_of\""),
            (r#"{"prompt":["a","b","c","d"]}"#, "\"prompt\""),
            (r#"{"prompt":[]}"#, "\"prompt\""),
            (r#"{"prompt":"a","logprobs":true}"#, "\"logprobs\""),
            (
                r#"{"prompt":"a","stream":true,"echo":true,"logprobs":1,"n":2}"#,
                "\"n\"",
            ),
            (
                r#"{"prompt":"a","stream":true,"prompt_logprobs":1}"#,
                "\"prompt_logprobs\"",
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
        fn no_json_panics(value in super::super::super::json_values::arbitrary()) {
            for name in ["prompt", "stream", "logprobs", "best_of", "seed", "stop_token_ids", "suffix"] {
                let mut body = serde_json::json!({"prompt": "x"});
                body[name] = value.clone();
                let _ = call(&body.to_string());
            }
        }
    }
}
