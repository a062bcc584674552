//! The forward pass of each family, written once over [`Backend`].
//!
//! A pass leaves the final hidden states of every row (after the last norm) in its workspace;
//! logits and MTP drafts are then asked for by row, because few rows need them.

mod deepseek;
mod dense;
mod group;
mod load;
mod moe;

use std::{borrow::Cow, iter, sync::Arc};

use millrace_kernels::{
    Backend, Batch, DeviceMemory, KvDtype, PAGE_TOKENS, PageLayout, PageMemory,
};
use millrace_model::{
    checkpoint::Checkpoint,
    config::{CommonConfig, Family, ModelConfig},
};

use crate::{
    EngineConfig, EngineError, SamplingParams, StepDropped,
    config::LoadProgress,
    experts::StepCounts,
    sampling::{self, Answer, Want},
};
use deepseek::DeepSeek;
use dense::Dense;
use load::Loader;

pub use group::Ranks;
pub use load::Slots;

/// Rows whose logits are computed at a time: bounds a buffer of `rows x vocabulary`.
const LOGIT_ROWS: usize = 256;

/// A loaded model, ready to run batches of up to the rows it was loaded for.
pub struct Forward<B: Backend> {
    backend: Arc<B>,
    body: Body<B>,
    embed: B::Embedding,
    head: B::Linear,
    /// The batch of the pass at hand.
    placed: B::Placed,
    /// `[rows, hidden]`, after the final norm.
    hidden: B::Tensor,
    gathered: B::Tensor,
    logits: B::Tensor,
}

/// A row whose logits are wanted, and what for.
#[derive(Debug, Clone)]
pub struct Wanted<'a> {
    pub row: usize,
    pub want: Want<'a>,
}

enum Body<B: Backend> {
    DeepSeek(Box<DeepSeek<B>>),
    Dense(Box<Dense<B>>),
}

/// How this model's cache lies in pages.
pub fn page_layout(
    model: &ModelConfig,
    mtp: bool,
    dtype: KvDtype,
) -> Result<PageLayout, EngineError> {
    let layers = model.common.num_layers;
    let (layers, row_values, latent) = match &model.family {
        Family::DeepSeek(family) => (
            layers + usize::from(mtp && family.num_mtp_layers > 0),
            family.kv_lora_rank + family.qk_rope_head_dim,
            family.kv_lora_rank,
        ),
        Family::Dense(family) => (layers, 2 * family.num_kv_heads * family.head_dim, 0),
    };
    if dtype == KvDtype::Fp8 && latent == 0 {
        return Err(EngineError::NotLatent);
    }
    Ok(PageLayout {
        layers,
        row_values,
        latent,
        dtype,
    })
}

impl<B: Backend> Forward<B> {
    pub fn load(
        backend: Arc<B>,
        checkpoint: &Checkpoint,
        config: &EngineConfig,
        max_rows: usize,
        max_model_len: usize,
        slots: Slots<'_, B>,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Forward<B>, EngineError> {
        let model = checkpoint.config();
        let CommonConfig {
            hidden_size,
            vocab_size,
            tie_word_embeddings,
            ..
        } = model.common;
        // Rows first: what is left of a device's memory after them is for weights, and whether those fit is
        // known before the first of them is read.
        let logit_rows = LOGIT_ROWS.min(max_rows).max(Want::MOST_ROWS);
        let hidden = backend.tensor(max_rows, hidden_size);
        let gathered = backend.tensor(logit_rows, hidden_size);
        let logits = backend.tensor_f32(logit_rows, vocab_size);
        let mut loader = Loader::new(&*backend, checkpoint, slots, progress);
        let body = match &model.family {
            Family::DeepSeek(family) => {
                let body = DeepSeek::load(
                    &mut loader,
                    model,
                    family,
                    config.mtp,
                    max_rows,
                    max_model_len,
                )?;
                Body::DeepSeek(Box::new(body))
            }
            Family::Dense(family) => {
                let body =
                    Dense::load(&mut loader, &model.common, family, max_rows, max_model_len)?;
                Body::Dense(Box::new(body))
            }
        };
        let embed = loader.embedding("model.embed_tokens", vocab_size, hidden_size)?;
        let head = if tie_word_embeddings {
            "model.embed_tokens"
        } else {
            "lm_head"
        };
        let head = loader.linear(&[(head, vocab_size)], hidden_size, None)?;
        backend.loaded();
        backend.had_room()?;
        Ok(Forward {
            placed: backend.placed(),
            hidden,
            gathered,
            logits,
            backend,
            body,
            embed,
            head,
        })
    }

    pub fn backend(&self) -> &B {
        &self.backend
    }

    pub fn device_memory(&self) -> Option<DeviceMemory> {
        self.backend.memory()
    }

    /// Whether there is an MTP layer to draft with.
    pub fn drafts(&self) -> bool {
        match &self.body {
            Body::DeepSeek(body) => body.drafts(),
            Body::Dense(_) => false,
        }
    }

    /// What passes among `ranks` have counted since it was last kept or forgotten, up to the last; `None` for a model without
    /// experts.
    pub(crate) fn counts(&mut self, ranks: &mut Ranks<'_, B>) -> Option<&mut StepCounts> {
        match &mut self.body {
            Body::DeepSeek(body) => body.counts(&self.backend, ranks),
            Body::Dense(_) => None,
        }
    }

    /// Waits until all passes so far are done.
    pub(crate) fn wait(&self) {
        self.backend.wait();
    }

    /// Puts other experts into the slots of every MoE layer.
    pub(crate) fn set_experts(&mut self, layers: Vec<Vec<Arc<B::Expert>>>) {
        if let Body::DeepSeek(body) = &mut self.body {
            for (moe, slots) in body.moe_layers().zip(layers) {
                moe.experts = self.backend.experts(slots);
            }
        }
    }

    /// Computes the hidden states of `batch` and writes its cache rows, or asks a device to: only
    /// [`answer`](Self::answer) says whether it was completed.
    ///
    /// # Errors
    /// Only among other ranks. Computing the same batch again is all there is to do: what was
    /// written is written again with the same values.
    pub fn run(
        &mut self,
        batch: &Batch,
        pages: &PageMemory,
        ranks: &mut Ranks<'_, B>,
    ) -> Result<(), StepDropped> {
        let (backend, hidden) = (&*self.backend, &mut self.hidden);
        backend.place(batch, &mut self.placed);
        let batch = &self.placed;
        let by_host = matches!(ranks, Ranks::Group { .. });
        let mut done = Ok(());
        let mut pass = || match &mut self.body {
            Body::DeepSeek(body) => {
                done = body.run(backend, &self.embed, batch, pages, ranks, hidden);
            }
            Body::Dense(body) => body.run(backend, &self.embed, batch, pages, hidden),
        };
        match by_host {
            true => pass(),
            false => backend.replayed(0, batch, pages, pass),
        }
        self.close_counts(ranks);
        done
    }

    fn close_counts(&mut self, ranks: &mut Ranks<'_, B>) {
        if let Body::DeepSeek(body) = &mut self.body {
            body.close_counts(&self.backend, ranks);
        }
    }

    /// Runs the largest batch once, into pages that nobody has yet, so that a device finds room for what it
    /// computes in before requests come, or says at once that there is none.
    pub fn warm_up(
        &mut self,
        pages: &PageMemory,
        rows: usize,
        max_model_len: usize,
        ranks: &mut Ranks<'_, B>,
    ) {
        let longest = max_model_len.min(pages.pages() * PAGE_TOKENS);
        let mut batch = Batch::default();
        // Sequences as long as may be; what they write over each other's pages nobody reads.
        while batch.rows() < rows {
            let count = longest.min(rows - batch.rows());
            let table = 0..count.div_ceil(PAGE_TOKENS) as u32;
            batch.push(&vec![0; count], 0, table);
        }
        let computed = self.run(&batch, pages, ranks);
        let all: Vec<usize> = (0..rows).collect();
        let params = SamplingParams {
            temperature: 1.0,
            min_tokens: 1,
            stop_token_ids: vec![0],
            // As many as the API gives.
            logprobs: Some(20),
            ..SamplingParams::default()
        };
        let wanted = |row, index| Wanted {
            row,
            want: params.want(index, Cow::default(), &[]),
        };
        let most = all.iter().take(LOGIT_ROWS);
        let wanted: Vec<Wanted<'_>> = most
            .map(|row| wanted(*row, 1))
            .chain([wanted(0, 0)])
            .collect();
        let answered = self.answer(&wanted, ranks);
        let drafted = match self.drafts() {
            true => self.draft(&batch, &all, &[0], pages, ranks).map(|_| ()),
            false => Ok(()),
        };
        let done = computed.and(answered.map(|_| ())).and(drafted);
        done.expect("nobody else takes part in it");
        if let Some(counts) = self.counts(ranks) {
            counts.forget();
        }
    }

    /// What is wanted of the logits of rows of the last [`run`](Self::run), in their order.
    ///
    /// # Errors
    /// The run was not completed after all.
    pub fn answer(
        &mut self,
        wanted: &[Wanted<'_>],
        ranks: &Ranks<'_, B>,
    ) -> Result<Vec<Answer>, StepDropped> {
        let room = self.backend.capacity(&self.logits);
        let mut answers = Vec::with_capacity(wanted.len());
        while answers.len() < wanted.len() {
            let mut rows = Vec::with_capacity(room);
            let first = answers.len();
            let mut end = first;
            while end < wanted.len() && rows.len() + wanted[end].want.rows() <= room {
                rows.extend(iter::repeat_n(wanted[end].row, wanted[end].want.rows()));
                end += 1;
            }
            self.backend.gather(&self.hidden, &rows, &mut self.gathered);
            self.backend
                .apply(&self.head, &self.gathered, 0, &mut self.logits);
            // As late as can be, so that a device has something to do.
            ranks.finish(&self.backend)?;
            let wants = wanted[first..end].iter().map(|wanted| &wanted.want);
            answers.extend(sampling::answer(&*self.backend, &mut self.logits, wants));
        }
        ranks.finish(&self.backend)?;
        Ok(answers)
    }

    /// Runs the MTP layer over `rows` of the last [`run`](Self::run). `batch` gives, for each of
    /// them, the position and the *next* token. Answers the most probable token after that for
    /// each of `wanted` (indexes into `rows`).
    pub fn draft(
        &mut self,
        batch: &Batch,
        rows: &[usize],
        wanted: &[usize],
        pages: &PageMemory,
        ranks: &mut Ranks<'_, B>,
    ) -> Result<Vec<u32>, StepDropped> {
        let Body::DeepSeek(body) = &mut self.body else {
            return Ok(Vec::new());
        };
        let (backend, hidden) = (&*self.backend, &self.hidden);
        backend.place(batch, &mut self.placed);
        let batch = &self.placed;
        let done = body.run_mtp(backend, &self.embed, hidden, rows, batch, pages, ranks);
        body.close_counts(backend, ranks);
        done?;
        let mut drafts = Vec::with_capacity(wanted.len());
        let mut best = Vec::new();
        for wanted in wanted.chunks(LOGIT_ROWS) {
            let (hidden, head) = body.mtp_output();
            self.backend.gather(hidden, wanted, &mut self.gathered);
            self.backend.apply(
                head.unwrap_or(&self.head),
                &self.gathered,
                0,
                &mut self.logits,
            );
            ranks.finish(&self.backend)?;
            self.backend.arg_max(&self.logits, &mut best);
            drafts.extend(best.iter().map(|(token, _)| *token));
        }
        ranks.finish(&self.backend)?;
        Ok(drafts)
    }
}
