//! Settings of both sides, with the defaults that suit workers of one cluster.

use std::net::SocketAddr;
use std::time::Duration;

/// Which way payload may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transport {
    /// Shared memory if the target is on this machine and its socket can be reached (two pods of
    /// one host usually cannot), TCP otherwise.
    #[default]
    Auto,
    Shm,
    Tcp,
}

/// Which way payload took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wire {
    Shm,
    Tcp,
}

impl Wire {
    pub const ALL: [Wire; 2] = [Wire::Shm, Wire::Tcp];

    /// Value of the metric label `transport`.
    pub fn as_str(self) -> &'static str {
        match self {
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
    /// Shared memory of one connection. It holds what is on its way, not whole pages, so it need
    /// not grow with them.
    pub ring_bytes: usize,
    /// How long a peer may be silent in the middle of a page or a handshake.
    pub stall: Duration,
    /// How long a connection may be silent between writes. Peers send a sign of life well before
    /// that while they have a grant open.
    pub idle: Duration,
    /// Connections beyond this are turned away.
    pub max_connections: usize,
    /// Ask peers for a checksum of every page, verified before the page counts as written.
    pub checksums: bool,
}

impl Default for TargetConfig {
    fn default() -> Self {
        TargetConfig {
            advertise: Vec::new(),
            shm: true,
            ring_bytes: 4 << 20,
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
    /// How long connecting and the handshake may take together, per address.
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
            connect: Duration::from_secs(2),
            stall: Duration::from_secs(5),
            idle: Duration::from_secs(120),
            queue_pages: 1024,
            checksums: cfg!(debug_assertions),
        }
    }
}
