//! Puts a router together, without any port: what `server` listens for, and what tests drive.

use std::sync::Arc;

use prometheus::Registry;

use crate::config::Limits;
use crate::dispatch::{Admission, Dispatcher};
use crate::fleet::roster::Roster;
use crate::fleet::{Fleet, Served};
use crate::frontend::{Frontend, ServedModel};
use crate::metrics::Metrics;

/// What edges and the membership service need.
pub struct Parts {
    pub frontend: Frontend,
    pub roster: Arc<Roster>,
    pub metrics: Arc<Metrics>,
}

/// Makes the parts of a router that serves `model`.
///
/// # Errors
/// `registry` has a router's metrics already.
pub fn assemble(
    limits: &Limits,
    model: Arc<ServedModel>,
    registry: &Registry,
) -> Result<Parts, prometheus::Error> {
    let metrics = Arc::new(Metrics::new(registry, &model.name)?);
    let served = Served {
        model_revision: model.revision.clone(),
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
    Ok(Parts {
        frontend,
        roster,
        metrics,
    })
}
