//! What all requests of this worker share.

use std::time::Duration;

use tracing::Span;

use millrace_transfer::GrantError;
use millrace_worker::{Compatibility, engine::EngineHandle};

use crate::{lease::PagesAtPeer, metrics::DecodeMetrics, peers::Peers};

/// What the engine's thread makes of pages that it reserves for a peer.
pub type Reserved = Result<PagesAtPeer, GrantError>;

/// What all calls share.
pub struct Context {
    pub engine: EngineHandle<Reserved>,
    pub peers: Peers,
    pub prefill_timeout: Duration,
    pub compatibility: Compatibility,
    pub vocab_size: usize,
    pub metrics: DecodeMetrics,
    /// The worker's.
    pub span: Span,
}
