//! One choice's tokens to its events: text, stop strings, reasoning, log-probs, usage.
//!
//! Tokens are taken one at a time, so where a choice ends does not depend on how many of them a
//! worker sends at once.

use std::sync::Arc;

use millrace_model::reasoning::{ReasoningSplitter, Split};
use millrace_model::tokenizer::DecodeStream;

use super::model::ServedModel;
use super::stop::{Scan, StopMatcher};
use crate::api::{
    Event, Finish, FinishReason, LogProb, PromptInfo, StopMatch, TokenLogProbs, Usage,
};
use crate::dispatch::{Candidate, End, PromptToken, Token, Update};

/// How a choice's tokens are shown.
#[derive(Debug, Clone)]
pub struct Style {
    pub stop: Vec<String>,
    pub include_stop: bool,
    pub keep_special_tokens: bool,
    pub min_tokens: u32,
    pub logprobs: bool,
    /// `None`: text is not split (completions). `Some(true)`: it begins inside `<think>`.
    pub reasoning: Option<bool>,
    /// Generated tokens are not shown: only the prompt was to be scored.
    pub hide_output: bool,
    /// Text to begin with.
    pub echo: String,
}

/// One choice as it grows.
pub struct Choice {
    model: Arc<ServedModel>,
    style: Style,
    index: u32,
    prompt: Arc<[u32]>,
    decoder: Option<DecodeStream>,
    stops: Option<StopMatcher>,
    splitter: Option<ReasoningSplitter>,
    started: bool,
    completion_tokens: u32,
    cached_tokens: u32,
}

impl Choice {
    pub fn new(model: Arc<ServedModel>, style: Style, index: u32, prompt: Arc<[u32]>) -> Choice {
        Choice {
            decoder: Some(model.tokenizer.decode_stream(!style.keep_special_tokens)),
            stops: Some(StopMatcher::new(style.stop.clone())),
            splitter: style.reasoning.map(ReasoningSplitter::new),
            model,
            style,
            index,
            prompt,
            started: false,
            completion_tokens: 0,
            cached_tokens: 0,
        }
    }

    /// Takes a step. An event with `finish` is the last, whatever the worker would still send.
    pub fn push(&mut self, update: Update) -> Event {
        let mut event = Event {
            index: self.index,
            ..Event::default()
        };
        if let Some(first) = update.first {
            self.cached_tokens = first.cached_tokens;
            if self.index == 0 {
                event.prompt = Some(self.prompt_info(first.prompt));
            }
        }
        if !std::mem::replace(&mut self.started, true) {
            event.text.push_str(&self.style.echo);
        }
        if self.style.hide_output {
            event.finish = update.end.map(|_| self.finish(FinishReason::Length, None));
            return event;
        }
        let stop_token = update.end.and_then(|end| end.stop_token);
        let last = update.tokens.len().wrapping_sub(1);
        for (at, token) in update.tokens.into_iter().enumerate() {
            let is_stop = at == last && stop_token == Some(token.id);
            if let Some(stop) = self.token(token, is_stop, &mut event) {
                event.finish = Some(self.finish(FinishReason::Stop, Some(StopMatch::Text(stop))));
                return event;
            }
        }
        if let Some(end) = update.end {
            self.end(end, &mut event);
        }
        event
    }

    /// Adds a token; the stop string it completes, if it does.
    fn token(&mut self, token: Token, is_stop: bool, event: &mut Event) -> Option<String> {
        self.completion_tokens += 1;
        event.token_ids.push(token.id);
        if self.style.logprobs {
            event
                .logprobs
                .push(self.logprobs(token.id, token.logprob, token.top));
        }
        if is_stop && !self.style.include_stop {
            return None; // The text of what ended the answer is not part of it.
        }
        let text = self.decoder.as_mut()?.push(token.id);
        self.text(&text, event)
    }

    /// Passes new text through stop strings; the one that matched, if one did.
    fn text(&mut self, text: &str, event: &mut Event) -> Option<String> {
        if self.completion_tokens <= self.style.min_tokens {
            self.show(text, event); // Too early to stop, as in vLLM.
            return None;
        }
        match self.stops.as_mut()?.push(text) {
            Scan::Clear(text) => {
                self.show(&text, event);
                None
            }
            Scan::Matched { mut before, stop } => {
                if self.style.include_stop {
                    before.push_str(&stop);
                }
                self.show(&before, event);
                self.close(event);
                Some(stop)
            }
        }
    }

    fn show(&mut self, text: &str, event: &mut Event) {
        match &mut self.splitter {
            None => event.text.push_str(text),
            Some(splitter) => add(event, splitter.push(text)),
        }
    }

    /// Shows what was held back in case a tag followed.
    fn close(&mut self, event: &mut Event) {
        if let Some(splitter) = self.splitter.take() {
            add(event, splitter.finish());
        }
    }

    /// The worker ended the sequence: shows all that was held back.
    fn end(&mut self, end: End, event: &mut Event) {
        // Half a character at the end may still complete a stop string, if it is U+FFFD's.
        let rest = self
            .decoder
            .take()
            .map(DecodeStream::finish)
            .unwrap_or_default();
        if let Some(stop) = self.text(&rest, event) {
            event.finish = Some(self.finish(FinishReason::Stop, Some(StopMatch::Text(stop))));
            return;
        }
        let held = self
            .stops
            .take()
            .map(StopMatcher::finish)
            .unwrap_or_default();
        self.show(&held, event);
        self.close(event);
        event.finish = Some(self.finish(end.reason, end.stop_token.map(StopMatch::Token)));
    }

    fn finish(&self, reason: FinishReason, stop: Option<StopMatch>) -> Finish {
        let usage = Usage {
            prompt_tokens: self.prompt.len() as u32,
            completion_tokens: self.completion_tokens,
            cached_tokens: self.cached_tokens,
        };
        Finish {
            reason,
            stop,
            usage,
        }
    }

    fn prompt_info(&self, scored: Vec<PromptToken>) -> PromptInfo {
        let token = |(&id, token): (&u32, PromptToken)| {
            token
                .logprob
                .map(|logprob| self.logprobs(id, Some(logprob), token.top))
        };
        PromptInfo {
            token_ids: self.prompt.to_vec(),
            logprobs: self.prompt.iter().zip(scored).map(token).collect(),
        }
    }

    fn logprobs(&self, id: u32, logprob: Option<f32>, top: Vec<Candidate>) -> TokenLogProbs {
        let named = |id: u32, logprob: f32| LogProb {
            token_id: id,
            logprob,
            bytes: self
                .model
                .tokenizer
                .token_bytes(id)
                .unwrap_or_default()
                .to_vec(),
        };
        TokenLogProbs {
            // A worker that was asked always says.
            chosen: named(id, logprob.unwrap_or(f32::NEG_INFINITY)),
            top: top.into_iter().map(|c| named(c.id, c.logprob)).collect(),
        }
    }
}

fn add(event: &mut Event, split: Split) {
    event.reasoning.push_str(&split.reasoning);
    event.text.push_str(&split.content);
}

#[cfg(test)]
mod tests;
