//! After the forward pass: sample, check stops, keep the cache, tell the caller.

use millrace_kernels::Backend;
use millrace_model::blocks::BLOCK_TOKENS;

use super::Engine;
use crate::{
    Event, Finish, FinishReason, Kind, PrefillPlace, PromptLogProbs, TokenOutput,
    forward::{Want, Wanted},
    request::{Output, Start},
    sampling::{NotFinite, log_probs},
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

/// What a token is chosen by.
enum Row<'a> {
    All(&'a mut [f32]),
    /// It is chosen already; with the largest value.
    Chosen((u32, f32)),
}

/// What is wanted of the row of the next token but `number`: where nothing but its logits decides about it, the token.
fn want(sequence: &Sequence, number: usize) -> Want {
    let params = &sequence.sampling;
    let index = sequence.output_tokens() + number;
    let by_logits = params.logprobs.is_none()
        && params.logit_bias.is_empty()
        && !params.has_penalties()
        && index >= params.min_tokens;
    match (by_logits, params.is_greedy()) {
        (false, _) => Want::All,
        (true, true) => Want::Best,
        (true, false) => Want::Draw(params.draw(index)),
    }
}

impl<B: Backend> Engine<B> {
    /// Reads the logits that are wanted and samples from them.
    pub(super) fn sample(&mut self, shares: &[Share], events: &mut Vec<Event>) -> Vec<ShareResult> {
        let vocab = self.model.common.vocab_size;
        let wanted = self.wanted_rows(shares);
        let mut logits = std::mem::take(&mut self.logits);
        self.forward.logits(&wanted, &mut logits);
        let mut values = logits.values.chunks_exact_mut(vocab);
        let rows = wanted.iter().zip(&logits.tokens);
        let mut rows = rows.map(|(wanted, token)| match wanted.what {
            Want::All => Row::All(values.next().expect("a row was read for each")),
            Want::Best | Want::Draw(_) => Row::Chosen(*token),
        });
        let mut results = Vec::with_capacity(shares.len());
        // Out of the scheduler while they are worked on: sampling needs the engine, too.
        let mut running = std::mem::take(&mut self.scheduler.running);
        for share in shares {
            let sequence = &mut running[share.sequence];
            let result = self.sample_share(share, sequence, &mut rows);
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
        self.logits = logits;
        results
    }

    /// Rows of the batch whose logits are wanted, in order.
    fn wanted_rows(&self, shares: &[Share]) -> Vec<Wanted> {
        let mut wanted = Vec::new();
        for (share, segment) in shares.iter().zip(&self.batch.segments) {
            let sequence = &self.scheduler.running[share.sequence];
            let rows = segment.rows.clone();
            let prompt = prompt_rows(sequence, share.tokens);
            let all = |row| Wanted {
                row,
                what: Want::All,
            };
            wanted.extend((rows.start..rows.start + prompt).map(all));
            if share.samples {
                // The last known token's row, and the draft's.
                let rows = rows.start + share.tokens - 1..rows.end;
                let want = |(number, row)| Wanted {
                    row,
                    what: want(sequence, number),
                };
                wanted.extend(rows.enumerate().map(want));
            }
        }
        wanted
    }

    fn sample_share<'a>(
        &mut self,
        share: &Share,
        sequence: &mut Sequence,
        rows: &mut impl Iterator<Item = Row<'a>>,
    ) -> ShareResult {
        let mut result = ShareResult {
            valid_rows: share.tokens,
            ..ShareResult::default()
        };
        let start = sequence.computed;
        for position in start..start + prompt_rows(sequence, share.tokens) {
            let Some(Row::All(row)) = rows.next() else {
                unreachable!("a row was read for each");
            };
            let count = sequence.sampling.prompt_logprobs.unwrap_or(0);
            let probs = log_probs(row, sequence.tokens[position + 1], count);
            sequence.prompt_logprobs.push(PromptLogProbs {
                logprob: probs.chosen,
                top: probs.top,
            });
        }
        if !share.samples {
            return result;
        }
        let draft = sequence.draft.take();
        let rows: Vec<Row<'a>> = rows.take(1 + usize::from(share.draft)).collect();
        self.counters.drafts += u64::from(share.draft);
        for (number, row) in rows.into_iter().enumerate() {
            let Ok(token) = self.choose(sequence, row) else {
                result.failed = true;
                return result;
            };
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

    fn choose(&mut self, sequence: &Sequence, row: Row<'_>) -> Result<TokenOutput, NotFinite> {
        let row = match row {
            Row::All(row) => row,
            Row::Chosen((id, value)) if value.is_finite() => {
                return Ok(TokenOutput {
                    id,
                    logprob: None,
                    top: Vec::new(),
                });
            }
            Row::Chosen(_) => return Err(NotFinite),
        };
        let params = &sequence.sampling;
        let index = sequence.output_tokens();
        let mut banned = Vec::new();
        if index < params.min_tokens {
            banned.extend_from_slice(&self.model.common.eos_token_ids);
            banned.extend_from_slice(&params.stop_token_ids);
        }
        // Log-probs are the model's own, so they are taken before the row is changed; which token
        // they are for is known only after.
        let raw = params.logprobs.map(|_| row.to_vec());
        let history = sequence.history.as_ref();
        let id = self.sampler.choose(row, params, history, &banned, index)?;
        Ok(match (params.logprobs, raw) {
            (Some(count), Some(raw)) => {
                let probs = log_probs(&raw, id, count);
                TokenOutput {
                    id,
                    logprob: Some(probs.chosen),
                    top: probs.top,
                }
            }
            _ => TokenOutput {
                id,
                logprob: None,
                top: Vec::new(),
            },
        })
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
            if !result.failed {
                self.store_full_pages(sequence);
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

    /// Offers pages that are full now to the prefix cache.
    pub(super) fn store_full_pages(&self, sequence: &mut Sequence) {
        if !self.config.prefix_cache {
            return;
        }
        let full = sequence.computed / BLOCK_TOKENS;
        let stored = sequence.stored_pages;
        let hashes = sequence.hashes(full)[stored..].to_vec();
        for (page, hash) in sequence.pages[stored..].iter().zip(hashes) {
            self.pool.store(page, hash);
        }
        sequence.stored_pages = full;
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
