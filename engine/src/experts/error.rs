//! What can go wrong with an expert's weights.

use millrace_experts::{PlacementError, Shape};
use millrace_kernels::KernelError;
use millrace_model::checkpoint::CheckpointError;

#[derive(Debug, thiserror::Error)]
pub enum ExpertError {
    #[error(
        "this model has no routed experts to spread over ranks; serve it with --decode-ranks 1 and scale with more workers"
    )]
    NoExperts,
    #[error(transparent)]
    Shape(#[from] PlacementError),
    #[error(
        "a placement of {layers} layers of {experts} experts is not this model's: it has {model_layers} of {model_experts}; give all ranks one model and one --mtp"
    )]
    Placement {
        layers: usize,
        experts: usize,
        model_layers: usize,
        model_experts: usize,
    },
    #[error(
        "the epoch's placement is {found:?}, but this group's is {expected:?}; give all ranks the same --decode-ranks and --redundant-experts"
    )]
    OtherShape { found: Shape, expected: Shape },
    #[error("rank {rank} is not one of 0..{ranks}")]
    Rank { rank: usize, ranks: usize },
    #[error(
        "layer {layer}: the weights of expert {expert} are not in memory; stage them before their epoch is adopted"
    )]
    Missing { layer: usize, expert: usize },
    #[error("there is no expert {expert} in MoE layer {layer} of this model")]
    Unknown { layer: usize, expert: usize },
    #[error(
        "layer {layer}, expert {expert}: the weights do not have the digest they were sent with; fetch them from another rank or the checkpoint"
    )]
    WrongDigest { layer: usize, expert: usize },
    #[error("layer {layer}, expert {expert}: {source}")]
    Weights {
        layer: usize,
        expert: usize,
        source: KernelError,
    },
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}
