//! DeepSeek-V2-Lite, V2, V3, R1, V3.1: latent attention and mixture of experts, with V3's MTP layer.
//!
//! Attention is always *absorbed* (DeepSeek-V2, section 2.1.3): the key half of `kv_b_proj` is
//! folded into the query and the value half into the output, so attention reads latent rows
//! `[c_kv | k_pe]` straight from their pages and expanded keys and values never exist. Prefill
//! and decode take the same path, which keeps a token's result the same bit for bit whichever of
//! them computed it.

use millrace_kernels::{Backend, PageMemory};
use millrace_model::config::{CommonConfig, DeepSeekConfig, ModelConfig};

use super::{
    group::Ranks,
    load::{Loader, rope_table},
    moe::{Moe, MoeSpace, SwiGlu, SwiGluSpace},
};
use crate::{
    EngineError, StepDropped,
    experts::{StepCounts, moe_layers},
};

pub struct DeepSeek<B: Backend> {
    layers: Vec<Layer<B>>,
    norm: B::Vector,
    mtp: Option<Mtp<B>>,
    space: Space<B>,
    shape: Shape,
    rope: B::Rope,
}

/// Numbers that every layer shares.
#[derive(Debug, Clone, Copy)]
struct Shape {
    heads: usize,
    q_lora: Option<usize>,
    latent: usize,
    eps: f32,
    scale: f32,
}

struct Layer<B: Backend> {
    /// Index of its rows in a page.
    index: usize,
    input_norm: B::Vector,
    query: Query<B>,
    kv_norm: B::Vector,
    w_uk: B::HeadLinear,
    w_uv: B::HeadLinear,
    output: B::Linear,
    post_norm: B::Vector,
    feed_forward: FeedForward<B>,
}

/// How queries and latents are projected.
enum Query<B: Backend> {
    /// V2-Lite: straight.
    Direct { q: B::Linear, kv_a: B::Linear },
    /// Through a low-rank bottleneck, computed together with the latent: `[q_a; kv_a]`.
    LowRank {
        q_kv_a: B::Linear,
        q_norm: B::Vector,
        q_b: B::Linear,
    },
}

enum FeedForward<B: Backend> {
    Dense(SwiGlu<B>),
    Moe(Moe<B>),
}

/// V3's multi-token prediction layer (DeepSeek-V3, section 2.2): from the main model's final
/// hidden state at `t` and the embedding of token `t + 1` it guesses token `t + 2`.
struct Mtp<B: Backend> {
    embed_norm: B::Vector,
    hidden_norm: B::Vector,
    projection: B::Linear,
    layer: Layer<B>,
    head_norm: B::Vector,
    /// `None`: the same as the main model's, as V3 has it.
    head: Option<B::Linear>,
    embedded: B::Tensor,
    gathered: B::Tensor,
    joined: B::Tensor,
    hidden: B::Tensor,
}

/// Buffers of one batch.
struct Space<B: Backend> {
    residual: B::Tensor,
    normed: B::Tensor,
    delta: B::Tensor,
    /// `[q_a | c_kv | k_pe]`, or `[c_kv | k_pe]`.
    low_rank: B::Tensor,
    query: B::Tensor,
    latent_query: B::Tensor,
    latent_output: B::Tensor,
    output: B::Tensor,
    dense: SwiGluSpace<B>,
    moe: Option<MoeSpace<B>>,
}

impl<B: Backend> DeepSeek<B> {
    pub fn load(
        loader: &mut Loader<'_, B>,
        model: &ModelConfig,
        config: &DeepSeekConfig,
        mtp: bool,
        max_rows: usize,
        max_model_len: usize,
    ) -> Result<DeepSeek<B>, EngineError> {
        let common = &model.common;
        let shape = Shape {
            heads: config.num_heads,
            q_lora: config.q_lora_rank,
            latent: config.kv_lora_rank,
            eps: common.rms_norm_eps,
            scale: config.softmax_scale(&common.rope),
        };
        let mut space = Space::new(loader.backend, common, config, max_rows);
        space.moe = moe_layers(model, mtp).map(|(moe, layers)| {
            let (hidden, group) = (common.hidden_size, loader.group());
            MoeSpace::new(loader.backend, max_rows, hidden, moe, layers.len(), group)
        });
        let rope = loader
            .backend
            .rope_table(rope_table(&common.rope, max_model_len));
        loader.check_room(mtp)?;
        let layers = (0..common.num_layers)
            .map(|index| Layer::load(loader, common, config, index))
            .collect::<Result<Vec<_>, _>>()?;
        let norm = loader.vector("model.norm.weight", common.hidden_size)?;
        let mtp = (mtp && config.num_mtp_layers > 0)
            .then(|| Mtp::load(loader, common, config, max_rows))
            .transpose()?;
        Ok(DeepSeek {
            layers,
            norm,
            mtp,
            space,
            shape,
            rope,
        })
    }

    pub fn drafts(&self) -> bool {
        self.mtp.is_some()
    }

    /// Hidden states of `batch` after the final norm.
    pub fn run(
        &mut self,
        backend: &B,
        embed: &B::Embedding,
        batch: &B::Placed,
        pages: &PageMemory,
        ranks: &mut Ranks<'_, B>,
        hidden: &mut B::Tensor,
    ) -> Result<(), StepDropped> {
        let DeepSeek {
            layers,
            norm,
            space,
            shape,
            rope,
            ..
        } = self;
        backend.embed(embed, batch, &mut space.residual);
        for (index, layer) in layers.iter().enumerate() {
            layer.run(backend, shape, rope, batch, pages, ranks, space, index == 0)?;
        }
        backend.add_rms_norm(&mut space.residual, &space.delta, norm, shape.eps, hidden);
        Ok(())
    }

    /// Ends a pass for what it counts.
    pub fn close_counts(&mut self, backend: &B, ranks: &mut Ranks<'_, B>) {
        if let Some(space) = &mut self.space.moe {
            space.close_counts(backend, ranks);
        }
    }

    /// What closed passes among `ranks` have counted since it was last kept or forgotten.
    pub fn counts(&mut self, backend: &B, ranks: &mut Ranks<'_, B>) -> Option<&mut StepCounts> {
        let moe = self.space.moe.as_mut();
        moe.map(|space| space.counts(backend, ranks))
    }

    /// MoE layers, the MTP layer's last.
    pub fn moe_layers(&mut self) -> impl Iterator<Item = &mut Moe<B>> {
        let mtp = self.mtp.iter_mut().map(|mtp| &mut mtp.layer);
        let layers = self.layers.iter_mut().chain(mtp);
        layers.filter_map(|layer| match &mut layer.feed_forward {
            FeedForward::Moe(moe) => Some(moe),
            FeedForward::Dense(_) => None,
        })
    }

    /// The MTP layer over `rows` of `hidden`; see [`Forward::draft`](super::Forward::draft).
    #[allow(clippy::too_many_arguments)]
    pub fn run_mtp(
        &mut self,
        backend: &B,
        embed: &B::Embedding,
        hidden: &B::Tensor,
        rows: &[usize],
        batch: &B::Placed,
        pages: &PageMemory,
        ranks: &mut Ranks<'_, B>,
    ) -> Result<(), StepDropped> {
        let DeepSeek {
            mtp: Some(mtp),
            space,
            shape,
            rope,
            ..
        } = self
        else {
            return Ok(());
        };
        let eps = shape.eps;
        backend.embed(embed, batch, &mut space.residual);
        backend.rms_norm(&space.residual, &mtp.embed_norm, eps, &mut mtp.embedded);
        backend.gather(hidden, rows, &mut mtp.gathered);
        backend.rms_norm(&mtp.gathered, &mtp.hidden_norm, eps, &mut space.normed);
        backend.concat(&mtp.embedded, &space.normed, &mut mtp.joined);
        backend.apply(&mtp.projection, &mtp.joined, 0, &mut space.residual);
        mtp.layer
            .run(backend, shape, rope, batch, pages, ranks, space, true)?;
        backend.add_rms_norm(
            &mut space.residual,
            &space.delta,
            &mtp.head_norm,
            eps,
            &mut mtp.hidden,
        );
        Ok(())
    }

    /// The MTP layer's hidden states and its head, if it has one of its own.
    pub fn mtp_output(&self) -> (&B::Tensor, Option<&B::Linear>) {
        let mtp = self
            .mtp
            .as_ref()
            .expect("only a model that drafts is asked");
        (&mtp.hidden, mtp.head.as_ref())
    }
}

impl<B: Backend> Layer<B> {
    fn load(
        loader: &mut Loader<'_, B>,
        common: &CommonConfig,
        config: &DeepSeekConfig,
        index: usize,
    ) -> Result<Layer<B>, EngineError> {
        let hidden = common.hidden_size;
        let (latent, rope) = (config.kv_lora_rank, config.qk_rope_head_dim);
        let query_width = config.num_heads * config.qk_head_dim();
        let prefix = format!("model.layers.{index}");
        let attention = |name: &str| format!("{prefix}.self_attn.{name}");

        let kv_a = attention("kv_a_proj_with_mqa");
        let kv_a_bias = attention("kv_a_proj_with_mqa.bias");
        let query = match config.q_lora_rank {
            None => {
                let bias = config
                    .attention_bias
                    .then_some([(kv_a_bias.as_str(), latent + rope)]);
                Query::Direct {
                    q: loader.linear(&[(&attention("q_proj"), query_width)], hidden, None)?,
                    kv_a: loader.linear(
                        &[(&kv_a, latent + rope)],
                        hidden,
                        bias.as_ref().map(|b| &b[..]),
                    )?,
                }
            }
            Some(rank) => {
                let q_a_bias = attention("q_a_proj.bias");
                let bias = config.attention_bias.then_some([
                    (q_a_bias.as_str(), rank),
                    (kv_a_bias.as_str(), latent + rope),
                ]);
                Query::LowRank {
                    q_kv_a: loader.linear(
                        &[(&attention("q_a_proj"), rank), (&kv_a, latent + rope)],
                        hidden,
                        bias.as_ref().map(|b| &b[..]),
                    )?,
                    q_norm: loader.vector(&attention("q_a_layernorm.weight"), rank)?,
                    q_b: loader.linear(&[(&attention("q_b_proj"), query_width)], rank, None)?,
                }
            }
        };
        let kv_b_name = attention("kv_b_proj");
        let (nope, v, heads) = (config.qk_nope_head_dim, config.v_head_dim, config.num_heads);
        let kv_b = loader.matrix(&kv_b_name, heads * (nope + v), latent)?;
        let (w_uk, w_uv) = loader
            .backend
            .absorbed(kv_b, heads, nope, v)
            .map_err(|source| EngineError::Weights {
                tensor: kv_b_name,
                source,
            })?;
        let output_bias = attention("o_proj.bias");
        let output_bias = config
            .attention_bias
            .then_some([(output_bias.as_str(), hidden)]);
        let output = loader.linear(
            &[(&attention("o_proj"), hidden)],
            heads * v,
            output_bias.as_ref().map(|b| &b[..]),
        )?;
        let mlp = format!("{prefix}.mlp");
        let feed_forward = match &config.moe {
            Some(moe) if moe.is_moe_layer(index) => {
                let number = (0..index).filter(|i| moe.is_moe_layer(*i)).count();
                FeedForward::Moe(Moe::load(loader, &mlp, common, moe, number)?)
            }
            _ => FeedForward::Dense(SwiGlu::load(
                loader,
                &mlp,
                hidden,
                config.intermediate_size,
            )?),
        };
        Ok(Layer {
            index,
            input_norm: loader.vector(&format!("{prefix}.input_layernorm.weight"), hidden)?,
            query,
            kv_norm: loader.vector(&attention("kv_a_layernorm.weight"), latent)?,
            w_uk,
            w_uv,
            output,
            post_norm: loader
                .vector(&format!("{prefix}.post_attention_layernorm.weight"), hidden)?,
            feed_forward,
        })
    }

    /// `first`: the residual has no pending delta yet.
    #[allow(clippy::too_many_arguments)]
    fn run(
        &self,
        backend: &B,
        shape: &Shape,
        rope: &B::Rope,
        batch: &B::Placed,
        pages: &PageMemory,
        ranks: &mut Ranks<'_, B>,
        space: &mut Space<B>,
        first: bool,
    ) -> Result<(), StepDropped> {
        let eps = shape.eps;
        if first {
            backend.rms_norm(&space.residual, &self.input_norm, eps, &mut space.normed);
        } else {
            backend.add_rms_norm(
                &mut space.residual,
                &space.delta,
                &self.input_norm,
                eps,
                &mut space.normed,
            );
        }
        let latent_column = match &self.query {
            Query::Direct { q, kv_a } => {
                backend.apply(q, &space.normed, 0, &mut space.query);
                backend.apply(kv_a, &space.normed, 0, &mut space.low_rank);
                0
            }
            Query::LowRank {
                q_kv_a,
                q_norm,
                q_b,
            } => {
                let rank = shape.q_lora.expect("this form has a rank");
                backend.apply(q_kv_a, &space.normed, 0, &mut space.low_rank);
                backend.head_rms_norm(&mut space.low_rank, 0, 1, rank, q_norm, eps);
                backend.apply(q_b, &space.low_rank, 0, &mut space.query);
                rank
            }
        };
        backend.write_latent(
            &space.low_rank,
            latent_column,
            &self.kv_norm,
            eps,
            rope,
            batch,
            pages,
            self.index,
        );
        backend.absorb_query(
            &self.w_uk,
            &space.query,
            rope,
            batch,
            &mut space.latent_query,
        );
        backend.latent_attention(
            &space.latent_query,
            shape.heads,
            shape.latent,
            shape.scale,
            batch,
            pages,
            self.index,
            &mut space.latent_output,
        );
        backend.apply_heads(&self.w_uv, &space.latent_output, &mut space.output);
        backend.apply(&self.output, &space.output, 0, &mut space.delta);
        backend.add_rms_norm(
            &mut space.residual,
            &space.delta,
            &self.post_norm,
            eps,
            &mut space.normed,
        );
        match &self.feed_forward {
            FeedForward::Dense(mlp) => {
                mlp.run(backend, &space.normed, &mut space.dense, &mut space.delta);
            }
            FeedForward::Moe(moe) => {
                let moe_space = space
                    .moe
                    .as_mut()
                    .expect("a model with experts has their buffers");
                moe.run(backend, &space.normed, ranks, moe_space, &mut space.delta)?;
            }
        }
        Ok(())
    }
}

impl<B: Backend> Mtp<B> {
    fn load(
        loader: &mut Loader<'_, B>,
        common: &CommonConfig,
        config: &DeepSeekConfig,
        max_rows: usize,
    ) -> Result<Mtp<B>, EngineError> {
        let hidden = common.hidden_size;
        // The first MTP layer stands right after the main ones, here and in a page.
        let index = common.num_layers;
        let prefix = format!("model.layers.{index}");
        let head = format!("{prefix}.shared_head.head");
        let head = loader
            .has(&format!("{head}.weight"))
            .then(|| loader.linear(&[(&head, common.vocab_size)], hidden, None))
            .transpose()?;
        let backend = loader.backend;
        Ok(Mtp {
            embed_norm: loader.vector(&format!("{prefix}.enorm.weight"), hidden)?,
            hidden_norm: loader.vector(&format!("{prefix}.hnorm.weight"), hidden)?,
            projection: loader.linear(
                &[(&format!("{prefix}.eh_proj"), hidden)],
                2 * hidden,
                None,
            )?,
            layer: Layer::load(loader, common, config, index)?,
            head_norm: loader.vector(&format!("{prefix}.shared_head.norm.weight"), hidden)?,
            head,
            embedded: backend.tensor(max_rows, hidden),
            gathered: backend.tensor(max_rows, hidden),
            joined: backend.tensor(max_rows, 2 * hidden),
            hidden: backend.tensor(max_rows, hidden),
        })
    }
}

impl<B: Backend> Space<B> {
    fn new(backend: &B, common: &CommonConfig, config: &DeepSeekConfig, rows: usize) -> Space<B> {
        let hidden = common.hidden_size;
        let (heads, latent) = (config.num_heads, config.kv_lora_rank);
        let row = latent + config.qk_rope_head_dim;
        Space {
            residual: backend.tensor_f32(rows, hidden),
            normed: backend.tensor(rows, hidden),
            delta: backend.tensor(rows, hidden),
            low_rank: backend.tensor(rows, config.q_lora_rank.unwrap_or(0) + row),
            query: backend.tensor(rows, heads * config.qk_head_dim()),
            latent_query: backend.tensor(rows, heads * row),
            latent_output: backend.tensor(rows, heads * latent),
            output: backend.tensor(rows, heads * config.v_head_dim),
            dense: SwiGluSpace::new(backend, rows, config.intermediate_size),
            moe: None,
        }
    }
}
