//! Puts a router together, without any port: what `server` listens for, and what tests drive.

use std::sync::Arc;

use millrace_telemetry::Registry;

use crate::config::{ExpertsConfig, Limits};
use crate::dispatch::{Admission, Dispatcher};
use crate::experts::store::{Store, StoreError};
use crate::experts::{self, Groups};
use crate::fleet::roster::Roster;
use crate::fleet::{Fleet, Served};
use crate::frontend::{Frontend, ServedModel};
use crate::metrics::Metrics;
use crate::overview::Overview;

/// What edges and the membership service need.
pub struct Parts {
    pub frontend: Frontend,
    pub roster: Arc<Roster>,
    pub groups: Arc<Groups>,
    pub metrics: Arc<Metrics>,
    pub overview: Arc<Overview>,
}

#[derive(Debug, thiserror::Error)]
pub enum AssembleError {
    /// `registry` has a router's metrics already.
    #[error("metrics cannot be registered: {0}")]
    Metrics(#[from] prometheus::Error),
    #[error("epochs of groups cannot be kept: {0}")]
    Store(#[from] StoreError),
}

/// Registers all that a router registers in its life, with nothing behind it. Must be called within a
/// runtime.
///
/// # Errors
/// [`AssembleError`]
pub fn describe(registry: &Registry) -> Result<(), AssembleError> {
    watched(&ExpertsConfig::default(), registry, "").map(drop)
}

/// What registers metrics.
fn watched(
    experts: &ExpertsConfig,
    registry: &Registry,
    model_name: &str,
) -> Result<(Arc<Groups>, Arc<Metrics>), AssembleError> {
    let store = Store::open(experts)?;
    let groups = experts::assemble(experts, store, registry, model_name)?;
    Ok((groups, Arc::new(Metrics::new(registry, model_name)?)))
}

/// Makes the parts of a router that serves `model`. Must be called within a runtime.
///
/// # Errors
/// [`AssembleError`]
pub fn assemble(
    limits: &Limits,
    experts: &ExpertsConfig,
    model: Arc<ServedModel>,
    registry: &Registry,
) -> Result<Parts, AssembleError> {
    let (groups, metrics) = watched(experts, registry, &model.name)?;
    let served = Served {
        model_revision: model.revision.clone(),
        text_revision: model.text_revision.clone(),
        vocab_size: model.vocab_size,
        max_model_len: model.max_model_len,
    };
    let fleet = Fleet::new(served, limits.max_indexed_blocks);
    let roster = Roster::new(fleet, Arc::clone(&metrics));
    let dispatcher = Dispatcher::new(Arc::clone(&roster), limits.retry, Arc::clone(&metrics));
    let admission = Admission::new(limits.admission, Arc::clone(&metrics));
    let frontend = Frontend::new(
        model,
        admission,
        dispatcher,
        Arc::clone(&metrics),
        limits.max_choices,
        limits.request_timeout,
    );
    let overview = Arc::new(Overview::new(
        frontend.clone(),
        Arc::clone(&roster),
        Arc::clone(&groups),
        Arc::clone(&metrics),
    ));
    Ok(Parts {
        frontend,
        roster,
        groups,
        metrics,
        overview,
    })
}
