//! A chat answer in one body.

use futures::StreamExt as _;
use serde::Serialize;

use super::super::answer::{Envelope, StopReason, ended_early};
use super::super::logprobs::{ChatLogProbs, PromptLogProbs};
use super::super::usage::{UsageBody, UsageMeter};
use super::request::Reply;
use crate::api::{Event, EventStream, Finish, PromptInfo, RequestError, TokenLogProbs};

/// A finished answer.
#[derive(Debug)]
pub(super) struct ChatAnswer {
    envelope: Envelope,
    reply: Reply,
    choices: Vec<Choice>,
    prompt: Option<PromptInfo>,
    usage: UsageBody,
}

#[derive(Debug, Default)]
struct Choice {
    text: String,
    reasoning: String,
    token_ids: Vec<u32>,
    logprobs: Vec<TokenLogProbs>,
    finish: Option<Finish>,
}

/// Gathers all events of an answer.
///
/// # Errors
/// The first error of the stream, which makes the whole answer worthless.
pub(super) async fn collect(
    envelope: Envelope,
    first: Event,
    mut rest: EventStream,
    reply: Reply,
) -> Result<ChatAnswer, RequestError> {
    let mut choices: Vec<Choice> = Vec::new();
    choices.resize_with(reply.n as usize, Choice::default);
    let mut meter = UsageMeter::new(1, reply.n);
    let mut prompt = None;
    let mut next = Some(Ok(first));
    while let Some(event) = next {
        let event = event?;
        meter.see(&event);
        if let Some(choice) = choices.get_mut(event.index as usize) {
            choice.text.push_str(&event.text);
            choice.reasoning.push_str(&event.reasoning);
            choice.token_ids.extend(event.token_ids);
            choice.logprobs.extend(event.logprobs);
            choice.finish = event.finish.or(choice.finish.take());
        }
        prompt = prompt.or(event.prompt);
        next = rest.next().await;
    }
    if !meter.complete() {
        return Err(ended_early());
    }
    Ok(ChatAnswer {
        envelope,
        reply,
        choices,
        prompt,
        usage: meter.total(),
    })
}

#[derive(Serialize)]
struct Body<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<BodyChoice<'a>>,
    usage: UsageBody,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<PromptLogProbs<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<&'a [u32]>,
}

#[derive(Serialize)]
struct BodyChoice<'a> {
    index: usize,
    message: AssistantMessage<'a>,
    logprobs: Option<ChatLogProbs<'a>>,
    finish_reason: Option<&'static str>,
    stop_reason: Option<StopReason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<&'a [u32]>,
}

#[derive(Serialize)]
struct AssistantMessage<'a> {
    role: &'static str,
    content: &'a str,
    refusal: Option<&'static str>,
    /// Absent where the model did not think. See the streamed form for its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
}

impl Choice {
    fn body(&self, index: usize, reply: &Reply) -> BodyChoice<'_> {
        let reasoning = (!reply.without_reasoning && !self.reasoning.is_empty())
            .then_some(self.reasoning.as_str());
        BodyChoice {
            index,
            message: AssistantMessage {
                role: "assistant",
                content: &self.text,
                refusal: None,
                reasoning_content: reasoning,
            },
            logprobs: ChatLogProbs::of(&self.logprobs, reply.token_form),
            finish_reason: self.finish.as_ref().map(|finish| finish.reason.as_str()),
            stop_reason: self
                .finish
                .as_ref()
                .and_then(|finish| finish.stop.as_ref().map(StopReason::from)),
            token_ids: reply.with_token_ids.then_some(&self.token_ids),
        }
    }
}

impl Serialize for ChatAnswer {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let prompt = self.prompt.as_ref();
        let body = Body {
            id: &self.envelope.id,
            object: "chat.completion",
            created: self.envelope.created,
            model: &self.envelope.model,
            choices: self
                .choices
                .iter()
                .enumerate()
                .map(|(index, choice)| choice.body(index, &self.reply))
                .collect(),
            usage: self.usage,
            prompt_logprobs: prompt
                .filter(|it| !it.logprobs.is_empty())
                .map(|it| PromptLogProbs(&it.logprobs)),
            prompt_token_ids: prompt
                .filter(|_| self.reply.with_token_ids)
                .map(|it| it.token_ids.as_slice()),
        };
        body.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::logprobs::TokenForm;
    use super::*;
    use crate::api::{FinishReason, LogProb, Usage};

    fn finish(index: u32) -> Event {
        let usage = Usage {
            prompt_tokens: 2,
            completion_tokens: 1,
            cached_tokens: 0,
        };
        Event {
            index,
            finish: Some(Finish {
                reason: FinishReason::Length,
                stop: None,
                usage,
            }),
            ..Event::default()
        }
    }

    async fn answer(reply: Reply, first: Event, rest: Vec<Event>) -> Result<String, RequestError> {
        let envelope = Envelope {
            id: "chatcmpl-1".into(),
            created: 7,
            model: "m".into(),
        };
        let rest = Box::pin(futures::stream::iter(rest.into_iter().map(Ok)));
        Ok(serde_json::to_string(&collect(envelope, first, rest, reply).await?).unwrap())
    }

    #[tokio::test]
    async fn one_choice() {
        let first = Event {
            reasoning: "so".into(),
            token_ids: vec![1],
            ..Event::default()
        };
        let rest = vec![
            Event {
                text: "42".into(),
                token_ids: vec![2],
                ..Event::default()
            },
            finish(0),
        ];
        assert_eq!(
            answer(
                Reply {
                    n: 1,
                    ..Reply::default()
                },
                first,
                rest
            )
            .await
            .unwrap(),
            r#"{"id":"chatcmpl-1","object":"chat.completion","created":7,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"42","refusal":null,"reasoning_content":"so"},"logprobs":null,"finish_reason":"length","stop_reason":null}],"usage":{"prompt_tokens":2,"completion_tokens":1,"total_tokens":3,"prompt_tokens_details":{"cached_tokens":0}}}"#
        );
    }

    #[tokio::test]
    async fn two_choices_with_everything() {
        let chosen = LogProb {
            token_id: 4,
            logprob: -1.0,
            bytes: b"a".to_vec(),
        };
        let token = TokenLogProbs {
            chosen,
            top: vec![],
        };
        let prompt = Some(PromptInfo {
            token_ids: vec![8, 9],
            logprobs: vec![None, Some(token.clone())],
        });
        let first = Event {
            prompt,
            ..Event::default()
        };
        let second = Event {
            index: 1,
            text: "a".into(),
            token_ids: vec![4],
            logprobs: vec![token],
            ..Event::default()
        };
        let reply = Reply {
            n: 2,
            with_token_ids: true,
            token_form: TokenForm::Id,
            ..Reply::default()
        };
        let json = answer(reply, first, vec![second, finish(1), finish(0)])
            .await
            .unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(
            json["choices"][0]["message"],
            serde_json::json!({"role": "assistant", "content": "", "refusal": null})
        );
        assert_eq!(
            json["choices"][1]["logprobs"]["content"][0]["token"],
            "token_id:4"
        );
        assert_eq!(json["choices"][1]["token_ids"], serde_json::json!([4]));
        assert_eq!(json["prompt_token_ids"], serde_json::json!([8, 9]));
        assert_eq!(json["prompt_logprobs"][1]["4"]["decoded_token"], "a");
        assert_eq!(json["usage"]["total_tokens"], 4);
    }

    #[tokio::test]
    async fn an_unfinished_answer_is_an_error() {
        assert!(matches!(
            answer(
                Reply {
                    n: 1,
                    ..Reply::default()
                },
                Event::default(),
                vec![]
            )
            .await,
            Err(RequestError::Internal { .. })
        ));
    }
}
