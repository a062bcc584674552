//! How many groups of which revision there should be next. Pure: what is there goes in, what should
//! be there comes out, and calling it again and again with what became of it ends at what is wanted.
//! Nothing is remembered between calls, so an operator that is killed anywhere goes on where it was.
//!
//! Two limits, in [pairs](pairs) of all revisions together, hold at every step:
//!
//! - no decision takes available pairs below N − maxUnavailable; only failures do;
//! - no decision adds pairs of the wanted revision beside older ones so that more than N + maxSurge
//!   exist, those that still drain included.
//!
//! Nothing is decided on numbers that are older than the last change of what they count. Within these
//! limits the older revisions shrink, what serves least of it first, and the wanted one
//! grows. It never shrinks below what is wanted, so that going back to a revision touches none of its
//! groups.

mod counted;
mod next;
pub mod pairs;
mod strategy;
mod wait;

use std::collections::BTreeMap;

pub use next::plan;
pub use pairs::{Groups, Ratio};
pub use strategy::{Amount, Strategy};
pub use wait::Wait;

use crate::api::Role;

/// What the spec asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub revision: String,
    /// Groups. `None`: aggregated, there is no prefill pool.
    pub prefill: Option<u32>,
    pub decode: u32,
}

impl Wanted {
    pub fn of(&self, role: Role) -> Option<u32> {
        match role {
            Role::Prefill => self.prefill,
            Role::Decode => Some(self.decode),
        }
    }

    pub fn ratio(&self) -> Ratio {
        Ratio(Groups::map(|role| self.of(role).unwrap_or(0)))
    }
}

/// A WorkerPool as it was last seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pool {
    /// What it was told to have.
    pub replicas: u32,
    /// Groups that exist, those included that still drain.
    pub groups: u32,
    /// Groups that routers send requests to.
    pub ready: u32,
    /// It was deleted, and is not gone yet.
    pub deleting: bool,
    /// `groups` and `ready` are of before `replicas` was last changed. Of ready groups some may have
    /// been told to go since.
    pub outdated: bool,
}

/// The pools of one revision.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Revision {
    pub prefill: Option<Pool>,
    pub decode: Option<Pool>,
    /// Whether it ever was available. One that was may be so again in a moment; one that never was is
    /// not waited for.
    pub served: bool,
}

impl Revision {
    pub fn of(&self, role: Role) -> Option<&Pool> {
        match role {
            Role::Prefill => self.prefill.as_ref(),
            Role::Decode => self.decode.as_ref(),
        }
    }
}

/// By revision.
pub type Revisions = BTreeMap<String, Revision>;

/// One change to one WorkerPool. To be made in the order given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Without groups: those come once it is there.
    Create { revision: String, role: Role },
    Scale {
        revision: String,
        role: Role,
        from: u32,
        to: u32,
    },
    /// It has no groups any more.
    Delete { revision: String, role: Role },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub steps: Vec<Step>,
    /// What the next steps wait for. Empty without steps: everything is as wanted.
    pub waits: Vec<Wait>,
    /// N.
    pub pairs: u32,
    /// Of all revisions.
    pub available: u32,
    /// Of the wanted revision.
    pub updated: u32,
}

impl Plan {
    /// Exactly what is wanted is there and serves, and nothing else is.
    pub fn complete(&self) -> bool {
        self.steps.is_empty() && self.waits.is_empty()
    }
}
