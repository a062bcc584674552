//! A deterministic simulation of whole deployments: the real admission queue, pairing, prefix index,
//! scheduler, page pool and autoscaler, against workers that take as long as a model says.
//!
//! ```text
//! Scenario ─▶ World: one queue of events in virtual time ─▶ Tally ─▶ Report
//!               │ admission::queue, pairing, Fleet, Patience      (router)
//!               │ Scheduler, Sequence, PagePool                   (engine)
//!               │ decide                                          (autoscaler), or another policy
//!               └ step times, transfers, starts                   (profile): modelled
//! ```
//!
//! The same scenario and seed give the same report, byte for byte. Nothing here is a copy of the code
//! under test: what decides in a router, an engine or the operator decides here.

mod clock;
mod events;
mod experts;
mod faults;
mod many;
pub mod policy;
pub mod profile;
mod random;
pub mod report;
pub mod scenario;
mod tally;
pub mod trace;
mod worker;
mod world;

pub use experts::Group;
pub use faults::{Fault, What};
pub use many::run_all;
pub use policy::PolicyName;
pub use profile::Profile;
pub use report::Report;
pub use scenario::{Scenario, ScenarioError};

/// Runs a scenario to its end.
///
/// # Errors
/// A value of the scenario is none.
pub fn run(scenario: &Scenario) -> Result<Report, ScenarioError> {
    scenario.check()?;
    let slowdown = match scenario.profile.group {
        Some(group) => group.factor(scenario.seed)?,
        None => 1.0,
    };
    Ok(world::World::new(scenario, slowdown).run())
}
