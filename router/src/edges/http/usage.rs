//! Token counts as OpenAI reports them.

use serde::Serialize;

use crate::api::{Event, Usage};

/// `usage` of a body or a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct UsageBody {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u32,
    prompt_tokens_details: PromptTokensDetails,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct PromptTokensDetails {
    cached_tokens: u32,
}

/// Adds up what the choices of one answer used, while they run and when they end.
///
/// The `n` choices of a prompt share it, so it counts once: with the first of each `n`.
#[derive(Debug, Clone)]
pub(super) struct UsageMeter {
    choices_per_prompt: u32,
    choices: u32,
    finished: u32,
    /// Sums of the finished choices.
    total: Usage,
    /// Tokens seen so far, finished or not.
    running: Usage,
}

impl UsageMeter {
    /// For `prompts` prompts with `n` choices each.
    pub(super) fn new(prompts: u32, n: u32) -> UsageMeter {
        let choices = prompts.saturating_mul(n);
        UsageMeter {
            choices_per_prompt: n.max(1),
            choices,
            finished: 0,
            total: Usage::default(),
            running: Usage::default(),
        }
    }

    pub(super) fn see(&mut self, event: &Event) {
        self.running.completion_tokens += event.token_ids.len() as u32;
        if let Some(prompt) = &event.prompt {
            self.running.prompt_tokens += prompt.token_ids.len() as u32;
        }
        if let Some(finish) = &event.finish {
            self.finished += 1;
            self.total.completion_tokens += finish.usage.completion_tokens;
            if event.index.is_multiple_of(self.choices_per_prompt) {
                self.total.prompt_tokens += finish.usage.prompt_tokens;
                self.total.cached_tokens += finish.usage.cached_tokens;
            }
        }
    }

    /// Every choice has ended.
    pub(super) fn complete(&self) -> bool {
        self.finished >= self.choices
    }

    /// Exact once [`complete`](UsageMeter::complete).
    pub(super) fn total(&self) -> UsageBody {
        body(&self.total)
    }

    /// Of an answer under way. What came from a cache is known at its end alone.
    pub(super) fn so_far(&self) -> UsageBody {
        body(&self.running)
    }
}

fn body(usage: &Usage) -> UsageBody {
    UsageBody {
        prompt_tokens: usage.prompt_tokens,
        completion_tokens: usage.completion_tokens,
        total_tokens: usage.prompt_tokens + usage.completion_tokens,
        prompt_tokens_details: PromptTokensDetails {
            cached_tokens: usage.cached_tokens,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Finish, FinishReason};

    #[test]
    fn a_prompt_counts_once_for_its_choices() {
        let mut meter = UsageMeter::new(2, 2);
        for index in 0..4 {
            assert!(!meter.complete());
            let usage = Usage {
                prompt_tokens: 10,
                completion_tokens: 3,
                cached_tokens: 4,
            };
            let finish = Some(Finish {
                reason: FinishReason::Stop,
                stop: None,
                usage,
            });
            meter.see(&Event {
                index,
                finish,
                ..Event::default()
            });
        }
        assert!(meter.complete());
        assert_eq!(
            serde_json::to_string(&meter.total()).unwrap(),
            r#"{"prompt_tokens":20,"completion_tokens":12,"total_tokens":32,"prompt_tokens_details":{"cached_tokens":8}}"#
        );
    }
}
