//! How many prefill and decode workers a deployment should have, and why. Pure: no clocks, no sockets,
//! no Kubernetes. Time is an argument; the same calls give the same answers, here and in a simulation.
//!
//! ```text
//! Observation ─▶ window ─▶ seen: rates, quantiles, lengths ─┐
//!      │            └────▶ correction: model against measured ├▶ predict ─▶ choose ─▶ limit ─▶ Decision
//! Policy: objectives, bounds, performance model ─────────────┘      (p, d)    jointly    by when, by how many
//! ```
//!
//! | module | what it is |
//! |---|---|
//! | [`observation`] | what routers, workers and pools were seen doing |
//! | [`policy`] | what is wanted: objectives, bounds, behaviour, schedule |
//! | [`model`] | how long prefill and a decode step take |
//! | [`decision`] | what should be there, and the explanation for people and programs |
//!
//! [`decide`] is called every few seconds with the latest observation and one [`Memory`] for each
//! deployment. A lost memory changes no replicas: [`decide`] waits until it has seen enough again.

mod choose;
mod correction;
pub mod decision;
mod evidence;
mod explain;
mod feedback;
mod histogram;
mod load;
mod memory;
pub mod model;
pub mod observation;
pub mod policy;
mod predict;
mod queue;
mod schedule;
mod steady;
mod weigh;
mod window;

pub use decision::{Decision, Status};
pub use memory::Memory;
pub use model::PerformanceModel;
pub use observation::Observation;
pub use policy::{Policy, PolicyError};

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Prefill,
    Decode,
}

/// One of each role.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ByRole<T> {
    pub prefill: T,
    pub decode: T,
}

impl<T> ByRole<T> {
    pub fn of(&self, role: Role) -> &T {
        match role {
            Role::Prefill => &self.prefill,
            Role::Decode => &self.decode,
        }
    }

    pub fn of_mut(&mut self, role: Role) -> &mut T {
        match role {
            Role::Prefill => &mut self.prefill,
            Role::Decode => &mut self.decode,
        }
    }

    pub fn map<U>(&self, mut with: impl FnMut(Role, &T) -> U) -> ByRole<U> {
        ByRole {
            prefill: with(Role::Prefill, &self.prefill),
            decode: with(Role::Decode, &self.decode),
        }
    }
}

/// One look: takes in what was observed and says how many replicas there should be. To be called every
/// 1 to 15 s, with observations in order of time.
///
/// The decision is within the policy's bounds and budget whatever was observed.
///
/// # Errors
/// The policy contradicts itself; nothing was taken in.
pub fn decide(
    policy: &Policy,
    observation: &Observation,
    memory: &mut Memory,
) -> Result<Decision, PolicyError> {
    policy.validate()?;
    Ok(memory.decide(policy, observation))
}
