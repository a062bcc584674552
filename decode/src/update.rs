//! What the engine put out, as the router reads it.

use millrace_engine::{
    FinishReason, PrefillPlace, PromptLogProbs,
    request::{Output, Start},
};
use millrace_proto::worker::v1 as wire;
use millrace_worker::wire::{candidates_to_wire, token_to_wire};

/// How long the stages before the first token took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timing {
    pub queue_seconds: f64,
    pub prefill_seconds: f64,
}

/// `timing` comes with the first output of a request.
pub fn update(output: Output, timing: Option<Timing>) -> wire::GenerateUpdate {
    let mut update = wire::GenerateUpdate {
        tokens: output.tokens.into_iter().map(token_to_wire).collect(),
        ..wire::GenerateUpdate::default()
    };
    if let (Some(start), Some(timing)) = (output.start, timing) {
        set_start(&mut update, start, timing);
    }
    if let Some(finish) = output.finish {
        update.finish = match finish.reason {
            FinishReason::Stop => wire::FinishReason::Stop,
            FinishReason::Length => wire::FinishReason::Length,
        }
        .into();
        update.stop_token_id = finish.stop_token;
    }
    update
}

fn set_start(update: &mut wire::GenerateUpdate, start: Start, timing: Timing) {
    update.cached_tokens = Some(start.cached_tokens as u32);
    update.prompt = start
        .prompt_logprobs
        .into_iter()
        .map(prompt_token)
        .collect();
    update.timing = Some(wire::Timing {
        queue_seconds: timing.queue_seconds,
        prefill_seconds: timing.prefill_seconds,
        remote_prefill: start.place == PrefillPlace::Remote,
    });
}

/// The first token of a prompt has nothing before it that could predict it.
fn prompt_token(logprobs: Option<PromptLogProbs>) -> wire::PromptToken {
    match logprobs {
        None => wire::PromptToken::default(),
        Some(logprobs) => wire::PromptToken {
            top: candidates_to_wire(logprobs.top),
            logprob: Some(logprobs.logprob),
        },
    }
}

#[cfg(test)]
mod tests {
    use millrace_engine::{Finish, LocalPrefillReason, TokenOutput};

    use super::*;

    fn token(id: u32) -> TokenOutput {
        TokenOutput {
            id,
            logprob: Some(-0.5),
            top: vec![(id, -0.5), (id + 1, -1.0)],
        }
    }

    #[test]
    fn only_the_first_update_has_timing_and_only_the_last_a_reason() {
        let timing = Timing {
            queue_seconds: 0.5,
            prefill_seconds: 0.25,
        };
        let start = Start {
            cached_tokens: 64,
            place: PrefillPlace::Local(LocalPrefillReason::Cached),
            prompt_logprobs: vec![
                None,
                Some(PromptLogProbs {
                    logprob: -2.0,
                    top: vec![(3, -1.0)],
                }),
            ],
        };
        let first = Output {
            tokens: vec![token(5)],
            start: Some(start),
            finish: None,
        };
        let first = update(first, Some(timing));
        assert_eq!(first.tokens[0].top.len(), 2);
        assert_eq!(first.cached_tokens, Some(64));
        assert_eq!(first.prompt[0].logprob, None);
        assert_eq!(first.prompt[1].logprob, Some(-2.0));
        assert!(!first.timing.unwrap().remote_prefill);
        assert_eq!(first.finish(), wire::FinishReason::Unspecified);

        let last = Output {
            tokens: vec![token(6), token(1)],
            start: None,
            finish: Some(Finish {
                reason: FinishReason::Stop,
                stop_token: Some(1),
            }),
        };
        let last = update(last, None);
        assert_eq!(last.timing, None);
        assert_eq!(last.finish(), wire::FinishReason::Stop);
        assert_eq!(last.stop_token_id, Some(1));
    }
}
