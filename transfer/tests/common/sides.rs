//! Both sides, set up as most tests want them.

use std::net::SocketAddr;
use std::time::Duration;

use millrace_transfer::{Initiator, InitiatorConfig, Layout, Target, TargetConfig, Transport};

use super::Pool;

pub const PAGE: usize = 100_003; // No multiple of anything.
pub const LONG: Duration = Duration::from_secs(60);
pub const BOTH: [Transport; 2] = [Transport::Shm, Transport::Tcp];

pub fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

pub fn layout() -> Layout {
    Layout::new(PAGE).with("dtype", "bf16").with("layers", 61)
}

pub fn target(pool: &Pool) -> Target {
    // A ring smaller than a page, so that pages go in parts and the ring wraps.
    let config = TargetConfig {
        ring_bytes: 64 << 10,
        checksums: true,
        ..TargetConfig::default()
    };
    Target::bind(loopback(), pool.region.clone(), layout(), config).unwrap()
}

pub fn initiator(transport: Transport) -> Initiator {
    Initiator::new(
        layout(),
        InitiatorConfig {
            transport,
            ..InitiatorConfig::default()
        },
    )
}
