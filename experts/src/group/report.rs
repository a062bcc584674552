//! What ranks and routers tell each other about a group.

use std::sync::Arc;

use crate::{Epoch, Member, Plan, RankId, Shape};

/// A rank's state, complete every time it is told, so that a lost or repeated report does no harm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub me: Member,
    /// The epoch it computes under; `None` before its first and after it was left out of one.
    pub adopted: Option<Arc<Epoch>>,
    /// The number of the latest committed epoch it was ever told of, adopted or not; 0: none. A store
    /// that lost its memory must not give out these numbers again.
    pub known: u64,
    /// Other lives it has a working link with now.
    pub linked: Vec<RankId>,
    /// Members of the adopted epoch whose link broke, so that its steps cannot be completed any more.
    /// Empty again once another epoch is adopted.
    pub lost: Vec<RankId>,
    /// How staging went for the plan last seen.
    pub staged: Option<Staged>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Staged {
    /// [`Plan::id`].
    pub plan: u64,
    /// Verified weights for every slot of the plan are in memory, or why not.
    pub outcome: Result<(), String>,
}

/// What a router tells a rank, complete every time.
///
/// A rank that is attached to several routers takes every epoch it hears of, and heeds the plan of the
/// router with the newest epoch; of equals, the last to speak. That epoch may be older than one the rank
/// knows, if all stores forgot: the plan counts all the same.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Order {
    /// Every attached rank of the group: keep a link with each.
    pub peers: Vec<Member>,
    /// The latest committed epoch. A member that does not have its weights in memory loads them, again
    /// and again until it has: nobody else can give up a committed epoch.
    pub epoch: Option<Arc<Epoch>>,
    /// To stage now. `None`: forget what was staged for an earlier plan, unless `epoch` needs it.
    pub plan: Option<Arc<Plan>>,
}

/// What is fixed for a group's life; every rank must say the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupShape {
    pub shape: Shape,
    /// Bytes of one expert's weights.
    pub expert_bytes: u64,
}

/// A rank's word before each step, to every other member of its epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    pub epoch: u64,
    /// From 0 in each epoch.
    pub step: u64,
    /// The latest committed epoch it could adopt now: known, with its weights staged. At least `epoch`.
    pub ready_for: u64,
    /// Rows it will compute, at most.
    pub rows: usize,
}
