//! After the forward pass: sample, check stops, keep the cache, tell the caller.

use std::borrow::Cow;

use millrace_kernels::{Backend, Batch, LogProbs};
use millrace_model::blocks::BLOCK_TOKENS;

use super::Engine;
use crate::{
    Event, Finish, FinishReason, Kind, PrefillPlace, PromptLogProbs, StepDropped, TokenOutput,
    forward::{Ranks, Wanted},
    request::{Output, Start},
    sampling::{Answer, NotFinite, Token, Want},
    scheduler::{Scheduler, Share},
    sequence::Sequence,
};

/// What became of one share of a step.
#[derive(Debug, Default)]
pub(super) struct ShareResult {
    /// Rows whose cache rows count: the known tokens, and the draft if it was right.
    pub valid_rows: usize,
    /// Sampled something and did not finish.
    pub goes_on: bool,
    output: Output,
    failed: bool,
}

/// What is wanted of the row of the next token or, with `draft`, of the token after it, if that is the next.
fn want<'a>(sequence: &'a Sequence, draft: Option<u32>, ends: &[u32]) -> Want<'a> {
    let index = sequence.output_tokens() + usize::from(draft.is_some());
    let seen = match (&sequence.history, draft) {
        (None, _) => Cow::default(),
        (Some(history), None) => Cow::Borrowed(history.seen()),
        (Some(history), Some(draft)) => Cow::Owned(history.seen_with(draft)),
    };
    sequence.sampling.want(index, seen, ends)
}

impl<B: Backend> Engine<B> {
    /// Chooses tokens and scores those that are known. What is wanted is found while a device still computes.
    pub(super) fn answer(
        &mut self,
        shares: &[Share],
        ranks: &Ranks<'_, B>,
    ) -> Result<Vec<Answer>, StepDropped> {
        let ends = &self.model.common.eos_token_ids;
        let wanted = wanted_rows(&self.scheduler.running, shares, &self.batch, ends);
        self.forward.answer(&wanted, ranks)
    }

    /// Gives sequences what was chosen for them.
    pub(super) fn accept(
        &mut self,
        shares: &[Share],
        answers: Vec<Answer>,
        events: &mut Vec<Event>,
    ) -> Vec<ShareResult> {
        let mut answers = answers.into_iter();
        let mut results = Vec::with_capacity(shares.len());
        // Out of the scheduler while they are worked on: that needs the engine, too.
        let mut running = std::mem::take(&mut self.scheduler.running);
        for share in shares {
            let sequence = &mut running[share.sequence];
            let result = self.accept_share(share, sequence, &mut answers);
            if result.failed {
                let message = NotFinite.to_string();
                events.push(Event::Failed {
                    id: sequence.id,
                    message,
                });
            }
            results.push(result);
        }
        self.scheduler.running = running;
        results
    }

    /// `answers`: from those to the share's first row on.
    fn accept_share(
        &mut self,
        share: &Share,
        sequence: &mut Sequence,
        answers: &mut impl Iterator<Item = Answer>,
    ) -> ShareResult {
        let mut result = ShareResult {
            valid_rows: share.tokens,
            ..ShareResult::default()
        };
        let prompt = answers.by_ref().take(prompt_rows(sequence, share.tokens));
        let scores = prompt.filter_map(|answer| answer.log_probs);
        sequence
            .prompt_logprobs
            .extend(scores.map(|scores| PromptLogProbs {
                logprob: scores.chosen,
                top: scores.top,
            }));
        if !share.samples {
            return result;
        }
        let draft = sequence.draft.take();
        // All of them, whether the last counts or not.
        let answers: Vec<Answer> = answers.take(1 + usize::from(share.draft)).collect();
        self.counters.drafts += u64::from(share.draft);
        for (number, answer) in answers.into_iter().enumerate() {
            let Ok(id) = answer.token else {
                result.failed = true;
                return result;
            };
            let token = token_output(id, answer.log_probs);
            let right = share.draft && number == 0 && draft == Some(token.id);
            let output = self.accept_token(sequence, token);
            result.output.tokens.extend(output.tokens);
            result.output.start = result.output.start.take().or(output.start);
            result.output.finish = output.finish;
            // Right also where it is the end token, after which nothing goes on.
            self.counters.drafts_accepted += u64::from(right);
            if output.finish.is_some() || !right {
                break;
            }
            // The draft was the token to come, so its row counts, and so do its logits.
            result.valid_rows += 1;
        }
        result.goes_on = result.output.finish.is_none();
        result
    }

    /// Appends a sampled token, wherever it was sampled, and says whether it ends the request.
    pub(super) fn accept_token(&mut self, sequence: &mut Sequence, token: TokenOutput) -> Output {
        sequence.tokens.push(token.id);
        if let Some(history) = &mut sequence.history {
            history.push(token.id);
        }
        let prefill_only = matches!(sequence.kind, Kind::Prefill { .. });
        if !prefill_only {
            self.counters.generated_tokens += 1;
        }
        let finish = self.finish_of(sequence, token.id);
        let start = (!sequence.started).then(|| {
            sequence.started = true;
            let place = sequence.place.expect("a sequence that has run was placed");
            match place {
                PrefillPlace::Local(reason) if !prefill_only => {
                    self.counters.local_prefills[reason as usize] += 1;
                }
                PrefillPlace::Remote => self.counters.remote_prefills += 1,
                PrefillPlace::Local(_) => {}
            }
            let mut prompt_logprobs = Vec::new();
            if sequence.sampling.prompt_logprobs.is_some() {
                prompt_logprobs.push(None);
                prompt_logprobs.extend(
                    std::mem::take(&mut sequence.prompt_logprobs)
                        .into_iter()
                        .map(Some),
                );
            }
            Start {
                cached_tokens: sequence.cached_tokens,
                place,
                prompt_logprobs,
            }
        });
        Output {
            tokens: vec![token],
            start,
            finish,
        }
    }

    fn finish_of(&self, sequence: &Sequence, token: u32) -> Option<Finish> {
        let params = &sequence.sampling;
        let output = sequence.output_tokens();
        let ends = (!params.ignore_eos && self.model.common.eos_token_ids.contains(&token))
            || params.stop_token_ids.contains(&token);
        if ends && output > params.min_tokens {
            return Some(Finish {
                reason: FinishReason::Stop,
                stop_token: Some(token),
            });
        }
        (output >= params.max_tokens || sequence.tokens.len() >= self.max_model_len).then_some(
            Finish {
                reason: FinishReason::Length,
                stop_token: None,
            },
        )
    }

    /// Books what the step computed, announces it, and lets finished sequences go.
    pub(super) fn finish_step(
        &mut self,
        shares: &[Share],
        results: Vec<ShareResult>,
        events: &mut Vec<Event>,
    ) {
        let mut done = Vec::new();
        let mut running = std::mem::take(&mut self.scheduler.running);
        for (share, result) in shares.iter().zip(results) {
            let sequence = &mut running[share.sequence];
            let prompt_left = sequence.prompt_tokens.saturating_sub(sequence.computed);
            self.counters.prompt_tokens += result.valid_rows.min(prompt_left) as u64;
            sequence.computed += result.valid_rows;
            if !result.failed && self.config.prefix_cache {
                sequence.store_full_pages(&self.pool);
            }
            let id = sequence.id;
            let mut ended = result.failed || result.output.finish.is_some();
            if let Kind::Prefill { .. } = sequence.kind {
                ended |= share.samples;
                if !result.failed {
                    announce_pages(sequence, share.samples, events);
                    if let Some(first) = result.output.tokens.into_iter().next() {
                        let draft = sequence.draft;
                        let cached_tokens = sequence.cached_tokens;
                        events.push(Event::Prefilled {
                            id,
                            first,
                            draft,
                            cached_tokens,
                        });
                    }
                }
            } else if !result.output.tokens.is_empty() && !result.failed {
                events.push(Event::Output {
                    id,
                    output: result.output,
                });
            }
            if ended {
                done.push(id);
            }
        }
        self.scheduler.running = running;
        for id in done {
            self.scheduler.remove(id);
        }
    }
}

/// Pages that a prefill found in its cache can leave while the rest is computed.
pub(super) fn announce_cached(
    scheduler: &mut Scheduler,
    shares: &[Share],
    events: &mut Vec<Event>,
) {
    for share in shares {
        let sequence = &mut scheduler.running[share.sequence];
        if let Kind::Prefill { .. } = sequence.kind {
            announce_pages(sequence, false, events);
        }
    }
}

/// Rows of the batch whose logits are wanted, in order.
fn wanted_rows<'a>(
    running: &'a [Sequence],
    shares: &[Share],
    batch: &Batch,
    ends: &[u32],
) -> Vec<Wanted<'a>> {
    let mut wanted = Vec::new();
    for (share, segment) in shares.iter().zip(&batch.segments) {
        let sequence = &running[share.sequence];
        let first = segment.rows.start;
        for number in 0..prompt_rows(sequence, share.tokens) {
            let want = Want {
                edits: None,
                token: Token::Given(sequence.tokens[sequence.computed + number + 1]),
                log_probs: sequence.sampling.prompt_logprobs,
            };
            let row = first + number;
            wanted.push(Wanted { row, want });
        }
        if share.samples {
            // The last known token's row, and the draft's.
            let row = first + share.tokens - 1;
            let want = |draft| want(sequence, draft, ends);
            wanted.push(Wanted {
                row,
                want: want(None),
            });
            if let Some(draft) = sequence.draft.filter(|_| share.draft) {
                wanted.push(Wanted {
                    row: row + 1,
                    want: want(Some(draft)),
                });
            }
        }
    }
    wanted
}

fn token_output(id: u32, log_probs: Option<LogProbs>) -> TokenOutput {
    let (logprob, top) = log_probs.map_or((None, Vec::new()), |scores| {
        (Some(scores.chosen), scores.top)
    });
    TokenOutput { id, logprob, top }
}

/// How many of the next `tokens` rows give a prompt token's log-prob: row `p` is about `p + 1`.
fn prompt_rows(sequence: &Sequence, tokens: usize) -> usize {
    if sequence.sampling.prompt_logprobs.is_none() || sequence.started {
        return 0;
    }
    tokens.min((sequence.prompt_tokens - 1).saturating_sub(sequence.computed))
}

/// Announces pages that are finished: full ones, and after the `last` step the part-filled one.
fn announce_pages(sequence: &mut Sequence, last: bool, events: &mut Vec<Event>) {
    let finished = if last {
        Sequence::pages_for(sequence.computed)
    } else {
        sequence.computed / BLOCK_TOKENS
    };
    for index in sequence.announced_pages..finished {
        let page = sequence.pages[index].clone();
        events.push(Event::PageFinished {
            id: sequence.id,
            index,
            page,
        });
    }
    sequence.announced_pages = sequence.announced_pages.max(finished);
}
