//! Groups of decode ranks that share a model's experts: what this router tells them to compute
//! under.
//!
//! ```text
//! rank's stream ─▶ Seat ─▶ Group ◀── driver ──▶ Store (this process's memory, or etcd)
//!    orders ◀──────────────┘  │         ├ what the Coordinator decides is written, compare-and-swap
//!                             │         └ balance: windows of counts ─▶ planner ─▶ proposal
//!                             └▶ view (GET /experts), metrics
//! ```
//!
//! What is decided is decided by [`millrace_experts`], which is pure; here are the sockets, the clock
//! and the store. Every router follows every group. The one that leads writes.

mod balance;
pub mod config;
mod driver;
mod group;
mod groups;
mod history;
mod metrics;
mod records;
mod show;
pub mod store;
mod tally;
pub mod view;
pub(crate) mod wire;

use std::sync::Arc;

use millrace_telemetry::Registry;

pub use groups::{Groups, Seat};

/// All groups of a router, with their metrics.
///
/// # Errors
/// `registry` has a router's metrics already.
pub fn assemble(
    config: &config::ExpertsConfig,
    store: store::Store,
    registry: &Registry,
    model_name: &str,
) -> Result<Arc<Groups>, prometheus::Error> {
    let counters = metrics::Counters::new(registry, model_name)?;
    let groups = Groups::new(store, config.clone(), counters);
    metrics::Gauges::register(registry, model_name, &groups)?;
    Ok(groups)
}
