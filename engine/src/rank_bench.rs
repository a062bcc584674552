//! One rank's share of a large group, for measurements: its passes alone, without requests.

use std::sync::Arc;

use millrace_experts::{Choice, Placement, Shape};
use millrace_kernels::{
    Backend, Batch, DeviceMemory, ExchangeShape, KernelError, PAGE_TOKENS, PageMemory, ReplicaTable,
};
use millrace_model::{checkpoint::Checkpoint, config::ModelConfig};

use crate::{
    EngineConfig, EngineError, ExpertError, ExpertPath, GroupRank,
    config::LoadProgress,
    engine::devices::{everyone, table},
    experts::{moe_layers, shape},
    forward::{Forward, Ranks, Slots, Wanted, page_layout},
    sampling::Want,
};

/// What the rank is and does.
#[derive(Debug, Clone, Copy)]
pub struct RankShape {
    /// Ranks that the experts are spread over.
    pub ranks: usize,
    /// Replicas a layer besides one of each expert.
    pub redundant: usize,
    /// Sequences of a step of decoding.
    pub batch: usize,
    /// Tokens that each of them has.
    pub context: usize,
    /// Tokens of a chunk of prefill.
    pub chunk: usize,
    /// With the MTP layer: two rows a sequence, and its pass.
    pub mtp: bool,
}

/// A loaded rank.
pub struct RankBench<B: Backend> {
    shape: RankShape,
    backend: Arc<B>,
    forward: Forward<B>,
    pages: Arc<PageMemory>,
    /// Of workers that decode, and of workers that prefill: windows are as large as their batches.
    exchanges: [B::Exchange; 2],
    /// MoE layers.
    layers: usize,
    first_row: u32,
    decode: Batch,
    drafts: Batch,
    prefill: Batch,
}

impl<B: Backend> RankBench<B> {
    /// Rank 0 of a group whose every expert is asked for alike, and whose other ranks its device stands for.
    pub fn load(
        backend: B,
        checkpoint: &Checkpoint,
        shape: RankShape,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<RankBench<B>, EngineError> {
        let backend = Arc::new(backend);
        let model = checkpoint.config();
        let new = if shape.mtp { 2 } else { 1 };
        let rows = shape.chunk.max(shape.batch * new);
        let tokens = shape.context.max(shape.chunk) + PAGE_TOKENS;
        let each = tokens.div_ceil(PAGE_TOKENS);
        let config = EngineConfig {
            max_batch_tokens: rows,
            max_running: shape.batch,
            kv_pages: each * shape.batch,
            mtp: shape.mtp,
            ..EngineConfig::default()
        };
        let (group, table) = group(model, &shape)?;
        let layout = page_layout(model, config.mtp, config.kv_dtype)?;
        let mut pages = backend.pages(layout, config.kv_pages)?;
        let forward = Forward::load(
            backend.clone(),
            checkpoint,
            &config,
            rows,
            tokens,
            Slots::Fixed(&group),
            progress,
        )?;
        let experts = group.placement.shape();
        let per_token = moe_layers(model, shape.mtp).map_or(0, |(moe, _)| moe.experts_per_token);
        let of_decode = ExchangeShape {
            layers: experts.layers,
            experts: experts.experts,
            ranks: experts.ranks,
            slots: experts.slots,
            rows: shape.batch * new,
            per_token,
            hidden: model.common.hidden_size,
        };
        let of_prefill = ExchangeShape {
            rows: shape.chunk.max(1),
            ..of_decode
        };
        let exchange = |shape| {
            let exchange = backend.exchange(shape, &table)?;
            exchange.ok_or_else(|| KernelError::Sharing("this device has none to share".into()))
        };
        let exchanges = [exchange(of_decode)?, exchange(of_prefill)?];
        fill(Arc::get_mut(&mut pages).expect("nobody else holds them yet"));
        let batch = |sequences: usize, new: usize, begin: usize| {
            let mut batch = Batch::default();
            for sequence in 0..sequences {
                let token =
                    |at: usize| ((sequence * 7919 + at * 104_729) % model.common.vocab_size) as u32;
                let tokens: Vec<u32> = (0..new).map(token).collect();
                batch.push(
                    &tokens,
                    begin,
                    (0..each as u32).map(|page| page + (sequence * each) as u32),
                );
            }
            batch
        };
        Ok(RankBench {
            decode: batch(shape.batch, new, shape.context),
            drafts: batch(shape.batch, new, shape.context),
            prefill: batch(1, shape.chunk, 0),
            layers: experts.layers,
            first_row: 0,
            shape,
            backend,
            forward,
            pages,
            exchanges,
        })
    }

    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// What the device's memory holds.
    pub fn device_memory(&self) -> Option<DeviceMemory> {
        self.backend.memory()
    }

    /// One step of decoding, from tokens to tokens.
    pub fn decode(&mut self) {
        let rows = self.decode.rows();
        let all: Vec<usize> = (0..rows).collect();
        self.pass(Pass::Decode);
        let best = |&row: &usize| Wanted {
            row,
            want: Want::best(),
        };
        let wanted: Vec<Wanted> = all.iter().map(best).collect();
        let mut ranks = Ranks::Devices {
            exchange: &mut self.exchanges[Pass::Decode as usize],
            is_over: &|| false,
        };
        let answered = self.forward.answer(&wanted, &ranks);
        answered.expect("nobody else takes part in it");
        if self.shape.mtp {
            let last: Vec<usize> = (1..rows).step_by(2).collect();
            let drafts = self
                .forward
                .draft(&self.drafts, &all, &last, &self.pages, &mut ranks);
            drafts.expect("nobody else takes part in it");
        }
    }

    /// One chunk of prefill.
    pub fn prefill(&mut self) {
        self.pass(Pass::Prefill);
        self.forward.wait();
    }

    fn pass(&mut self, pass: Pass) {
        let batch = match pass {
            Pass::Decode => &self.decode,
            Pass::Prefill => &self.prefill,
        };
        let exchange = &mut self.exchanges[pass as usize];
        self.backend.exchange_begin(self.first_row, exchange);
        self.first_row = self.first_row.wrapping_add(batch.rows() as u32);
        let mut ranks = Ranks::Devices {
            exchange,
            is_over: &|| false,
        };
        let run = self.forward.run(batch, &self.pages, &mut ranks);
        run.expect("nobody else takes part in it");
    }

    /// Pieces of experts' work that were computed since the last call, `[layers]`; `None` if a peer was missing.
    pub fn computed(&mut self) -> Option<Vec<u64>> {
        let mut computed = vec![0; self.layers];
        let mut sent = vec![0; self.layers * self.shape.ranks];
        let mut whole = true;
        for exchange in &mut self.exchanges {
            self.backend
                .exchange_counts(exchange, &mut sent, &mut computed);
            whole &= self.backend.exchange_finish(exchange, &|| false);
        }
        whole.then_some(computed)
    }
}

#[derive(Debug, Clone, Copy)]
enum Pass {
    Decode,
    Prefill,
}

/// The group's first placement, and which replicas rank 0 takes.
fn group(model: &ModelConfig, bench: &RankShape) -> Result<(GroupRank, ReplicaTable), EngineError> {
    let shape: Shape = shape(model, bench.mtp, bench.ranks, bench.redundant)?;
    let rank = GroupRank {
        placement: Arc::new(Placement::initial(shape).map_err(ExpertError::from)?),
        rank: 0,
        path: ExpertPath::Devices,
    };
    let table = table(&Choice::new(&everyone(&rank), 0));
    Ok((rank, table))
}

/// Puts numbers of a trained model's size into all pages: what is all zero costs a device less power.
fn fill(pages: &mut PageMemory) {
    let bytes = pages.layout().page_bytes();
    // bf16 of either sign between 2^-7 and 4.
    let mut state = 1u32;
    let page: Vec<u8> = (0..bytes / 2)
        .flat_map(|_| {
            state = state.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
            let bits = (state >> 16) as u16;
            ((bits & 0x807f) | (0x3c00 + (bits >> 7 & 7) * 0x80)).to_le_bytes()
        })
        .collect();
    pages.fill(&page);
}
