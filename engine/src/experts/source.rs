//! Where experts lie in a checkpoint.

use millrace_kernels::{Backend, Pace};
use millrace_model::{checkpoint::Checkpoint, config::ModelConfig};

use super::{ExpertError, moe_layers};

/// Names and sizes of a model's experts.
#[derive(Debug, Clone)]
pub(crate) struct ExpertSource {
    /// Index in the checkpoint of every MoE layer.
    layers: Vec<usize>,
    pub experts: usize,
    pub hidden: usize,
    pub inter: usize,
}

impl ExpertSource {
    pub fn new(model: &ModelConfig, mtp: bool) -> Result<ExpertSource, ExpertError> {
        let (moe, layers) = moe_layers(model, mtp).ok_or(ExpertError::NoExperts)?;
        Ok(ExpertSource {
            layers,
            experts: moe.num_experts,
            hidden: model.common.hidden_size,
            inter: moe.intermediate_size,
        })
    }

    pub fn check(&self, layer: usize, expert: usize) -> Result<(), ExpertError> {
        if layer < self.layers.len() && expert < self.experts {
            Ok(())
        } else {
            Err(ExpertError::Unknown { layer, expert })
        }
    }

    /// Packs one expert. `read` hears how many bytes of the checkpoint that took.
    pub fn load<B: Backend>(
        &self,
        backend: &B,
        checkpoint: &Checkpoint,
        (layer, expert): (usize, usize),
        pace: Pace,
        read: &mut dyn FnMut(usize),
    ) -> Result<B::Expert, ExpertError> {
        self.check(layer, expert)?;
        let prefix = format!("model.layers.{}.mlp.experts.{expert}", self.layers[layer]);
        let mut matrix = |name: &str, rows, cols| {
            let matrix = checkpoint.matrix(&format!("{prefix}.{name}"), rows, cols)?;
            read(rows * cols * matrix.data.bits() / 8);
            Ok::<_, ExpertError>(matrix)
        };
        let gate = matrix("gate_proj", self.inter, self.hidden)?;
        let up = matrix("up_proj", self.inter, self.hidden)?;
        let down = matrix("down_proj", self.hidden, self.inter)?;
        backend
            .expert(gate, up, down, pace)
            .map_err(|source| ExpertError::Weights {
                layer,
                expert,
                source,
            })
    }
}
