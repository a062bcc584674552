//! Both sides, set up as most tests want them.

use std::net::SocketAddr;
use std::time::Duration;

use millrace_transfer::{
    Initiator, InitiatorConfig, Layout, NixlConfig, Stats, Target, TargetConfig, Transport, Wire,
    WireStats,
};

use super::Pool;

pub const PAGE: usize = 100_003; // No multiple of anything.
pub const LONG: Duration = Duration::from_secs(60);
/// Every transport that this build has.
pub const ALL: &[Transport] = match cfg!(feature = "nixl") {
    true => &[Transport::Shm, Transport::Tcp, Transport::Nixl],
    false => &[Transport::Shm, Transport::Tcp],
};

/// A target's, with every transport of this build, and rings for NIXL smaller than a page.
pub fn target_config() -> TargetConfig {
    let nixl = NixlConfig {
        ring_bytes: 64 << 10,
        ..NixlConfig::default()
    };
    TargetConfig {
        nixl: cfg!(feature = "nixl").then_some(nixl),
        ..TargetConfig::default()
    }
}

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
        ..target_config()
    };
    Target::bind(loopback(), pool.region.clone(), layout(), config).unwrap()
}

/// One of the numbers, over all transports.
pub fn total(stats: &Stats, number: fn(&WireStats) -> u64) -> u64 {
    Wire::ALL.map(|wire| number(stats.wire(wire))).iter().sum()
}

pub fn initiator(transport: Transport) -> Initiator {
    Initiator::new(
        layout(),
        InitiatorConfig {
            transport,
            ..InitiatorConfig::default()
        },
    )
    .unwrap()
}
