//! Between `millrace.inference.v1` and the router's own terms. Pure functions.

use millrace_model::chat::Message;
use millrace_proto::inference::v1 as wire;
use millrace_proto::inference::v1::generate_request::Prompt as WirePrompt;
use millrace_proto::inference::v1::tokenize_request::Input as WireInput;
use serde_json::{Map, Value};
use tonic::Status;

use super::super::roles;
use super::Caller;
use super::status::invalid;
use crate::api::{
    ChatRequest, CompletionRequest, Event, Finish, FinishReason, LogProb, ModelCard, Prompt,
    SamplingRequest, StopMatch, TokenLogProbs, TokenizeInput, TokenizeRequest,
};

/// # Errors
/// INVALID_ARGUMENT without a prompt.
pub(super) fn completion(
    request: wire::GenerateRequest,
    caller: &Caller,
) -> Result<CompletionRequest, Status> {
    let prompt = match request.prompt {
        Some(WirePrompt::Text(text)) => Prompt::Text(text),
        Some(WirePrompt::Tokens(tokens)) => Prompt::Tokens(tokens.ids),
        None => {
            return Err(invalid(
                "prompt",
                "the request has no prompt: set `text` or `tokens`",
            ));
        }
    };
    Ok(CompletionRequest {
        model: request.model,
        prompt,
        sampling: sampling(request.sampling.unwrap_or_default()),
        // The contract: to the end of the context.
        default_max_tokens: None,
        echo: request.echo,
        options: caller.options(&request.request_id, request.cache_salt),
    })
}

/// # Errors
/// INVALID_ARGUMENT for messages or template variables that cannot be read.
pub(super) fn chat(request: wire::ChatRequest, caller: &Caller) -> Result<ChatRequest, Status> {
    Ok(ChatRequest {
        model: request.model,
        messages: messages(request.messages)?,
        sampling: sampling(request.sampling.unwrap_or_default()),
        template_kwargs: template_kwargs(&request.template_kwargs_json)?,
        options: caller.options(&request.request_id, request.cache_salt),
    })
}

/// # Errors
/// INVALID_ARGUMENT without an input, or as [`chat`].
pub(super) fn tokenize(request: wire::TokenizeRequest) -> Result<TokenizeRequest, Status> {
    let (model, input) = match request.input {
        Some(WireInput::Text(text)) => (request.model, TokenizeInput::Text(text)),
        Some(WireInput::Chat(chat)) => {
            let model = if request.model.is_empty() {
                chat.model
            } else {
                request.model
            };
            let messages = messages(chat.messages)?;
            let template_kwargs = template_kwargs(&chat.template_kwargs_json)?;
            // As Chat would render it.
            (
                model,
                TokenizeInput::Chat {
                    messages,
                    template_kwargs,
                    add_generation_prompt: true,
                },
            )
        }
        None => {
            return Err(invalid(
                "input",
                "the request has no input: set `text` or `chat`",
            ));
        }
    };
    Ok(TokenizeRequest {
        model,
        input,
        add_special_tokens: request.add_special_tokens,
    })
}

fn messages(messages: Vec<wire::ChatMessage>) -> Result<Vec<Message>, Status> {
    if messages.is_empty() {
        return Err(invalid(
            "messages",
            "the conversation is empty: send at least one message",
        ));
    }
    let convert = |(at, message): (usize, wire::ChatMessage)| {
        let role = roles::canonical(&message.role)
            .map_err(|error| invalid(&format!("messages[{at}].role"), error.to_string()))?;
        let mut converted = Message::new(role, message.content);
        if !message.reasoning_content.is_empty() {
            converted
                .extra
                .insert("reasoning_content".into(), message.reasoning_content.into());
        }
        Ok(converted)
    };
    messages.into_iter().enumerate().map(convert).collect()
}

fn template_kwargs(json: &str) -> Result<Map<String, Value>, Status> {
    if json.is_empty() {
        return Ok(Map::new());
    }
    serde_json::from_str(json).map_err(|error| {
        invalid(
            "template_kwargs_json",
            format!("`template_kwargs_json` must be a JSON object: {error}"),
        )
    })
}

fn sampling(wire: wire::SamplingParams) -> SamplingRequest {
    SamplingRequest {
        temperature: wire.temperature,
        top_p: wire.top_p,
        top_k: wire.top_k.map(i64::from),
        min_p: wire.min_p,
        repetition_penalty: wire.repetition_penalty,
        frequency_penalty: wire.frequency_penalty,
        presence_penalty: wire.presence_penalty,
        logit_bias: wire.logit_bias.into_iter().collect(),
        seed: wire.seed,
        stop: wire.stop,
        stop_token_ids: wire.stop_token_ids,
        min_tokens: wire.min_tokens,
        max_tokens: wire.max_tokens,
        ignore_eos: wire.ignore_eos,
        n: (wire.n != 0).then_some(wire.n),
        logprobs: wire.logprobs,
        prompt_logprobs: wire.prompt_logprobs,
        include_stop: wire.include_stop,
        keep_special_tokens: wire.keep_special_tokens,
    }
}

pub(super) fn generate_response(event: Event, request_id: String) -> wire::GenerateResponse {
    // A token without log-probs (the prompt's first) keeps its place.
    let prompt_logprobs = event.prompt.into_iter().flat_map(|prompt| prompt.logprobs);
    wire::GenerateResponse {
        request_id,
        index: event.index,
        text: event.text,
        token_ids: event.token_ids,
        logprobs: event.logprobs.into_iter().map(token_logprobs).collect(),
        prompt_logprobs: prompt_logprobs
            .map(|token| token.map(token_logprobs).unwrap_or_default())
            .collect(),
        finish: event.finish.map(finish),
    }
}

pub(super) fn chat_response(event: Event, request_id: String) -> wire::ChatResponse {
    wire::ChatResponse {
        request_id,
        index: event.index,
        reasoning_content: event.reasoning,
        content: event.text,
        token_ids: event.token_ids,
        logprobs: event.logprobs.into_iter().map(token_logprobs).collect(),
        finish: event.finish.map(finish),
    }
}

fn token_logprobs(token: TokenLogProbs) -> wire::TokenLogProbs {
    let convert = |it: LogProb| wire::LogProb {
        token_id: it.token_id,
        logprob: it.logprob,
        token: it.bytes,
    };
    wire::TokenLogProbs {
        chosen: Some(convert(token.chosen)),
        top: token.top.into_iter().map(convert).collect(),
    }
}

fn finish(finish: Finish) -> wire::Finish {
    let (stop, stop_token_id) = match finish.stop {
        Some(StopMatch::Text(text)) => (text, None),
        Some(StopMatch::Token(id)) => (String::new(), Some(id)),
        None => (String::new(), None),
    };
    let reason = match finish.reason {
        FinishReason::Stop => wire::FinishReason::Stop,
        FinishReason::Length => wire::FinishReason::Length,
    };
    let usage = wire::Usage {
        prompt_tokens: finish.usage.prompt_tokens,
        completion_tokens: finish.usage.completion_tokens,
        cached_tokens: finish.usage.cached_tokens,
    };
    wire::Finish {
        reason: reason.into(),
        stop,
        stop_token_id,
        usage: Some(usage),
    }
}

pub(super) fn model(card: ModelCard) -> wire::Model {
    let ModelCard {
        name,
        architecture,
        revision,
        max_model_len,
        ready,
        ..
    } = card;
    wire::Model {
        id: name,
        architecture,
        revision,
        max_model_len,
        ready,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{PromptInfo, Usage};
    use tonic::metadata::MetadataMap;

    fn caller() -> Caller {
        Caller::of(&MetadataMap::new())
    }

    #[test]
    fn a_request_keeps_every_parameter() {
        let params = wire::SamplingParams {
            temperature: Some(0.0),
            top_k: Some(0),
            logit_bias: [(3, 1.5)].into(),
            n: 0,
            stop: vec!["a".into()],
            ignore_eos: true,
            ..Default::default()
        };
        let request = wire::GenerateRequest {
            model: "m".into(),
            prompt: Some(WirePrompt::Tokens(wire::TokenIds { ids: vec![1, 2] })),
            sampling: Some(params),
            request_id: "r".into(),
            echo: true,
            cache_salt: "s".into(),
        };
        let request = completion(request, &caller()).unwrap();
        assert_eq!(request.prompt, Prompt::Tokens(vec![1, 2]));
        assert_eq!(request.options.request_id, "r");
        assert_eq!((request.echo, request.default_max_tokens), (true, None));
        let expected = SamplingRequest {
            temperature: Some(0.0),
            top_k: Some(0),
            logit_bias: [(3, 1.5)].into(),
            stop: vec!["a".into()],
            ignore_eos: true,
            ..Default::default()
        };
        assert_eq!(request.sampling, expected);
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(
            completion(wire::GenerateRequest::default(), &caller())
                .unwrap_err()
                .code(),
            tonic::Code::InvalidArgument
        );
        assert!(
            tokenize(wire::TokenizeRequest::default())
                .unwrap_err()
                .message()
                .contains("`text` or `chat`")
        );
        assert!(
            chat(wire::ChatRequest::default(), &caller())
                .unwrap_err()
                .message()
                .contains("at least one message")
        );
        let message = |role: &str| wire::ChatMessage {
            role: role.into(),
            content: "x".into(),
            reasoning_content: "y".into(),
        };
        let mut request = wire::ChatRequest {
            messages: vec![message("user"), message("robot")],
            ..Default::default()
        };
        assert!(
            chat(request.clone(), &caller())
                .unwrap_err()
                .message()
                .contains("\"robot\"")
        );
        request.messages.pop();
        request.template_kwargs_json = "[1]".into();
        assert!(
            chat(request.clone(), &caller())
                .unwrap_err()
                .message()
                .contains("JSON object")
        );
        request.template_kwargs_json = r#"{"thinking":true}"#.into();
        let request = chat(request, &caller()).unwrap();
        assert_eq!(request.template_kwargs["thinking"], true);
        assert_eq!(request.messages[0].extra["reasoning_content"], "y");
    }

    #[test]
    fn an_event_keeps_everything() {
        let chosen = LogProb {
            token_id: 4,
            logprob: -1.0,
            bytes: b"\xff".to_vec(),
        };
        let token = TokenLogProbs {
            chosen: chosen.clone(),
            top: vec![chosen],
        };
        let usage = Usage {
            prompt_tokens: 2,
            completion_tokens: 1,
            cached_tokens: 1,
        };
        let event = Event {
            index: 1,
            text: "t".into(),
            reasoning: "r".into(),
            token_ids: vec![4],
            logprobs: vec![token.clone()],
            prompt: Some(PromptInfo {
                token_ids: vec![8, 9],
                logprobs: vec![None, Some(token)],
            }),
            finish: Some(Finish {
                reason: FinishReason::Length,
                stop: Some(StopMatch::Token(4)),
                usage,
            }),
        };
        let response = generate_response(event.clone(), "id".into());
        assert_eq!(
            (
                response.index,
                response.text.as_str(),
                response.token_ids.as_slice()
            ),
            (1, "t", &[4][..])
        );
        assert_eq!(response.prompt_logprobs.len(), 2);
        assert!(response.prompt_logprobs[0].chosen.is_none());
        assert_eq!(response.logprobs[0].chosen.as_ref().unwrap().token, b"\xff");
        let finish = response.finish.unwrap();
        assert_eq!(
            (finish.reason(), finish.stop_token_id),
            (wire::FinishReason::Length, Some(4))
        );
        assert_eq!(finish.usage.unwrap().cached_tokens, 1);
        let response = chat_response(event, "id".into());
        assert_eq!(
            (
                response.reasoning_content.as_str(),
                response.content.as_str()
            ),
            ("r", "t")
        );
    }
}
