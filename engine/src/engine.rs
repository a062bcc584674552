//! One step: schedule, run, postprocess.

mod postprocess;
mod status;

use millrace_kernels::{Backend, Batch};
use millrace_model::{checkpoint::Checkpoint, config::ModelConfig};

pub use status::{Counters, Pending, Status};

use crate::{
    EngineConfig, EngineError, Event, Kind, PageRef, Reject, Request, RequestId, TokenOutput,
    config::LoadProgress,
    forward::Forward,
    pages::PagePool,
    sampling::Sampler,
    scheduler::{Limits, Scheduler, Share},
    sequence::Sequence,
};

/// One rank.
pub struct Engine<B: Backend> {
    model: ModelConfig,
    revision: String,
    config: EngineConfig,
    max_model_len: usize,
    forward: Forward<B>,
    pool: PagePool,
    scheduler: Scheduler,
    sampler: Sampler,
    counters: Counters,
    /// Whether the last step found nothing that it could compute.
    stalled: bool,
    batch: Batch,
    draft_batch: Batch,
    logits: Vec<f32>,
}

impl<B: Backend> Engine<B> {
    /// Reads the weights and reserves the pages.
    pub fn load(
        backend: B,
        checkpoint: &Checkpoint,
        config: EngineConfig,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Engine<B>, EngineError> {
        let model = checkpoint.config().clone();
        let allowed = model.common.max_position_embeddings;
        let max_model_len = config.max_model_len.unwrap_or(allowed);
        if max_model_len > allowed {
            return Err(EngineError::ModelLen {
                asked: max_model_len,
                allowed,
            });
        }
        for (what, value) in [
            ("--max-model-len", max_model_len),
            ("--max-running", config.max_running),
            ("--max-batch-tokens", config.max_batch_tokens),
        ] {
            if value == 0 {
                return Err(EngineError::Zero { what });
            }
        }
        if config.kv_pages < Sequence::pages_for(max_model_len) {
            return Err(EngineError::TooFewPages {
                pages: config.kv_pages,
                max_model_len,
            });
        }
        // A step must have room for every running sequence's token and draft.
        let max_batch_tokens = config.max_batch_tokens.max(2 * config.max_running);
        let forward = Forward::load(
            backend,
            checkpoint,
            &config,
            max_batch_tokens,
            max_model_len,
            progress,
        )?;
        let memory = forward.pages(config.kv_pages, config.kv_dtype)?;
        let pool = PagePool::new(memory);
        let limits = Limits {
            max_batch_tokens,
            max_running: config.max_running,
            local_prefill_tokens: config.local_prefill_tokens,
            prefix_cache: config.prefix_cache,
        };
        Ok(Engine {
            revision: checkpoint.revision(),
            max_model_len,
            forward,
            scheduler: Scheduler::new(limits, pool.clone()),
            pool,
            sampler: Sampler::default(),
            counters: Counters::default(),
            stalled: false,
            batch: Batch::default(),
            draft_batch: Batch::default(),
            logits: Vec::new(),
            model,
            config,
        })
    }

    pub fn model(&self) -> &ModelConfig {
        &self.model
    }

    pub fn revision(&self) -> &str {
        &self.revision
    }

    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    pub fn max_model_len(&self) -> usize {
        self.max_model_len
    }

    pub fn pool(&self) -> &PagePool {
        &self.pool
    }

    /// Whether it drafts with an MTP layer.
    pub fn drafts(&self) -> bool {
        self.forward.drafts()
    }

    /// Takes a request. Its events come from [`step`](Self::step).
    pub fn submit(&mut self, request: Request) -> Result<(), Reject> {
        self.check(&request)?;
        self.stalled = false;
        self.scheduler.push(Sequence::new(request, &self.revision));
        Ok(())
    }

    fn check(&self, request: &Request) -> Result<(), Reject> {
        let tokens = request.tokens.len();
        let vocab_size = self.model.common.vocab_size;
        if tokens == 0 || request.prompt_tokens == 0 {
            return Err(Reject::EmptyPrompt);
        }
        // One position is needed for the first token to generate.
        if tokens >= self.max_model_len {
            return Err(Reject::TooLong {
                tokens,
                max_model_len: self.max_model_len,
            });
        }
        if let Some(&token) = request.tokens.iter().find(|&&t| t as usize >= vocab_size) {
            return Err(Reject::UnknownToken { token, vocab_size });
        }
        let output = tokens - request.prompt_tokens;
        let max_tokens = request.sampling.max_tokens;
        if output >= max_tokens {
            return Err(Reject::NothingToGenerate { output, max_tokens });
        }
        if self.scheduler.contains(request.id) {
            return Err(Reject::Duplicate(request.id));
        }
        Ok(())
    }

    /// Forgets a request: no further events. Pages that were leased for it stay with their lease.
    pub fn abort(&mut self, id: RequestId) {
        self.scheduler.remove(id);
        self.stalled = false;
    }

    /// A peer has filled the pages that were reserved for `id` and sampled its first token.
    /// If the request was aborted meanwhile, the pages just go back.
    pub fn prefilled(
        &mut self,
        id: RequestId,
        pages: Vec<PageRef>,
        first: TokenOutput,
        draft: Option<u32>,
    ) -> Vec<Event> {
        self.stalled = false;
        let Some(mut sequence) = self.scheduler.take_remote(id) else {
            crate::pages::release(pages);
            return Vec::new();
        };
        sequence.pages.extend(pages);
        sequence.computed = sequence.tokens.len();
        self.counters.prompt_tokens += sequence.prompt_tokens as u64;
        self.store_full_pages(&mut sequence);
        let output = self.accept_token(&mut sequence, first);
        sequence.draft = draft.filter(|_| self.forward.drafts());
        let finished = output.finish.is_some();
        let events = vec![Event::Output { id, output }];
        if !finished {
            self.scheduler.running.push(sequence);
        }
        events
    }

    /// Whether a step would do something.
    pub fn pending(&self) -> Pending {
        let runnable = !self.scheduler.running.is_empty() || self.scheduler.waiting() > 0;
        match (runnable, self.stalled) {
            (false, _) => Pending::Idle,
            (true, true) => Pending::Blocked,
            (true, false) => Pending::Runnable,
        }
    }

    pub fn status(&self) -> Status {
        Status {
            running: self.scheduler.running.len(),
            remote: self.scheduler.remote(),
            waiting: self.scheduler.waiting(),
            waiting_tokens: self.scheduler.waiting_tokens(),
            free_pages: self.pool.available(),
            leased_pages: self.pool.leased(),
            total_pages: self.pool.total(),
        }
    }

    pub fn counters(&self) -> Counters {
        Counters {
            preemptions: self.scheduler.preemptions,
            prefix_queries: self.scheduler.prefix_queries,
            prefix_hits: self.scheduler.prefix_hits,
            ..self.counters
        }
    }

    /// Computes one batch. What a peer can start on (reservations, cached pages) is emitted before
    /// the computation, the rest after it.
    pub fn step(&mut self, emit: &mut dyn FnMut(Event)) {
        let mut events = Vec::new();
        let shares = self.scheduler.schedule(&mut events);
        self.stalled = shares.is_empty() && events.is_empty();
        postprocess::announce_cached(&mut self.scheduler, &shares, &mut events);
        events.drain(..).for_each(&mut *emit);
        if shares.is_empty() {
            return;
        }
        self.build_batch(&shares);
        self.counters.steps += 1;
        self.counters.step_tokens += self.batch.rows() as u64;
        let memory = self.pool.memory().clone();
        self.forward.run(&self.batch, &memory);
        let results = self.sample(&shares, &mut events);
        if self.forward.drafts() {
            self.draft(&shares, &results, &memory);
        }
        self.finish_step(&shares, results, &mut events);
        events.into_iter().for_each(emit);
    }

    fn build_batch(&mut self, shares: &[Share]) {
        self.batch.clear();
        let mut tokens = Vec::new();
        for share in shares {
            let sequence = &self.scheduler.running[share.sequence];
            tokens.clear();
            tokens.extend_from_slice(&sequence.tokens[sequence.computed..][..share.tokens]);
            tokens.extend(sequence.draft.filter(|_| share.draft));
            self.batch.push(
                &tokens,
                sequence.computed,
                sequence.pages.iter().map(PageRef::index),
            );
        }
    }

    /// Runs the MTP layer over the rows that turned out valid, so that its cache keeps up, and
    /// takes its guess for every sequence that goes on. A row's next token is known by now.
    fn draft(
        &mut self,
        shares: &[Share],
        results: &[postprocess::ShareResult],
        memory: &millrace_kernels::PageMemory,
    ) {
        let mut rows = Vec::with_capacity(self.batch.rows());
        let mut wanted = Vec::new();
        self.draft_batch.clear();
        for ((share, result), segment) in shares.iter().zip(results).zip(&self.batch.segments) {
            let sequence = &self.scheduler.running[share.sequence];
            let start = sequence.computed;
            // Where a sequence failed or has no next token, its row has nothing to look at.
            let valid = result
                .valid_rows
                .min(sequence.tokens.len().saturating_sub(start + 1));
            if valid == 0 {
                continue;
            }
            rows.extend(segment.rows.start..segment.rows.start + valid);
            self.draft_batch.push(
                &sequence.tokens[start + 1..][..valid],
                start,
                sequence.pages.iter().map(PageRef::index),
            );
            let room = sequence.tokens.len() + 1 < self.max_model_len;
            if share.samples
                && room
                && (result.goes_on || matches!(sequence.kind, Kind::Prefill { .. }))
            {
                wanted.push((share.sequence, rows.len() - 1));
            }
        }
        if rows.is_empty() {
            return;
        }
        let last_rows: Vec<usize> = wanted.iter().map(|(_, row)| *row).collect();
        let drafts = self
            .forward
            .draft(&self.draft_batch, &rows, &last_rows, memory);
        for ((index, _), draft) in wanted.into_iter().zip(drafts) {
            self.scheduler.running[index].draft = Some(draft);
        }
    }
}
