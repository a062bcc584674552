//! Placements that the balancer would like.

use std::sync::Arc;

use crate::{Epoch, Loads, Placement, Shape};

/// Why a proposal is not taken now. None of them is remembered: propose again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the group has no epoch, or cannot go on under it")]
    NotServing,
    #[error("it was made for epoch {base}, but the epoch is {current}")]
    OldBase { base: u64, current: u64 },
    #[error("it is for {got:?}, but the group has {expected:?}")]
    Shape { expected: Shape, got: Shape },
    #[error("its loads are not those of the group's layers and experts")]
    Loads,
    #[error("rank {rank} is missing: it comes first")]
    Degraded { rank: usize },
    #[error("another plan is being staged")]
    Busy,
    #[error("not every rank has adopted epoch {epoch} yet")]
    Unsettled { epoch: u64 },
}

#[derive(Debug)]
pub(super) struct Proposal {
    pub plan: u64,
    pub base: u64,
    pub placement: Arc<Placement>,
    pub expected: Arc<Loads>,
}

/// Whether a placement could follow on `current`, whoever is ready for it.
pub(super) fn fits(
    current: &Epoch,
    base: u64,
    placement: &Placement,
    expected: &Loads,
) -> Result<(), Refused> {
    let shape = current.placement.shape();
    if base != current.number {
        return Err(Refused::OldBase {
            base,
            current: current.number,
        });
    }
    if placement.shape() != shape {
        return Err(Refused::Shape {
            expected: shape,
            got: placement.shape(),
        });
    }
    if (expected.experts, expected.counts.len()) != (shape.experts, shape.layers * shape.experts) {
        return Err(Refused::Loads);
    }
    match current.live().iter().position(|live| !live) {
        Some(rank) => Err(Refused::Degraded { rank }),
        None => Ok(()),
    }
}
