//! One rank: what it is made of and what it is asked.

pub(crate) mod devices;
mod group;
mod postprocess;
mod status;
mod step;

use std::sync::Arc;

use millrace_kernels::{Backend, Batch, DeviceMemory};
use millrace_model::{checkpoint::Checkpoint, config::ModelConfig};

pub use status::{Counters, Pending, Status};

use crate::{
    EngineConfig, EngineError, Event, ExpertCounts, PageRef, Reject, Request, RequestId,
    TokenOutput,
    config::LoadProgress,
    experts::moe_layers,
    forward::{Forward, Ranks, Slots, page_layout},
    pages::PagePool,
    scheduler::{Limits, Scheduler},
    sequence::Sequence,
};
use group::Group;

/// One rank.
pub struct Engine<B: Backend> {
    model: ModelConfig,
    revision: String,
    config: EngineConfig,
    max_model_len: usize,
    forward: Forward<B>,
    pool: PagePool,
    scheduler: Scheduler,
    counters: Counters,
    /// `None` for a model without experts.
    expert_counts: Option<Arc<ExpertCounts>>,
    /// `None` on its own.
    group: Option<Group<B>>,
    /// The last step found nothing that it could compute, with so many pages to be had.
    stalled: Option<usize>,
    batch: Batch,
    draft_batch: Batch,
}

impl<B: Backend> Engine<B> {
    /// Reads the weights and reserves the pages, for an engine on its own.
    pub fn load(
        backend: B,
        checkpoint: &Checkpoint,
        config: EngineConfig,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Engine<B>, EngineError> {
        Engine::load_slots(Arc::new(backend), checkpoint, config, Slots::All, progress)
    }

    fn load_slots(
        backend: Arc<B>,
        checkpoint: &Checkpoint,
        config: EngineConfig,
        slots: Slots<'_, B>,
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
        let ranks = slots.ranks();
        let max_batch_tokens = config.most_rows();
        let layout = page_layout(&model, config.mtp, config.kv_dtype)?;
        let memory = backend.pages(layout, config.kv_pages)?;
        let alone = matches!(slots, Slots::All);
        let mut forward = Forward::load(
            backend,
            checkpoint,
            &config,
            max_batch_tokens,
            max_model_len,
            slots,
            progress,
        )?;
        if alone && forward.device_memory().is_some() {
            forward.warm_up(&memory, max_batch_tokens, max_model_len, &mut Ranks::Alone);
        }
        let pool = PagePool::new(memory);
        let limits = Limits {
            max_batch_tokens,
            max_running: config.max_running,
            local_prefill_tokens: config.local_prefill_tokens,
            prefix_cache: config.prefix_cache,
        };
        let expert_counts = moe_layers(&model, config.mtp)
            .map(|(moe, layers)| Arc::new(ExpertCounts::new(layers.len(), moe.num_experts, ranks)));
        Ok(Engine {
            revision: checkpoint.revision(),
            max_model_len,
            forward,
            scheduler: Scheduler::new(limits, pool.clone()),
            pool,
            counters: Counters::default(),
            expert_counts,
            group: None,
            stalled: None,
            batch: Batch::default(),
            draft_batch: Batch::default(),
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

    /// What the device's memory holds; `None` where it is the host's.
    pub fn device_memory(&self) -> Option<DeviceMemory> {
        self.forward.device_memory()
    }

    /// Whether it drafts with an MTP layer.
    pub fn drafts(&self) -> bool {
        self.forward.drafts()
    }

    /// Takes a request. Its events come from [`step`](Self::step).
    pub fn submit(&mut self, request: Request) -> Result<(), Reject> {
        self.check(&request)?;
        self.stalled = None;
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
        self.stalled = None;
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
        self.stalled = None;
        let Some(mut sequence) = self.scheduler.take_remote(id) else {
            crate::pages::release(pages);
            return Vec::new();
        };
        sequence.pages.extend(pages);
        sequence.computed = sequence.tokens.len();
        self.counters.prompt_tokens += sequence.prompt_tokens as u64;
        if self.config.prefix_cache {
            sequence.store_full_pages(&self.pool);
        }
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
        // Pages that a transfer held come back without a word.
        let stalled = self
            .stalled
            .is_some_and(|pages| self.pool.available() <= pages);
        match (runnable, stalled) {
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

    /// How often experts were chosen and computed; `None` for a model without any.
    pub fn expert_counts(&self) -> Option<&Arc<ExpertCounts>> {
        self.expert_counts.as_ref()
    }
}
