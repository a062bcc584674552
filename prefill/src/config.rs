//! What a prefill worker is told.

use millrace_transfer::{NixlConfig, Transport};
use millrace_worker::WorkerConfig;

#[derive(Debug, Clone, Default)]
pub struct PrefillConfig {
    pub worker: WorkerConfig,
    /// Which way pages take to a decode worker.
    pub transport: Transport,
    /// Where `transport` allows NIXL.
    pub nixl: NixlConfig,
}
