//! What a decode worker is told.

use std::{net::SocketAddr, time::Duration};

use millrace_transfer::{NixlConfig, Transport};
use millrace_worker::WorkerConfig;

#[derive(Debug, Clone)]
pub struct DecodeConfig {
    pub worker: WorkerConfig,
    /// Where prefill workers connect to write pages. Port 0: any free one.
    pub transfer: SocketAddr,
    /// Which ways pages may take here.
    pub transport: Transport,
    /// Where `transport` allows NIXL.
    pub nixl: NixlConfig,
    /// How long connecting to a prefill worker may take.
    pub prefill_connect: Duration,
    /// How long a prefill worker may take to answer, its queue included. Its pages are taken back
    /// then and the router tries elsewhere.
    pub prefill_timeout: Duration,
}

impl Default for DecodeConfig {
    fn default() -> DecodeConfig {
        DecodeConfig {
            worker: WorkerConfig::default(),
            transfer: SocketAddr::from(([127, 0, 0, 1], 0)),
            transport: Transport::Auto,
            nixl: NixlConfig::default(),
            prefill_connect: Duration::from_secs(1),
            prefill_timeout: Duration::from_secs(60),
        }
    }
}
