//! Remote direct memory access through NIXL (UCX underneath: RDMA verbs, TCP, shared memory).
//!
//! NIXL carries payload and nothing else. Frames travel over the same socket as without it, so
//! grants, leases, refusals, signs of life and the detection of dead peers are one code for all
//! transports. What differs is how bytes reach the ring of a connection: the peer's card writes
//! them there, and the peer tells of them once the card has said that they are there.
//!
//! # Why a ring, and not the pages themselves
//! Nothing can call back a write that a card has begun, and a peer that was stopped goes on writing
//! when it is resumed. Were its writes to go into pages, a page could only be reused once the
//! peer's way into it is gone for certain, and a dead peer would hold pages back for as long. As it
//! is, a late write spoils the ring of a connection that nobody reads any more, and the pages are
//! free at once ([`crate::lease`]). It costs one copy a page at the target, in that memory's own
//! bandwidth, and saves registering the pool of every decode worker.
//!
//! # How a ring is given up
//! The target makes an agent for each connection, with the ring as all that it registers. When the
//! connection ends, the agent goes first, and with it every key, queue pair and socket that led to
//! the ring; then the memory. Its addresses are never used again, because same-machine transports
//! that copy between processes know no keys ([`RingReader::registered`]).
//!
//! [`RingReader::registered`]: crate::ring::RingReader::registered

#[cfg_attr(feature = "nixl", path = "agent.rs")]
#[cfg_attr(not(feature = "nixl"), path = "absent.rs")]
mod agent;
mod choice;
mod probe;

pub(crate) use agent::Agent;
pub use choice::choose;
pub use probe::{Check, Finding, Probe, probe};

use std::time::Duration;

use crate::memory::Source;
use crate::remote::{RemoteError, RemoteMemory, RemoteWrite};

/// Unless asked for: room for several small pages on their way.
const MIN_RING_BYTES: usize = 16 << 20;
/// Pages on their way, where pages are large.
const RING_PAGES: usize = 4;
const SMALLEST_RING: usize = 64 << 10;
const LARGEST_RING: usize = 4 << 30;

/// Settings of the NIXL transport, the same for targets and initiators.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NixlConfig {
    /// Network devices to use, as `mlx5_0`; empty: whatever UCX finds.
    pub devices: Vec<String>,
    /// Registered memory of one connection at a target; 0: four pages, and at least 16 MiB.
    pub ring_bytes: usize,
}

impl NixlConfig {
    pub(crate) fn ring_bytes(&self, page_bytes: usize) -> usize {
        let bytes = match self.ring_bytes {
            0 => MIN_RING_BYTES.max(page_bytes.saturating_mul(RING_PAGES)),
            bytes => bytes,
        };
        bytes.clamp(SMALLEST_RING, LARGEST_RING)
    }
}

/// A target's ring, reached by its agent.
pub(crate) struct NixlRing {
    /// Begun as they are added; go before the way to the peer.
    begun: Vec<agent::Write>,
    remote: agent::Remote,
}

impl NixlRing {
    pub(crate) fn new(remote: agent::Remote) -> NixlRing {
        NixlRing {
            begun: Vec::new(),
            remote,
        }
    }
}

impl RemoteMemory for NixlRing {
    fn reaches(&self, source: &Source) -> bool {
        source.is_on_host()
    }

    fn add(
        &mut self,
        source: &Source,
        offset: usize,
        bytes: usize,
        to: u64,
    ) -> Result<(), RemoteError> {
        let write = self.remote.write(source, offset, bytes, to)?;
        self.begun.push(write);
        Ok(())
    }

    fn begin(&mut self) -> Result<Box<dyn RemoteWrite>, RemoteError> {
        Ok(Box::new(Writes(std::mem::take(&mut self.begun))))
    }

    /// Cards go from one write to the next by themselves.
    fn at_once(&self, _: usize) -> usize {
        0
    }

    /// Cards take longer than a thread should spin for.
    fn spin(&self) -> Duration {
        Duration::ZERO
    }
}

/// One write, or two where the ring's end comes in between.
struct Writes(Vec<agent::Write>);

impl RemoteWrite for Writes {
    fn is_done(&mut self) -> Result<bool, RemoteError> {
        for write in &mut self.0 {
            if !write.is_done()? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// What NIXL could not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NixlError {
    #[error("this build has no NIXL; build it with `--features nixl`")]
    NotBuilt,
    #[error(
        "cannot load libnixl_capi.so ({0}); install NIXL (`pip install --no-deps nixl-cu12`) and put its libraries on LD_LIBRARY_PATH"
    )]
    NotInstalled(String),
    #[error(
        "NIXL has no plugin {plugin} (found: {found}); set NIXL_PLUGIN_DIR to the folder of its plugins"
    )]
    NoPlugin { plugin: &'static str, found: String },
    #[error("NIXL cannot start ({0}); its own message is on standard error")]
    Start(String),
    #[error(
        "cannot register {bytes} bytes ({cause}); locked memory is limited to {limit}: raise it (`ulimit -l unlimited`, LimitMEMLOCK=infinity)"
    )]
    Register {
        bytes: usize,
        cause: String,
        limit: String,
    },
    #[error("NIXL cannot {what}: {cause}")]
    Failed { what: &'static str, cause: String },
}
