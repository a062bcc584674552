//! Events as response tensors.

use std::collections::HashMap;

use futures::StreamExt as _;
use millrace_proto::kserve::infer_parameter::ParameterChoice;
use millrace_proto::kserve::model_infer_response::InferOutputTensor;
use millrace_proto::kserve::{InferParameter, ModelInferResponse};

use super::request::{Infer, Outputs};
use super::tensor::{encode_bytes, encode_ids, encode_u32};
use crate::Frontend;
use crate::api::{Event, EventStream, RequestError};

/// What every response of one request repeats.
#[derive(Debug, Clone, Default)]
pub(super) struct Head {
    pub(super) model: String,
    pub(super) version: String,
    /// The request's own id, as it came.
    pub(super) id: String,
}

/// A request under way: its events, and the responses they become.
pub(super) struct Answer {
    events: EventStream,
    head: Head,
    outputs: Outputs,
    /// Tokens of the prompt, known with the first event.
    prompt_tokens: u32,
    /// What the next response will tell of each choice.
    choices: Vec<Choice>,
    finished: usize,
}

#[derive(Debug, Clone, Default)]
struct Choice {
    text: String,
    token_ids: Vec<u32>,
    /// Empty while the choice goes on.
    finish_reason: &'static str,
}

impl Answer {
    /// Hands the request in.
    pub(super) async fn begin(
        frontend: &Frontend,
        head: Head,
        infer: Infer,
    ) -> Result<Answer, RequestError> {
        let events = frontend.complete(infer.request).await?;
        Ok(Answer::new(events, head, infer.outputs, infer.choices))
    }

    fn new(events: EventStream, head: Head, outputs: Outputs, choices: u32) -> Answer {
        let choices = vec![Choice::default(); choices as usize];
        Answer {
            events,
            head,
            outputs,
            prompt_tokens: 0,
            choices,
            finished: 0,
        }
    }

    /// Every choice has ended.
    pub(super) fn complete(&self) -> bool {
        self.finished >= self.choices.len()
    }

    /// The response of the next event that has something to tell; `None` after the last.
    pub(super) async fn next(&mut self) -> Option<Result<ModelInferResponse, RequestError>> {
        while !self.complete() {
            match self.advance().await {
                Ok(true) => return Some(Ok(self.response())),
                Ok(false) => {}
                Err(error) => return Some(Err(error)),
            }
        }
        None
    }

    /// One response for the whole answer.
    pub(super) async fn whole(mut self) -> Result<ModelInferResponse, RequestError> {
        while !self.complete() {
            self.advance().await?;
        }
        Ok(self.response())
    }

    /// Takes in one event. True if a client has something to learn from it.
    async fn advance(&mut self) -> Result<bool, RequestError> {
        let early = || RequestError::Internal {
            message: "the answer ended before it was finished".into(),
        };
        let event: Event = self.events.next().await.ok_or_else(early)??;
        let tells = !event.text.is_empty() || !event.token_ids.is_empty() || event.finish.is_some();
        if let Some(prompt) = &event.prompt {
            self.prompt_tokens = prompt.token_ids.len() as u32;
        }
        if let Some(choice) = self.choices.get_mut(event.index as usize) {
            choice.text.push_str(&event.text);
            choice.token_ids.extend(event.token_ids);
            if let Some(finish) = event.finish {
                self.finished += 1;
                choice.finish_reason = finish.reason.as_str();
            }
        }
        Ok(tells)
    }

    /// Tells what has come since the last response.
    fn response(&mut self) -> ModelInferResponse {
        let Outputs {
            text,
            token_ids,
            finish_reason,
            num_input_tokens,
            num_output_tokens,
        } = self.outputs;
        let mut response = ModelInferResponse {
            model_name: self.head.model.clone(),
            model_version: self.head.version.clone(),
            id: self.head.id.clone(),
            ..Default::default()
        };
        let n = self.choices.len();
        let mut output = |name: &str, datatype: &str, size: usize, raw: Vec<u8>| {
            let shape = vec![size as i64];
            response.outputs.push(InferOutputTensor {
                name: name.into(),
                datatype: datatype.into(),
                shape,
                ..Default::default()
            });
            response.raw_output_contents.push(raw);
        };
        if text {
            output(
                "text_output",
                "BYTES",
                n,
                encode_bytes(self.choices.iter().map(|it| it.text.as_str())),
            );
        }
        if token_ids && let [only] = self.choices.as_slice() {
            output(
                "token_ids",
                "INT64",
                only.token_ids.len(),
                encode_ids(&only.token_ids),
            );
        }
        if finish_reason {
            output(
                "finish_reason",
                "BYTES",
                n,
                encode_bytes(self.choices.iter().map(|it| it.finish_reason)),
            );
        }
        if num_input_tokens {
            output(
                "num_input_tokens",
                "UINT32",
                1,
                encode_u32([self.prompt_tokens]),
            );
        }
        if num_output_tokens {
            output(
                "num_output_tokens",
                "UINT32",
                n,
                encode_u32(self.choices.iter().map(|it| it.token_ids.len() as u32)),
            );
        }
        for choice in &mut self.choices {
            choice.text.clear();
            choice.token_ids.clear();
        }
        response
    }
}

/// Triton's mark on the responses of a stream: true on a request's last.
pub(super) fn final_mark(last: bool) -> HashMap<String, InferParameter> {
    let parameter = InferParameter {
        parameter_choice: Some(ParameterChoice::BoolParam(last)),
    };
    HashMap::from([("triton_final_response".to_owned(), parameter)])
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::api::{Finish, FinishReason, PromptInfo, Usage};

    pub(in super::super) fn answer(
        events: Vec<Result<Event, RequestError>>,
        outputs: Outputs,
        choices: u32,
    ) -> Answer {
        let head = Head {
            model: "m".into(),
            version: "v".into(),
            id: "7".into(),
        };
        Answer::new(
            Box::pin(futures::stream::iter(events)),
            head,
            outputs,
            choices,
        )
    }

    pub(in super::super) fn text(index: u32, text: &str) -> Result<Event, RequestError> {
        Ok(Event {
            index,
            text: text.into(),
            token_ids: vec![5],
            ..Event::default()
        })
    }

    pub(in super::super) fn finish(index: u32) -> Result<Event, RequestError> {
        let finish = Some(Finish {
            reason: FinishReason::Length,
            stop: None,
            usage: Usage::default(),
        });
        Ok(Event {
            index,
            finish,
            ..Event::default()
        })
    }

    fn tensors(response: &ModelInferResponse) -> Vec<(&str, &str, i64, &[u8])> {
        let raw = response.raw_output_contents.iter().map(Vec::as_slice);
        response
            .outputs
            .iter()
            .zip(raw)
            .map(|(it, raw)| (it.name.as_str(), it.datatype.as_str(), it.shape[0], raw))
            .collect()
    }

    #[tokio::test]
    async fn the_whole_answer() {
        let all = Outputs {
            text: true,
            token_ids: true,
            finish_reason: true,
            num_input_tokens: true,
            num_output_tokens: true,
        };
        let prompt = Some(PromptInfo {
            token_ids: vec![1, 2, 3],
            logprobs: vec![],
        });
        let first = Ok(Event {
            prompt,
            ..Event::default()
        });
        let response = answer(vec![first, text(0, "h"), text(0, "i"), finish(0)], all, 1)
            .whole()
            .await
            .unwrap();
        assert_eq!(
            (
                response.model_name.as_str(),
                response.model_version.as_str(),
                response.id.as_str()
            ),
            ("m", "v", "7")
        );
        let expected = [
            ("text_output", "BYTES", 1, &b"\x02\0\0\0hi"[..]),
            (
                "token_ids",
                "INT64",
                2,
                b"\x05\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0",
            ),
            ("finish_reason", "BYTES", 1, b"\x06\0\0\0length"),
            ("num_input_tokens", "UINT32", 1, b"\x03\0\0\0"),
            ("num_output_tokens", "UINT32", 1, b"\x02\0\0\0"),
        ];
        assert_eq!(tensors(&response), expected);
    }

    #[tokio::test]
    async fn steps_of_two_choices() {
        let outputs = Outputs {
            text: true,
            finish_reason: true,
            ..Outputs::default()
        };
        let silent = Ok(Event::default());
        let mut answer = answer(
            vec![silent, text(1, "b"), finish(1), text(0, "a"), finish(0)],
            outputs,
            2,
        );
        let mut seen = Vec::new();
        while let Some(response) = answer.next().await {
            let response = response.unwrap();
            seen.push(
                tensors(&response)
                    .into_iter()
                    .map(|(.., raw)| raw.to_vec())
                    .collect::<Vec<_>>(),
            );
        }
        let two = |a: &str, b: &str| encode_bytes([a, b]);
        let expected = [
            vec![two("", "b"), two("", "")],
            vec![two("", ""), two("", "length")],
            vec![two("a", ""), two("", "length")],
            vec![two("", ""), two("length", "length")],
        ];
        assert_eq!(seen, expected);
        assert!(answer.complete());
    }

    #[tokio::test]
    async fn an_answer_that_stops_short_is_an_error() {
        assert!(matches!(
            answer(vec![text(0, "a")], Outputs::default(), 1)
                .whole()
                .await,
            Err(RequestError::Internal { .. })
        ));
    }
}
