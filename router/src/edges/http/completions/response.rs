//! A completion in one body.

use futures::StreamExt as _;
use serde::Serialize;

use super::super::answer::{Envelope, StopReason, ended_early};
use super::super::logprobs::{CompletionLogProbs, PromptLogProbs};
use super::super::usage::{UsageBody, UsageMeter};
use super::request::Reply;
use crate::api::{Event, EventStream, Finish, PromptInfo, RequestError, TokenLogProbs};

/// A finished answer.
#[derive(Debug)]
pub(super) struct CompletionAnswer {
    envelope: Envelope,
    reply: Reply,
    choices: Vec<Choice>,
    /// By prompt.
    prompts: Vec<Option<PromptInfo>>,
    usage: UsageBody,
}

#[derive(Debug, Default)]
struct Choice {
    text: String,
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
) -> Result<CompletionAnswer, RequestError> {
    let mut choices: Vec<Choice> = Vec::new();
    choices.resize_with(reply.choices() as usize, Choice::default);
    let mut prompts = vec![None; reply.prompts as usize];
    let mut meter = UsageMeter::new(reply.prompts, reply.n);
    let mut next = Some(Ok(first));
    while let Some(event) = next {
        let event = event?;
        meter.see(&event);
        let index = event.index as usize;
        if let Some(choice) = choices.get_mut(index) {
            choice.text.push_str(&event.text);
            choice.token_ids.extend(event.token_ids);
            choice.logprobs.extend(event.logprobs);
            choice.finish = event.finish.or(choice.finish.take());
        }
        if let (Some(info), Some(prompt)) = (
            event.prompt,
            prompts.get_mut(index / reply.n.max(1) as usize),
        ) {
            *prompt = Some(info);
        }
        next = rest.next().await;
    }
    if !meter.complete() {
        return Err(ended_early());
    }
    Ok(CompletionAnswer {
        envelope,
        reply,
        choices,
        prompts,
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
}

#[derive(Serialize)]
struct BodyChoice<'a> {
    index: u32,
    text: &'a str,
    logprobs: Option<CompletionLogProbs>,
    finish_reason: Option<&'static str>,
    stop_reason: Option<StopReason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<PromptLogProbs<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<&'a [u32]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<&'a [u32]>,
}

impl CompletionAnswer {
    fn choice<'a>(&'a self, index: u32, choice: &'a Choice) -> BodyChoice<'a> {
        let reply = &self.reply;
        let prompt = self
            .prompts
            .get((index / reply.n.max(1)) as usize)
            .and_then(Option::as_ref);
        let finish = choice.finish.as_ref();
        BodyChoice {
            index,
            text: &choice.text,
            logprobs: reply.logprobs.then(|| self.logprobs(index, choice, prompt)),
            finish_reason: finish.map(|finish| finish.reason.as_str()),
            stop_reason: finish.and_then(|finish| finish.stop.as_ref().map(StopReason::from)),
            prompt_logprobs: prompt
                .filter(|_| reply.prompt_logprobs)
                .map(|prompt| PromptLogProbs(&prompt.logprobs)),
            token_ids: reply.with_token_ids.then_some(&choice.token_ids),
            prompt_token_ids: prompt
                .filter(|_| reply.with_token_ids)
                .map(|prompt| prompt.token_ids.as_slice()),
        }
    }

    fn logprobs(
        &self,
        index: u32,
        choice: &Choice,
        prompt: Option<&PromptInfo>,
    ) -> CompletionLogProbs {
        let mut all = CompletionLogProbs::default();
        let mut offset = 0;
        if let Some(prompt) = prompt.filter(|_| self.reply.echo) {
            all.extend_prompt(
                prompt,
                self.reply.first_token(index),
                &choice.text,
                self.reply.token_form,
                &mut offset,
            );
        }
        all.extend(&choice.logprobs, self.reply.token_form, &mut offset);
        all
    }
}

impl Serialize for CompletionAnswer {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let body = Body {
            id: &self.envelope.id,
            object: "text_completion",
            created: self.envelope.created,
            model: &self.envelope.model,
            choices: self
                .choices
                .iter()
                .zip(0..)
                .map(|(choice, index)| self.choice(index, choice))
                .collect(),
            usage: self.usage,
        };
        body.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{FinishReason, LogProb, StopMatch, Usage};

    fn scored(id: u32, text: &str) -> TokenLogProbs {
        TokenLogProbs {
            chosen: LogProb {
                token_id: id,
                logprob: -0.5,
                bytes: text.into(),
            },
            top: vec![],
        }
    }

    fn choice(index: u32, text: &str) -> Event {
        let usage = Usage {
            prompt_tokens: 2,
            completion_tokens: 1,
            cached_tokens: 1,
        };
        let finish = Some(Finish {
            reason: FinishReason::Stop,
            stop: Some(StopMatch::Token(4)),
            usage,
        });
        let prompt = index.is_multiple_of(2).then(|| PromptInfo {
            token_ids: vec![3, 7],
            logprobs: vec![None, Some(scored(7, "b"))],
        });
        Event {
            index,
            text: text.into(),
            token_ids: vec![index],
            logprobs: vec![scored(index, "c")],
            prompt,
            finish,
            ..Event::default()
        }
    }

    async fn answer(reply: Reply, events: Vec<Event>) -> serde_json::Value {
        let envelope = Envelope {
            id: "cmpl-1".into(),
            created: 7,
            model: "m".into(),
        };
        let mut events = events.into_iter();
        let first = events.next().unwrap();
        let rest = Box::pin(futures::stream::iter(events.map(Ok).collect::<Vec<_>>()));
        serde_json::to_value(collect(envelope, first, rest, reply).await.unwrap()).unwrap()
    }

    #[tokio::test]
    async fn one_prompt() {
        let reply = Reply {
            prompts: 1,
            n: 1,
            ..Reply::default()
        };
        assert_eq!(
            answer(reply, vec![choice(0, "c")]).await.to_string(),
            r#"{"id":"cmpl-1","object":"text_completion","created":7,"model":"m","choices":[{"index":0,"text":"c","logprobs":null,"finish_reason":"stop","stop_reason":4}],"usage":{"prompt_tokens":2,"completion_tokens":1,"total_tokens":3,"prompt_tokens_details":{"cached_tokens":1}}}"#
        );
    }

    #[tokio::test]
    async fn every_choice_of_every_prompt_has_its_prompts_log_probs() {
        let reply = Reply {
            prompts: 2,
            n: 2,
            echo: true,
            logprobs: true,
            with_token_ids: true,
            first_tokens: vec!["a".into(), "x".into()],
            ..Reply::default()
        };
        let json = answer(
            reply,
            vec![
                choice(1, "abc"),
                choice(0, "abc"),
                choice(2, "xbc"),
                choice(3, "xbc"),
            ],
        )
        .await;
        for index in 0..4 {
            let choice = &json["choices"][index];
            let first = if index < 2 { "a" } else { "x" };
            assert_eq!(
                choice["logprobs"]["tokens"],
                serde_json::json!([first, "b", "c"])
            );
            assert_eq!(
                choice["logprobs"]["text_offset"],
                serde_json::json!([0, 1, 2])
            );
            assert_eq!(choice["token_ids"], serde_json::json!([index]));
            assert_eq!(choice["prompt_token_ids"], serde_json::json!([3, 7]));
            assert!(choice.get("prompt_logprobs").is_none());
        }
        assert_eq!(json["usage"]["prompt_tokens"], 4);
        assert_eq!(json["usage"]["completion_tokens"], 4);
    }
}
