//! A streamed chat answer: for each choice the role, then its text, then why it ended.

use bytes::BytesMut;
use serde::Serialize;

use super::super::answer::{Envelope, StopReason, StreamOptions, ended_early};
use super::super::logprobs::ChatLogProbs;
use super::super::sse::{Chunks, Frames};
use super::super::usage::UsageMeter;
use super::request::Reply;
use crate::api::{Event, RequestError};

#[derive(Serialize)]
struct ChunkChoice<'a> {
    index: u32,
    delta: Delta<'a>,
    logprobs: Option<ChatLogProbs<'a>>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<StopReason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<&'a [u32]>,
}

/// What a choice has gained.
///
/// Thinking is in `reasoning_content`, the name that DeepSeek's own API has and that R1's clients
/// look for. vLLM's newer `reasoning` is not sent beside it: it would double the bytes of every
/// thinking token, and clients that read both names would show the thinking twice.
#[derive(Default, Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

/// Writes the chunks of one answer.
pub(super) struct ChatChunks {
    frames: Frames,
    reply: Reply,
    meter: UsageMeter,
    /// By choice: its role was sent.
    begun: Vec<bool>,
}

impl ChatChunks {
    pub(super) fn new(envelope: &Envelope, reply: Reply, options: StreamOptions) -> ChatChunks {
        ChatChunks {
            frames: Frames::new(envelope, "chat.completion.chunk", options),
            reply,
            meter: UsageMeter::new(1, reply.n),
            begun: vec![false; reply.n as usize],
        }
    }

    fn write(&self, out: &mut BytesMut, choice: &ChunkChoice<'_>) {
        self.frames.chunk(out, choice, &self.meter);
    }
}

impl Chunks for ChatChunks {
    fn event(&mut self, event: &Event, out: &mut BytesMut) {
        self.meter.see(event);
        let index = event.index;
        let plain = |delta| ChunkChoice {
            index,
            delta,
            logprobs: None,
            finish_reason: None,
            stop_reason: None,
            token_ids: None,
        };
        if let Some(begun @ false) = self.begun.get_mut(index as usize) {
            *begun = true;
            self.write(
                out,
                &plain(Delta {
                    role: Some("assistant"),
                    content: Some(""),
                    ..Delta::default()
                }),
            );
        }
        let reasoning = if self.reply.without_reasoning {
            ""
        } else {
            event.reasoning.as_str()
        };
        let logprobs = ChatLogProbs::of(&event.logprobs, self.reply.token_form);
        let token_ids = (self.reply.with_token_ids && !event.token_ids.is_empty())
            .then_some(event.token_ids.as_slice());
        if !event.text.is_empty()
            || !reasoning.is_empty()
            || logprobs.is_some()
            || token_ids.is_some()
        {
            // Tokens without text (part of a character, a special token) still have log-probs to show.
            let content =
                (!event.text.is_empty() || reasoning.is_empty()).then_some(event.text.as_str());
            let reasoning_content = (!reasoning.is_empty()).then_some(reasoning);
            let delta = Delta {
                role: None,
                reasoning_content,
                content,
            };
            self.write(
                out,
                &ChunkChoice {
                    logprobs,
                    token_ids,
                    ..plain(delta)
                },
            );
        }
        if let Some(finish) = &event.finish {
            let finish_reason = Some(finish.reason.as_str());
            let stop_reason = finish.stop.as_ref().map(StopReason::from);
            self.write(
                out,
                &ChunkChoice {
                    finish_reason,
                    stop_reason,
                    ..plain(Delta::default())
                },
            );
        }
    }

    fn end(&mut self, out: &mut BytesMut) -> Result<(), RequestError> {
        if !self.meter.complete() {
            return Err(ended_early());
        }
        self.frames.usage(out, &self.meter);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::sse::tests::received;
    use super::*;
    use crate::api::{Finish, FinishReason, LogProb, PromptInfo, StopMatch, TokenLogProbs, Usage};

    fn chunks(reply: Reply, options: StreamOptions) -> ChatChunks {
        let envelope = Envelope {
            id: "chatcmpl-1".into(),
            created: 7,
            model: "tiny-r1".into(),
        };
        ChatChunks::new(
            &envelope,
            Reply {
                stream: Some(options),
                ..reply
            },
            options,
        )
    }

    fn finish(index: u32, stop: Option<StopMatch>) -> Event {
        let usage = Usage {
            prompt_tokens: 5,
            completion_tokens: 3,
            cached_tokens: 4,
        };
        Event {
            index,
            finish: Some(Finish {
                reason: FinishReason::Stop,
                stop,
                usage,
            }),
            ..Event::default()
        }
    }

    fn first() -> Event {
        let prompt = Some(PromptInfo {
            token_ids: vec![0; 5],
            logprobs: vec![],
        });
        Event {
            reasoning: "hm".into(),
            token_ids: vec![1],
            prompt,
            ..Event::default()
        }
    }

    const HEAD: &str = r#"{"id":"chatcmpl-1","object":"chat.completion.chunk","created":7,"model":"tiny-r1","choices":["#;

    #[tokio::test]
    async fn role_text_finish_usage_done() {
        let options = StreamOptions {
            include_usage: true,
            continuous_usage_stats: false,
        };
        let reply = Reply {
            n: 1,
            ..Reply::default()
        };
        let answer = Event {
            text: "4\n2".into(),
            token_ids: vec![2],
            ..Event::default()
        };
        let nothing = Event {
            token_ids: vec![3],
            ..Event::default()
        };
        let events = received(
            first(),
            vec![Ok(answer), Ok(nothing), Ok(finish(0, None))],
            chunks(reply, options),
        )
        .await;
        let expected = [
            r#"{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"usage":null}"#,
            r#"{"index":0,"delta":{"reasoning_content":"hm"},"logprobs":null,"finish_reason":null}],"usage":null}"#,
            r#"{"index":0,"delta":{"content":"4\n2"},"logprobs":null,"finish_reason":null}],"usage":null}"#,
            r#"{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}],"usage":null}"#,
            r#"],"usage":{"prompt_tokens":5,"completion_tokens":3,"total_tokens":8,"prompt_tokens_details":{"cached_tokens":4}}}"#,
        ];
        let expected: Vec<String> = expected
            .iter()
            .map(|rest| format!("{HEAD}{rest}"))
            .chain(["[DONE]".into()])
            .collect();
        assert_eq!(events, expected);
    }

    #[tokio::test]
    async fn choices_logprobs_and_stop_reasons() {
        let reply = Reply {
            n: 2,
            without_reasoning: true,
            with_token_ids: true,
            ..Reply::default()
        };
        let chosen = LogProb {
            token_id: 9,
            logprob: -0.25,
            bytes: b"\xc3".to_vec(),
        };
        let half = TokenLogProbs {
            chosen,
            top: vec![],
        };
        let other = Event {
            index: 1,
            token_ids: vec![9],
            logprobs: vec![half],
            ..Event::default()
        };
        let rest = vec![
            Ok(other),
            Ok(finish(1, Some(StopMatch::Text("END".into())))),
            Ok(finish(0, Some(StopMatch::Token(3)))),
        ];
        let events = received(first(), rest, chunks(reply, StreamOptions::default())).await;
        let expected = [
            r#"{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}"#,
            r#"{"index":0,"delta":{"content":""},"logprobs":null,"finish_reason":null,"token_ids":[1]}]}"#,
            r#"{"index":1,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}"#,
            r#"{"index":1,"delta":{"content":""},"logprobs":{"content":[{"token":"�","logprob":-0.25,"bytes":[195],"top_logprobs":[]}]},"finish_reason":null,"token_ids":[9]}]}"#,
            r#"{"index":1,"delta":{},"logprobs":null,"finish_reason":"stop","stop_reason":"END"}]}"#,
            r#"{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop","stop_reason":3}]}"#,
        ];
        let expected: Vec<String> = expected
            .iter()
            .map(|rest| format!("{HEAD}{rest}"))
            .chain(["[DONE]".into()])
            .collect();
        assert_eq!(events, expected);
    }

    #[tokio::test]
    async fn usage_in_every_chunk_and_an_end_that_comes_too_early() {
        let options = StreamOptions {
            include_usage: true,
            continuous_usage_stats: true,
        };
        let events = received(
            first(),
            vec![],
            chunks(
                Reply {
                    n: 1,
                    ..Reply::default()
                },
                options,
            ),
        )
        .await;
        assert_eq!(events.len(), 3);
        assert!(events[1].ends_with(r#""usage":{"prompt_tokens":5,"completion_tokens":1,"total_tokens":6,"prompt_tokens_details":{"cached_tokens":0}}}"#));
        assert!(
            events[2].starts_with(
                r#"{"error":{"message":"internal error: the answer ended before it was finished""#
            ),
            "{}",
            events[2]
        );
    }
}
