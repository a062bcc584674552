//! What routers counted, router by router: sums since each of them started.

use std::sync::Arc;

use millrace_proto::worker::v1 as wire;

/// All that the routers of a ModelDeployment say now.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Traffic {
    pub counted: Vec<Counted>,
    /// Routers that clients may reach, and that are not heard: a gap.
    pub unheard: Vec<Arc<str>>,
}

/// What one router said last.
#[derive(Debug, Clone, PartialEq)]
pub struct Counted {
    /// The name of its pod.
    pub router: Arc<str>,
    /// Sequences that wait for a turn there.
    pub waiting: u64,
    pub traffic: wire::Traffic,
}
