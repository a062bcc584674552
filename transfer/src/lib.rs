//! Moving latent pages from a prefill worker's memory into a decode worker's.
//!
//! ```text
//!      prefill worker                                   decode worker
//!   page pool (Source)                               page pool (MemoryRegion)
//!         │ write(i, page)                                   ▲
//!         ▼                                                  │ under the lease's fence
//!   Writer ─ queue ─ sender thread ══ socket ══ receiver thread
//!                         │                           ▲      │
//!                         └──── ring (same machine) ──┘      └─▶ Lease: landed, announced
//! ```
//!
//! The decode worker puts pages under a lease and sends the [`Grant`] along with its prefill
//! request. The prefill worker opens the grant, writes each page as it is finished, and announces
//! the end. The decode worker completes the lease, or revokes it, and frees the pages against the
//! [`WritesEnded`] that it gets for it.
//!
//! ```no_run
//! # use millrace_transfer::*;
//! # fn decode(region: MemoryRegion, layout: Layout) -> Result<(), Box<dyn std::error::Error>> {
//! let target = Target::bind("10.0.0.7:0".parse()?, region, layout, TargetConfig::default())?;
//! let (lease, grant) = target.grant(&[4, 7, 9], None)?;
//! let descriptor = grant.to_bytes(); // travels in the prefill request
//! let ended = match lease.wait(std::time::Duration::from_secs(30)) {
//!     Some(LeaseEvent::Announced { message: _ }) => lease.complete()?,
//!     _ => lease.revoke(),
//! };
//! # drop(descriptor); drop(ended); Ok(()) }
//! # fn prefill(region: MemoryRegion, layout: Layout, descriptor: &[u8]) -> Result<(), Box<dyn std::error::Error>> {
//! let initiator = Initiator::new(layout, InitiatorConfig::default())?;
//! let mut writer = initiator.open(&Grant::from_bytes(descriptor)?)?;
//! for (index, page) in [2, 3, 5].into_iter().enumerate() {
//!     writer.write(index, region.source(page, ())?)?;
//! }
//! writer.finish(Vec::new())?;
//! # Ok(()) }
//! ```
//!
//! # Invariants
//!
//! 1. **A peer cannot touch the page pool.** It owns a socket, and on the same machine a ring that
//!    belongs to that one connection. Only the target's own thread copies into pages, and only while
//!    it holds the fence of a live lease ([`lease`] module). A peer stopped in the middle of a write
//!    and resumed after revocation spoils its own ring, nothing else.
//! 2. **Ending a lease waits for no peer.** The fence is held for one copy of at most 256 KiB, never
//!    while waiting, and a device ends what it has begun within microseconds; so `revoke` returns at
//!    once whether the peer is alive, dead, hung or stopped.
//! 3. **No free without proof.** [`WritesEnded`] is made by `complete` and `revoke` alone.
//! 4. **A page is under at most one lease**, and each is written at most once under it.
//! 5. **Nothing is trusted that a peer can change later**: lengths, positions and keys travel over
//!    the socket and are checked on arrival; shared memory holds payload bytes only and is sealed
//!    against shrinking.
//! 6. **A broken peer costs its connection and nothing more.** Whatever only a broken peer can send
//!    closes the connection; a write to a lease that has just ended does not. Connections are made
//!    anew on the next grant.

mod api;
mod codec;
mod config;
mod deadline;
mod device;
mod error;
mod frame;
mod grant;
mod inbox;
mod initiator;
mod layout;
mod lease;
mod machine;
mod memory;
mod nixl;
mod passing;
mod remote;
mod ring;
mod socket;
mod stats;
mod target;
mod wake;

pub use api::{OnFinished, PageInitiator, PageTarget, PageWriter, Written};
pub use config::{InitiatorConfig, TargetConfig, Transport, Wire};
pub use device::{DeviceAccess, DeviceCopy, DeviceError, DeviceMemory, DevicePart};
pub use error::{
    BindError, DecodeError, GrantError, OpenError, Refusal, TryWriteError, WriteError,
};
pub use grant::Grant;
pub use initiator::Initiator;
pub use layout::Layout;
pub use lease::{Lease, LeaseEvent, LeaseTable, NotComplete, OnEvent, WritesEnded};
pub use memory::{MemoryKind, MemoryRegion, RegionError, Source};
pub use nixl::{Check, Finding, NixlConfig, NixlError, Probe, choose, probe};
pub use stats::{FailureKind, LeaseStats, Stats, WireStats};
pub use target::Target;
