//! What every look at an object has at hand.

use kube::Client;

use super::apply::Applier;
use super::autoscaler::Recollections;
use super::deployment::Memory;
use super::pool_lost::Detached;
use crate::build::Defaults;
use crate::cache::Cache;
use crate::config::OperatorConfig;
use crate::events::Events;
use crate::fleet::Fleet;
use crate::metrics::Metrics;

pub struct Context {
    pub client: Client,
    pub config: OperatorConfig,
    /// What specs leave out.
    pub defaults: Defaults,
    /// What is there. Reconciling reads nothing else.
    pub cache: Cache,
    /// What routers say of workers.
    pub fleet: Fleet,
    /// Every write goes through it, but for events.
    pub applier: Applier,
    /// What was last said of ModelDeployments.
    pub memory: Memory,
    /// What PoolAutoscalers saw and said.
    pub recollections: Recollections,
    /// Pods that may be dead.
    pub detached: Detached,
    pub events: Events,
    pub metrics: Metrics,
}
