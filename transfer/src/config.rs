//! Settings of both sides, with the defaults that suit workers of one cluster.

use std::net::SocketAddr;
use std::time::Duration;

use crate::nixl::NixlConfig;

/// Which way payload may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transport {
    /// Shared memory if the target is on this machine and its socket can be reached (two pods of
    /// one host usually cannot); otherwise NIXL if both sides have it; otherwise TCP.
    #[default]
    Auto,
    Nixl,
    Shm,
    Tcp,
}

impl Transport {
    /// Whether payload may take `wire`.
    pub(crate) fn allows(self, wire: Wire) -> bool {
        match self {
            Transport::Auto => true,
            Transport::Nixl => wire == Wire::Nixl,
            Transport::Shm => wire == Wire::Shm,
            Transport::Tcp => wire == Wire::Tcp,
        }
    }
}

/// Which way payload took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wire {
    /// Written into the target's memory by NIXL.
    Nixl,
    Shm,
    Tcp,
}

impl Wire {
    pub const ALL: [Wire; 3] = [Wire::Nixl, Wire::Shm, Wire::Tcp];

    /// Value of the metric label `transport`.
    pub fn as_str(self) -> &'static str {
        match self {
            Wire::Nixl => "nixl",
            Wire::Shm => "shm",
            Wire::Tcp => "tcp",
        }
    }
}

#[derive(Debug, Clone)]
pub struct TargetConfig {
    /// Addresses that grants name, best first; port 0 stands for the bound port. Empty: the bound
    /// address, which must then not be the unspecified one (0.0.0.0 or ::).
    pub advertise: Vec<SocketAddr>,
    /// Also listen for peers of this machine and offer them shared memory.
    pub shm: bool,
    /// Offer peers to write by NIXL.
    pub nixl: Option<NixlConfig>,
    /// Shared memory of one connection. It holds what is on its way, not whole pages, so it need
    /// not grow with them.
    pub ring_bytes: usize,
    /// Memory of the region's device for one connection from another device of this machine.
    pub device_ring_bytes: usize,
    /// How long a peer may be silent in the middle of a page or a handshake.
    pub stall: Duration,
    /// How long a connection may be silent between writes. Peers send a sign of life well before
    /// that while they have a grant open.
    pub idle: Duration,
    /// Connections beyond this are turned away.
    pub max_connections: usize,
    /// Ask peers for a checksum of every page, verified before the page counts as written. Pages then go by
    /// way of the host, also between devices.
    pub checksums: bool,
}

impl Default for TargetConfig {
    fn default() -> Self {
        TargetConfig {
            advertise: Vec::new(),
            shm: true,
            nixl: None,
            ring_bytes: 4 << 20,
            device_ring_bytes: 64 << 20,
            stall: Duration::from_secs(5),
            idle: Duration::from_secs(120),
            max_connections: 1024,
            checksums: cfg!(debug_assertions),
        }
    }
}

#[derive(Debug, Clone)]
pub struct InitiatorConfig {
    pub transport: Transport,
    /// Write by NIXL where a target offers it and `transport` allows it. With [`Transport::Nixl`]
    /// its absence stands for the defaults.
    pub nixl: Option<NixlConfig>,
    /// How long connecting and the handshake may take together, per address. By NIXL the handshake
    /// may take 10 s more.
    pub connect: Duration,
    /// How long a target may let writes lie without accepting a byte or acknowledging one.
    pub stall: Duration,
    /// A connection without an open grant is closed after half of this, and with one a sign of
    /// life is sent after a third; where a target is less patient, its time counts.
    pub idle: Duration,
    /// Pages queued or unacknowledged on one connection, before `write` waits for room.
    pub queue_pages: usize,
    /// Send checksums even to targets that do not ask for them.
    pub checksums: bool,
}

impl Default for InitiatorConfig {
    fn default() -> Self {
        InitiatorConfig {
            transport: Transport::Auto,
            nixl: None,
            connect: Duration::from_secs(2),
            stall: Duration::from_secs(5),
            idle: Duration::from_secs(120),
            queue_pages: 1024,
            checksums: cfg!(debug_assertions),
        }
    }
}
