//! The feed-forward half of a layer: one SwiGLU, or routed experts and a shared one.

use millrace_experts::Shape;
use millrace_kernels::{Backend, GateParams};
use millrace_model::config::{CommonConfig, MoeConfig, TopkMethod};

use super::{
    group::{GroupSpace, Ranks},
    load::Loader,
};
use crate::{EngineError, StepDropped, experts::StepCounts};

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
    /// Its number among MoE layers.
    layer: usize,
    /// Of this rank's slots.
    pub experts: B::Experts,
    shared: Option<SwiGlu<B>>,
}

/// Buffers of a mixture of experts.
pub struct MoeSpace<B: Backend> {
    logits: B::Tensor,
    routing: B::Routing,
    tally: B::Tally,
    /// On the host, for a rank of a group: expert and weight of every (row, choice).
    choices: Vec<(u32, f32)>,
    shared: Option<(SwiGluSpace<B>, B::Tensor)>,
    /// `None` for a rank on its own.
    group: Option<GroupSpace<B>>,
    counts: StepCounts,
}

impl<B: Backend> Moe<B> {
    pub fn load(
        loader: &mut Loader<'_, B>,
        prefix: &str,
        common: &CommonConfig,
        config: &MoeConfig,
        layer: usize,
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
        let experts = loader.experts(layer)?;
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
            layer,
            experts,
            shared,
        })
    }

    pub fn run(
        &self,
        backend: &B,
        x: &B::Tensor,
        ranks: &mut Ranks<'_, B>,
        space: &mut MoeSpace<B>,
        out: &mut B::Tensor,
    ) -> Result<(), StepDropped> {
        let (layer, per_token) = (self.layer, self.gate.experts_per_token);
        backend.apply(&self.router, x, 0, &mut space.logits);
        backend.route(&space.logits, &self.gate, &mut space.routing);
        backend.count(&space.routing, layer, &mut space.tally);
        match (ranks, &mut space.group) {
            (
                Ranks::Group {
                    choice,
                    first_row,
                    exchange,
                },
                Some(group),
            ) => {
                backend.read_routing(&space.routing, &mut space.choices);
                let choice = choice.layer(layer);
                let exchange = &mut **exchange;
                group.dispatch(
                    backend,
                    layer,
                    x,
                    &space.choices,
                    per_token,
                    choice,
                    *first_row,
                    exchange,
                )?;
                space.counts.sent(layer, group.sent_products());
                // Meanwhile the rows are on their way.
                self.run_shared(backend, x, &mut space.shared);
                let products = group.serve(backend, layer, &self.experts, exchange)?;
                space.counts.computed(layer, products);
                group.combine(backend, layer, &space.routing, exchange, out)?;
            }
            (Ranks::Devices { exchange, .. }, _) => {
                backend.exchange_dispatch(layer, x, &space.routing, &self.experts, exchange);
                self.run_shared(backend, x, &mut space.shared);
                backend.exchange_serve(&self.experts, exchange);
                let more = space.shared.as_ref().map(|(_, delta)| delta);
                backend.exchange_combine(&space.routing, exchange, more, out);
                return Ok(());
            }
            _ => {
                backend.moe(x, &space.routing, &self.experts, out);
                let products = backend.rows(x) * per_token;
                space.counts.computed(layer, products);
                space.counts.sent(layer, [products].into_iter());
                self.run_shared(backend, x, &mut space.shared);
            }
        }
        if let Some((_, delta)) = &space.shared {
            backend.add(out, delta);
        }
        Ok(())
    }

    fn run_shared(
        &self,
        backend: &B,
        x: &B::Tensor,
        space: &mut Option<(SwiGluSpace<B>, B::Tensor)>,
    ) {
        if let (Some(shared), Some((space, delta))) = (&self.shared, space) {
            shared.run(backend, x, space, delta);
        }
    }
}

impl<B: Backend> MoeSpace<B> {
    /// For batches of up to `rows` and `layers` MoE layers; `group`: the shape of the rank's group.
    pub fn new(
        backend: &B,
        rows: usize,
        hidden: usize,
        config: &MoeConfig,
        layers: usize,
        group: Option<Shape>,
    ) -> MoeSpace<B> {
        let shared = (config.num_shared_experts > 0).then(|| {
            let inter = config.intermediate_size * config.num_shared_experts;
            (
                SwiGluSpace::new(backend, rows, inter),
                backend.tensor(rows, hidden),
            )
        });
        let per_token = config.experts_per_token;
        MoeSpace {
            logits: backend.tensor_f32(rows, config.num_experts),
            routing: backend.routing(rows, per_token),
            tally: backend.tally(layers, config.num_experts),
            choices: Vec::with_capacity(rows * per_token),
            shared,
            group: group.map(|shape| GroupSpace::new(backend, shape, rows, hidden, per_token)),
            counts: StepCounts::new(
                layers,
                config.num_experts,
                group.map_or(1, |shape| shape.ranks),
            ),
        }
    }

    /// Ends a pass for what it counts.
    pub fn close_counts(&mut self, backend: &B, ranks: &mut Ranks<'_, B>) {
        backend.close_tally(&mut self.tally);
        if let Ranks::Devices { exchange, .. } = ranks {
            backend.exchange_close(exchange);
        }
    }

    /// What closed passes among `ranks` have counted since it was last kept or forgotten.
    pub fn counts(&mut self, backend: &B, ranks: &mut Ranks<'_, B>) -> &mut StepCounts {
        backend.take_tally(&mut self.tally, self.counts.chosen());
        if let Ranks::Devices { exchange, .. } = ranks {
            let (sent, computed) = self.counts.products();
            backend.exchange_counts(exchange, sent, computed);
        }
        &mut self.counts
    }
}
