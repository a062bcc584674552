//! Qwen2, Llama 3, Qwen3: grouped-query attention and one SwiGLU a layer.

use millrace_kernels::{Backend, PageMemory};
use millrace_model::config::{CommonConfig, DenseConfig};

use super::{
    load::{Loader, rope_table},
    moe::{SwiGlu, SwiGluSpace},
};
use crate::EngineError;

pub struct Dense<B: Backend> {
    layers: Vec<Layer<B>>,
    norm: B::Vector,
    space: Space<B>,
    config: DenseConfig,
    eps: f32,
    scale: f32,
    rope: B::Rope,
}

struct Layer<B: Backend> {
    input_norm: B::Vector,
    /// `[q; k; v]`.
    qkv: B::Linear,
    /// Per-head norms of q and k (Qwen3).
    qk_norm: Option<(B::Vector, B::Vector)>,
    output: B::Linear,
    post_norm: B::Vector,
    mlp: SwiGlu<B>,
}

struct Space<B: Backend> {
    residual: B::Tensor,
    normed: B::Tensor,
    delta: B::Tensor,
    qkv: B::Tensor,
    attended: B::Tensor,
    mlp: SwiGluSpace<B>,
}

impl<B: Backend> Dense<B> {
    pub fn load(
        loader: &mut Loader<'_, B>,
        common: &CommonConfig,
        config: &DenseConfig,
        max_rows: usize,
        max_model_len: usize,
    ) -> Result<Dense<B>, EngineError> {
        let hidden = common.hidden_size;
        let backend = loader.backend;
        let (q, kv) = widths(config);
        let space = Space {
            residual: backend.tensor_f32(max_rows, hidden),
            normed: backend.tensor(max_rows, hidden),
            delta: backend.tensor(max_rows, hidden),
            qkv: backend.tensor(max_rows, q + 2 * kv),
            attended: backend.tensor(max_rows, q),
            mlp: SwiGluSpace::new(backend, max_rows, config.intermediate_size),
        };
        let rope = backend.rope_table(rope_table(&common.rope, max_model_len));
        loader.check_room(false)?;
        let layers = (0..common.num_layers)
            .map(|index| Layer::load(loader, hidden, config, index))
            .collect::<Result<Vec<_>, _>>()?;
        let norm = loader.vector("model.norm.weight", hidden)?;
        Ok(Dense {
            layers,
            norm,
            space,
            config: config.clone(),
            eps: common.rms_norm_eps,
            scale: config.softmax_scale(),
            rope,
        })
    }

    /// Hidden states of `batch` after the final norm.
    pub fn run(
        &mut self,
        backend: &B,
        embed: &B::Embedding,
        batch: &B::Placed,
        pages: &PageMemory,
        hidden: &mut B::Tensor,
    ) {
        let Dense {
            layers,
            norm,
            space,
            config,
            eps,
            scale,
            rope,
        } = self;
        let DenseConfig {
            num_heads: heads,
            num_kv_heads: kv_heads,
            head_dim,
            ..
        } = *config;
        let (q, _) = widths(config);
        backend.embed(embed, batch, &mut space.residual);
        for (index, layer) in layers.iter().enumerate() {
            if index == 0 {
                backend.rms_norm(&space.residual, &layer.input_norm, *eps, &mut space.normed);
            } else {
                backend.add_rms_norm(
                    &mut space.residual,
                    &space.delta,
                    &layer.input_norm,
                    *eps,
                    &mut space.normed,
                );
            }
            backend.apply(&layer.qkv, &space.normed, 0, &mut space.qkv);
            if let Some((q_norm, k_norm)) = &layer.qk_norm {
                backend.head_rms_norm(&mut space.qkv, 0, heads, head_dim, q_norm, *eps);
                backend.head_rms_norm(&mut space.qkv, q, kv_heads, head_dim, k_norm, *eps);
            }
            // Query and key heads stand side by side, so one call rotates both.
            backend.rope(&mut space.qkv, 0, heads + kv_heads, head_dim, rope, batch);
            backend.write_kv(&space.qkv, q, batch, pages, index);
            backend.gqa_attention(
                &space.qkv,
                heads,
                kv_heads,
                head_dim,
                *scale,
                batch,
                pages,
                index,
                &mut space.attended,
            );
            backend.apply(&layer.output, &space.attended, 0, &mut space.delta);
            backend.add_rms_norm(
                &mut space.residual,
                &space.delta,
                &layer.post_norm,
                *eps,
                &mut space.normed,
            );
            layer
                .mlp
                .run(backend, &space.normed, &mut space.mlp, &mut space.delta);
        }
        backend.add_rms_norm(&mut space.residual, &space.delta, norm, *eps, hidden);
    }
}

impl<B: Backend> Layer<B> {
    fn load(
        loader: &mut Loader<'_, B>,
        hidden: usize,
        config: &DenseConfig,
        index: usize,
    ) -> Result<Layer<B>, EngineError> {
        let (q, kv) = widths(config);
        let prefix = format!("model.layers.{index}");
        let attention = |name: &str| format!("{prefix}.self_attn.{name}");
        let names = ["q_proj", "k_proj", "v_proj"].map(attention);
        let biases = names.clone().map(|name| format!("{name}.bias"));
        let qkv_bias = [(biases[0].as_str(), q), (&biases[1], kv), (&biases[2], kv)];
        let qkv = loader.linear(
            &[(&names[0], q), (&names[1], kv), (&names[2], kv)],
            hidden,
            config.qkv_bias.then_some(&qkv_bias),
        )?;
        let qk_norm = config
            .qk_norm
            .then(|| -> Result<_, EngineError> {
                Ok((
                    loader.vector(&attention("q_norm.weight"), config.head_dim)?,
                    loader.vector(&attention("k_norm.weight"), config.head_dim)?,
                ))
            })
            .transpose()?;
        let o_bias = attention("o_proj.bias");
        let o_bias = [(o_bias.as_str(), hidden)];
        Ok(Layer {
            input_norm: loader.vector(&format!("{prefix}.input_layernorm.weight"), hidden)?,
            qkv,
            qk_norm,
            output: loader.linear(
                &[(&attention("o_proj"), hidden)],
                q,
                config.o_bias.then_some(&o_bias),
            )?,
            post_norm: loader
                .vector(&format!("{prefix}.post_attention_layernorm.weight"), hidden)?,
            mlp: SwiGlu::load(
                loader,
                &format!("{prefix}.mlp"),
                hidden,
                config.intermediate_size,
            )?,
        })
    }
}

/// Columns of all query heads, and of all key (or value) heads.
fn widths(config: &DenseConfig) -> (usize, usize) {
    (
        config.num_heads * config.head_dim,
        config.num_kv_heads * config.head_dim,
    )
}
