//! Which experts a rank has in memory, and how often they were asked for.
//!
//! An engine on its own has them all and needs none of this but the counts. A rank of a group has
//! those of its slots, and takes in others while it serves: a staging thread fills the
//! [`ExpertShelf`], and [`Engine::adopt`](crate::Engine::adopt) takes the slots of the next epoch from
//! it between two steps.

mod counts;
mod error;
mod shelf;
mod source;

use std::sync::Arc;

use millrace_experts::{Placement, Shape};
use millrace_model::config::{DeepSeekConfig, Family, ModelConfig, MoeConfig};

pub use counts::ExpertCounts;
pub(crate) use counts::StepCounts;
pub use error::ExpertError;
pub use shelf::{ExpertShelf, Exported};
pub(crate) use source::ExpertSource;

/// A rank's place in a group.
#[derive(Debug, Clone)]
pub struct GroupRank {
    /// What it loads at start: [`Placement::initial`] of [`shape`].
    pub placement: Arc<Placement>,
    pub rank: usize,
    pub path: ExpertPath,
}

/// How experts' rows go from rank to rank; the same on all ranks of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ExpertPath {
    /// From device to device where all members reach each other, each on a device of its own; otherwise by
    /// way of the host.
    #[default]
    Auto,
    /// By way of the host.
    Host,
    /// From device to device also where ranks share one, which is slow: they wait for each other there.
    Devices,
}

impl ExpertPath {
    /// As flags have it.
    pub fn as_str(self) -> &'static str {
        match self {
            ExpertPath::Auto => "auto",
            ExpertPath::Host => "host",
            ExpertPath::Devices => "devices",
        }
    }
}

/// MoE layers of a model as groups count them: their indexes in the checkpoint, the MTP layer's last
/// if the engine drafts.
pub(crate) fn moe_layers(model: &ModelConfig, mtp: bool) -> Option<(&MoeConfig, Vec<usize>)> {
    let Family::DeepSeek(DeepSeekConfig {
        moe: Some(moe),
        num_mtp_layers,
        ..
    }) = &model.family
    else {
        return None;
    };
    let layers = model.common.num_layers + usize::from(mtp && *num_mtp_layers > 0);
    let layers: Vec<usize> = (0..layers).filter(|&i| moe.is_moe_layer(i)).collect();
    (!layers.is_empty()).then_some((moe, layers))
}

/// The shape of a group of `ranks` that serves this model with room for at least `redundant` replicas
/// a layer. `mtp`: as in [`EngineConfig`](crate::EngineConfig).
///
/// # Errors
/// The model has no experts to spread, or there are no ranks.
pub fn shape(
    model: &ModelConfig,
    mtp: bool,
    ranks: usize,
    redundant: usize,
) -> Result<Shape, ExpertError> {
    let (moe, layers) = moe_layers(model, mtp).ok_or(ExpertError::NoExperts)?;
    Ok(Shape::new(layers.len(), moe.num_experts, ranks, redundant)?)
}

impl GroupRank {
    /// Holds it against the model that is to be loaded.
    pub(crate) fn check(&self, model: &ModelConfig, mtp: bool) -> Result<(), ExpertError> {
        let (moe, layers) = moe_layers(model, mtp).ok_or(ExpertError::NoExperts)?;
        let shape = self.placement.shape();
        if (shape.layers, shape.experts) != (layers.len(), moe.num_experts) {
            return Err(ExpertError::Placement {
                layers: shape.layers,
                experts: shape.experts,
                model_layers: layers.len(),
                model_experts: moe.num_experts,
            });
        }
        if self.rank >= shape.ranks {
            return Err(ExpertError::Rank {
                rank: self.rank,
                ranks: shape.ranks,
            });
        }
        Ok(())
    }
}
