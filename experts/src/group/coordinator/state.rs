//! How a group is doing, for people.

use super::repair::Shortage;
use crate::RankId;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum State {
    /// No epoch yet: waits until every rank is here and linked with every other.
    #[default]
    Forming,
    /// Every rank is a member.
    Serving,
    /// Some ranks are missing, and the others serve.
    Degraded,
    /// No step can be taken.
    Paused(Pause),
}

/// What a paused group waits for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Pause {
    #[error("links between members are broken; they may heal")]
    Links,
    #[error("an epoch of those who are left is being committed")]
    Reset,
    #[error("the store's epoch is older than what ranks know; waits for rank {} to attach", .0.rank)]
    Forgotten(RankId),
    #[error("experts without a replica are being loaded from the checkpoint")]
    Repair,
    #[error(transparent)]
    Shortage(#[from] Shortage),
}
