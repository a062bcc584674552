//! A streamed completion: chunks of text, the last of a choice with the reason it ended.

use bytes::BytesMut;
use serde::Serialize;

use super::super::answer::{Envelope, StopReason, StreamOptions, ended_early};
use super::super::logprobs::CompletionLogProbs;
use super::super::sse::{Chunks, Frames};
use super::super::usage::UsageMeter;
use super::request::Reply;
use crate::api::{Event, RequestError};

#[derive(Serialize)]
struct ChunkChoice<'a> {
    index: u32,
    text: &'a str,
    logprobs: Option<CompletionLogProbs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<StopReason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<&'a [u32]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<&'a [u32]>,
}

/// Writes the chunks of one answer.
pub(super) struct CompletionChunks {
    frames: Frames,
    reply: Reply,
    meter: UsageMeter,
    scribe: Scribe,
}

impl CompletionChunks {
    pub(super) fn new(
        envelope: &Envelope,
        reply: Reply,
        options: StreamOptions,
    ) -> CompletionChunks {
        CompletionChunks {
            frames: Frames::new(envelope, "text_completion", options),
            meter: UsageMeter::new(reply.prompts, reply.n),
            scribe: Scribe {
                offsets: vec![0; reply.choices() as usize],
            },
            reply,
        }
    }
}

impl Chunks for CompletionChunks {
    fn event(&mut self, event: &Event, out: &mut BytesMut) {
        self.meter.see(event);
        let logprobs = self.scribe.logprobs(event, &self.reply);
        let with_ids = self.reply.with_token_ids;
        let token_ids =
            (with_ids && !event.token_ids.is_empty()).then_some(event.token_ids.as_slice());
        let prompt_token_ids = event
            .prompt
            .as_ref()
            .filter(|_| with_ids)
            .map(|prompt| prompt.token_ids.as_slice());
        let finish = event.finish.as_ref();
        let empty = event.text.is_empty()
            && logprobs.is_none()
            && token_ids.is_none()
            && prompt_token_ids.is_none();
        if empty && finish.is_none() {
            return;
        }
        let choice = ChunkChoice {
            index: event.index,
            text: &event.text,
            logprobs,
            finish_reason: finish.map(|finish| finish.reason.as_str()),
            stop_reason: finish.and_then(|finish| finish.stop.as_ref().map(StopReason::from)),
            token_ids,
            prompt_token_ids,
        };
        self.frames.chunk(out, &choice, &self.meter);
    }

    fn end(&mut self, out: &mut BytesMut) -> Result<(), RequestError> {
        if !self.meter.complete() {
            return Err(ended_early());
        }
        self.frames.usage(out, &self.meter);
        Ok(())
    }
}

/// Writes the log-probs of one event after another, and remembers where each choice's text has come to.
struct Scribe {
    /// By choice: where its next token starts, in characters.
    offsets: Vec<u32>,
}

impl Scribe {
    /// `None` where log-probs were not asked for, or the event has no tokens.
    fn logprobs(&mut self, event: &Event, reply: &Reply) -> Option<CompletionLogProbs> {
        if !reply.logprobs {
            return None;
        }
        let offset = self.offsets.get_mut(event.index as usize)?;
        let mut all = CompletionLogProbs::default();
        if let Some(prompt) = event.prompt.as_ref().filter(|_| reply.echo) {
            all.extend_prompt(
                prompt,
                reply.first_token(event.index),
                &event.text,
                reply.token_form,
                offset,
            );
        }
        all.extend(&event.logprobs, reply.token_form, offset);
        (!all.is_empty()).then_some(all)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::sse::tests::received;
    use super::*;
    use crate::api::{Finish, FinishReason, LogProb, PromptInfo, TokenLogProbs, Usage};

    const HEAD: &str =
        r#"{"id":"cmpl-1","object":"text_completion","created":7,"model":"tiny-r1","choices":["#;

    fn chunks(reply: Reply) -> CompletionChunks {
        let envelope = Envelope {
            id: "cmpl-1".into(),
            created: 7,
            model: "tiny-r1".into(),
        };
        CompletionChunks::new(
            &envelope,
            reply,
            StreamOptions {
                include_usage: true,
                continuous_usage_stats: false,
            },
        )
    }

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

    fn finish(text: &str) -> Event {
        let usage = Usage {
            prompt_tokens: 2,
            completion_tokens: 1,
            cached_tokens: 0,
        };
        let finish = Some(Finish {
            reason: FinishReason::Length,
            stop: None,
            usage,
        });
        Event {
            text: text.into(),
            token_ids: vec![9],
            finish,
            ..Event::default()
        }
    }

    #[tokio::test]
    async fn text_then_finish_with_text() {
        let first = Event {
            text: "a".into(),
            token_ids: vec![8],
            ..Event::default()
        };
        let nothing = Event::default();
        let reply = Reply {
            prompts: 1,
            n: 1,
            ..Reply::default()
        };
        let events = received(first, vec![Ok(nothing), Ok(finish("b"))], chunks(reply)).await;
        let expected = [
            r#"{"index":0,"text":"a","logprobs":null,"finish_reason":null}],"usage":null}"#,
            r#"{"index":0,"text":"b","logprobs":null,"finish_reason":"length"}],"usage":null}"#,
            r#"],"usage":{"prompt_tokens":2,"completion_tokens":1,"total_tokens":3,"prompt_tokens_details":{"cached_tokens":0}}}"#,
        ];
        let expected: Vec<String> = expected
            .iter()
            .map(|rest| format!("{HEAD}{rest}"))
            .chain(["[DONE]".into()])
            .collect();
        assert_eq!(events, expected);
    }

    #[tokio::test]
    async fn echoed_log_probs_come_first_and_offsets_run_on() {
        let prompt = Some(PromptInfo {
            token_ids: vec![0, 7],
            logprobs: vec![None, Some(scored(7, "hi"))],
        });
        let first = Event {
            text: "hi".into(),
            prompt,
            ..Event::default()
        };
        let mut last = finish("!");
        last.logprobs = vec![scored(9, "!")];
        let reply = Reply {
            prompts: 1,
            n: 1,
            echo: true,
            logprobs: true,
            first_tokens: vec!["<s>".into()],
            ..Reply::default()
        };
        let events = received(first, vec![Ok(last)], chunks(reply)).await;
        // The text leaves out the special token at its start, so that it takes no room.
        assert_eq!(
            events[0],
            format!(
                r#"{HEAD}{{"index":0,"text":"hi","logprobs":{{"tokens":["<s>","hi"],"token_logprobs":[null,-0.5],"top_logprobs":[null,{{"hi":-0.5}}],"text_offset":[0,0]}},"finish_reason":null}}],"usage":null}}"#
            )
        );
        assert!(events[1].contains(r#""tokens":["!"],"token_logprobs":[-0.5],"top_logprobs":[{"!":-0.5}],"text_offset":[2]"#), "{}", events[1]);
    }
}
