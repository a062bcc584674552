//! The feed-forward half of a layer: one SwiGLU, or routed experts and a shared one.

use millrace_kernels::{Backend, GateParams, KernelError};
use millrace_model::config::{CommonConfig, MoeConfig, TopkMethod};

use super::load::Loader;
use crate::EngineError;

/// `down(silu(gate x) * up x)`.
pub struct SwiGlu<B: Backend> {
    gate_up: B::Linear,
    down: B::Linear,
}

/// Buffers of a SwiGLU of up to `inter` columns.
pub struct SwiGluSpace<B: Backend> {
    gate_up: B::Tensor,
    act: B::Tensor,
}

impl<B: Backend> SwiGlu<B> {
    pub fn load(
        loader: &mut Loader<'_, B>,
        prefix: &str,
        hidden: usize,
        inter: usize,
    ) -> Result<SwiGlu<B>, EngineError> {
        let gate = format!("{prefix}.gate_proj");
        let up = format!("{prefix}.up_proj");
        Ok(SwiGlu {
            gate_up: loader.linear(&[(&gate, inter), (&up, inter)], hidden, None)?,
            down: loader.linear(&[(&format!("{prefix}.down_proj"), hidden)], inter, None)?,
        })
    }

    pub fn run(&self, backend: &B, x: &B::Tensor, space: &mut SwiGluSpace<B>, out: &mut B::Tensor) {
        backend.apply(&self.gate_up, x, 0, &mut space.gate_up);
        backend.silu_mul(&space.gate_up, &mut space.act);
        backend.apply(&self.down, &space.act, 0, out);
    }
}

impl<B: Backend> SwiGluSpace<B> {
    pub fn new(backend: &B, rows: usize, inter: usize) -> SwiGluSpace<B> {
        SwiGluSpace {
            gate_up: backend.tensor(rows, 2 * inter),
            act: backend.tensor(rows, inter),
        }
    }
}

/// Routed experts and, if the model has any, shared ones (DeepSeekMoE).
pub struct Moe<B: Backend> {
    router: B::Linear,
    gate: GateParams<B::Vector>,
    experts: B::Experts,
    shared: Option<SwiGlu<B>>,
}

/// Buffers of a mixture of experts.
pub struct MoeSpace<B: Backend> {
    logits: B::Tensor,
    routing: B::Routing,
    shared: Option<(SwiGluSpace<B>, B::Tensor)>,
}

impl<B: Backend> Moe<B> {
    pub fn load(
        loader: &mut Loader<'_, B>,
        prefix: &str,
        common: &CommonConfig,
        config: &MoeConfig,
    ) -> Result<Moe<B>, EngineError> {
        let (hidden, inter) = (common.hidden_size, config.intermediate_size);
        let router_name = format!("{prefix}.gate");
        let router = loader.linear(&[(&router_name, config.num_experts)], hidden, None)?;
        let bias = match config.gate.topk_method {
            TopkMethod::NoauxTc => Some(loader.vector(
                &format!("{prefix}.gate.e_score_correction_bias"),
                config.num_experts,
            )?),
            _ => None,
        };
        let mut gate_up = Vec::with_capacity(config.num_experts);
        let mut down = Vec::with_capacity(config.num_experts);
        for expert in 0..config.num_experts {
            let prefix = format!("{prefix}.experts.{expert}");
            gate_up.push([
                loader.matrix(&format!("{prefix}.gate_proj"), inter, hidden)?,
                loader.matrix(&format!("{prefix}.up_proj"), inter, hidden)?,
            ]);
            down.push(loader.matrix(&format!("{prefix}.down_proj"), hidden, inter)?);
        }
        let experts = loader
            .backend
            .experts(&gate_up, &down)
            .map_err(|source: KernelError| EngineError::Weights {
                tensor: format!("{prefix}.experts"),
                source,
            })?;
        let shared = (config.num_shared_experts > 0)
            .then(|| {
                let inter = inter * config.num_shared_experts;
                SwiGlu::load(loader, &format!("{prefix}.shared_experts"), hidden, inter)
            })
            .transpose()?;
        let gate = GateParams {
            config: config.gate,
            experts_per_token: config.experts_per_token,
            bias,
        };
        Ok(Moe {
            router,
            gate,
            experts,
            shared,
        })
    }

    pub fn run(&self, backend: &B, x: &B::Tensor, space: &mut MoeSpace<B>, out: &mut B::Tensor) {
        backend.apply(&self.router, x, 0, &mut space.logits);
        backend.route(&space.logits, &self.gate, &mut space.routing);
        backend.moe(x, &space.routing, &self.experts, out);
        if let (Some(shared), Some((space, delta))) = (&self.shared, &mut space.shared) {
            shared.run(backend, x, space, delta);
            backend.add(out, delta);
        }
    }
}

impl<B: Backend> MoeSpace<B> {
    pub fn new(backend: &B, rows: usize, hidden: usize, config: &MoeConfig) -> MoeSpace<B> {
        let shared = (config.num_shared_experts > 0).then(|| {
            let inter = config.intermediate_size * config.num_shared_experts;
            (
                SwiGluSpace::new(backend, rows, inter),
                backend.tensor(rows, hidden),
            )
        });
        MoeSpace {
            logits: backend.tensor(rows, config.num_experts),
            routing: backend.routing(rows, config.experts_per_token),
            shared,
        }
    }
}
