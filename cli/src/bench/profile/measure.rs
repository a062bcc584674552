//! An engine alone, timed step by step.

use std::time::Instant;

use anyhow::{Context, bail};
use millrace_engine::{Engine, Event, Kind, Request, RequestId, SamplingParams};
use millrace_kernels::Backend;

/// A step that only prefilled one prompt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Chunk {
    pub tokens: usize,
    /// Tokens before it.
    pub context: usize,
    pub seconds: f64,
}

/// Steps that decoded so many sequences.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Batch {
    pub sequences: usize,
    /// Tokens that each had, on average over the steps.
    pub context: f64,
    /// Of the median step.
    pub seconds: f64,
}

/// Steps that are timed for a batch; the median counts.
const STEPS: usize = 31;
/// Steps before them: room is found, and small passes are recorded, by the first ones.
const WARM: usize = 3;
/// Tokens that a step can bring a sequence at most: its own and a draft.
const A_STEP: usize = 2;

pub struct Measure<B: Backend> {
    engine: Engine<B>,
    next: u64,
}

impl<B: Backend> Measure<B> {
    pub fn new(engine: Engine<B>) -> Measure<B> {
        Measure { engine, next: 0 }
    }

    /// A prompt of `tokens`, chunk by chunk.
    pub fn prefill(&mut self, tokens: usize) -> anyhow::Result<Vec<Chunk>> {
        let id = self.submit(tokens, Kind::Prefill { first_page: 0 }, 1)?;
        let size = self.engine.config().max_batch_tokens;
        let (mut chunks, mut done) = (Vec::new(), false);
        let mut context = 0;
        while !done {
            let began = Instant::now();
            self.step(&mut |event| {
                done |= matches!(event, Event::Prefilled { id: of, .. } if *of == id);
            })?;
            chunks.push(Chunk {
                tokens: size.min(tokens - context),
                context,
                seconds: began.elapsed().as_secs_f64(),
            });
            context += size;
        }
        Ok(chunks)
    }

    /// Tokens that the first of a batch has when the last steps are timed, at most: those that are prefilled first
    /// decode while the others still are. `None`: steps have no room for prompts beside so many sequences.
    fn longest(&self, sequences: usize, context: usize) -> Option<usize> {
        let beside = A_STEP * (sequences - 1);
        let left = self.engine.config().max_batch_tokens.checked_sub(beside)?;
        let steps = sequences * context.div_ceil(left.max(1)) + WARM + STEPS;
        (left > 0).then(|| context + A_STEP * (steps + 1))
    }

    /// Whether steps, the pool and the model have room for such a batch.
    pub fn fits(&self, sequences: usize, context: usize) -> bool {
        self.longest(sequences, context).is_some_and(|most| {
            most <= self.engine.max_model_len()
                && sequences * most.div_ceil(64) <= self.engine.pool().total()
        })
    }

    /// Decodes `sequences` prompts of `context` tokens together, if they [fit](Self::fits).
    pub fn decode(&mut self, sequences: usize, context: usize) -> anyhow::Result<Batch> {
        let longest = self.longest(sequences, context);
        let most = longest.context("such a batch does not fit")? - context;
        let before = self.engine.counters();
        let ids = (0..sequences)
            .map(|_| self.submit(context, Kind::Whole, most))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let mut begun = 0;
        while begun < sequences {
            self.step(&mut |event| {
                begun += usize::from(
                    matches!(event, Event::Output { output, .. } if output.start.is_some()),
                );
            })?;
        }
        for _ in 0..WARM {
            self.step(&mut |_| {})?;
        }
        let warm = self.engine.counters();
        let mut seconds = Vec::new();
        for _ in 0..STEPS {
            let began = Instant::now();
            self.step(&mut |_| {})?;
            seconds.push(began.elapsed().as_secs_f64());
        }
        let running = self.engine.status().running;
        if running != sequences {
            bail!(
                "{} of {sequences} sequences ended too soon",
                sequences - running
            );
        }
        let now = self.engine.counters();
        let halfway = (warm.generated_tokens + now.generated_tokens) as f64 / 2.0;
        let generated = (halfway - before.generated_tokens as f64) / sequences as f64;
        ids.into_iter().for_each(|id| self.engine.abort(id));
        seconds.sort_by(f64::total_cmp);
        Ok(Batch {
            sequences,
            context: context as f64 + generated,
            seconds: seconds[STEPS / 2],
        })
    }

    pub fn engine(&self) -> &Engine<B> {
        &self.engine
    }

    fn submit(&mut self, tokens: usize, kind: Kind, most: usize) -> anyhow::Result<RequestId> {
        let id = RequestId(self.next);
        self.next += 1;
        let vocabulary = self.engine.model().common.vocab_size as u64;
        // Any tokens do; no two prompts are alike.
        let token = |at: u64| ((id.0 * 7919 + at * 104_729 + 13) % vocabulary) as u32;
        let request = Request {
            id,
            tokens: (0..tokens as u64).map(token).collect(),
            prompt_tokens: tokens,
            sampling: SamplingParams {
                max_tokens: most,
                ignore_eos: true,
                ..SamplingParams::default()
            },
            cache_salt: String::new(),
            kind,
        };
        self.engine
            .submit(request)
            .with_context(|| format!("a prompt of {tokens} tokens"))?;
        Ok(id)
    }

    fn step(&mut self, hear: &mut dyn FnMut(&Event)) -> anyhow::Result<()> {
        let mut failed = None;
        self.engine.step(&mut |event| {
            if let Event::Failed { message, .. } = &event {
                failed = Some(message.clone());
            }
            hear(&event);
        });
        match failed {
            Some(message) => bail!("the model failed on made-up tokens: {message}"),
            None => Ok(()),
        }
    }
}
