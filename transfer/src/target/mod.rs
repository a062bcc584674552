//! The side whose pages are written.

mod acceptor;
mod end;
mod handshake;
mod landing;
mod receiver;
mod rings;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use parking_lot::Mutex;

use crate::api::PageTarget;
use crate::config::TargetConfig;
use crate::error::{BindError, GrantError};
use crate::grant::{Grant, MAX_ADDRESSES};
use crate::layout::Layout;
use crate::lease::{Lease, LeaseTable, OnEvent};
use crate::machine;
use crate::memory::MemoryRegion;
use crate::nixl::Agent;
use crate::stats::{Counters, Stats};
use crate::wake::Wake;

use acceptor::{Acceptor, Listeners};
use rings::Rings;

/// Smallest useful ring: below this, most of the time goes into signalling.
const MIN_RING_BYTES: usize = 64 << 10;
const MAX_RING_BYTES: usize = 1 << 30;

/// Receives pages over sockets: one thread that accepts, one a connection.
///
/// Dropping it closes every connection and waits for the threads. Leases outlive it, and end like
/// any other.
pub struct Target {
    shared: Arc<Shared>,
    address: SocketAddr,
    addresses: Vec<SocketAddr>,
    local: Option<String>,
    machine: u128,
    nixl: bool,
    acceptor: Option<JoinHandle<()>>,
}

/// What the threads of one target share.
struct Shared {
    table: Arc<LeaseTable>,
    layout: Layout,
    config: TargetConfig,
    counters: Counters,
    /// An agent that no connection has yet.
    spare: Mutex<Option<Agent>>,
    /// In memory of the region's device.
    rings: Rings,
    incarnation: u128,
    closing: AtomicBool,
    /// Wakes the acceptor: to close, or to collect a connection's thread (and ring) that has ended.
    wake: Wake,
}

impl Target {
    /// Listens on `address` (port 0: any) for peers that write into `region`, and unless
    /// configured otherwise on a local socket for peers of this machine.
    ///
    /// `layout` is what peers must agree on; its page size is the region's.
    pub fn bind(
        address: SocketAddr,
        region: MemoryRegion,
        layout: Layout,
        mut config: TargetConfig,
    ) -> Result<Target, BindError> {
        if region.page_bytes() != layout.page_bytes() {
            let (region, layout) = (region.page_bytes(), layout.page_bytes());
            return Err(BindError::PageBytes { region, layout });
        }
        // What cannot work for any connection should not be found out by the first, which gets this one.
        let spare = config.nixl.as_ref().map(Agent::new).transpose()?;
        for bytes in [&mut config.ring_bytes, &mut config.device_ring_bytes] {
            *bytes = (*bytes).clamp(MIN_RING_BYTES, MAX_RING_BYTES);
        }
        let listeners = Listeners::bind(address, config.shm)?;
        let (address, local) = (listeners.address, listeners.local_name.clone());
        let addresses = advertised(&config, address)?;
        let system = |source| BindError::System { source };
        let shared = Arc::new(Shared {
            table: LeaseTable::new(region),
            layout,
            config,
            counters: Counters::default(),
            spare: Mutex::new(spare),
            rings: Rings::default(),
            incarnation: machine::random_u128().map_err(system)?,
            closing: AtomicBool::new(false),
            wake: Wake::new().map_err(system)?,
        });
        let acceptor = Acceptor::start(listeners, shared.clone()).map_err(system)?;
        tracing::info!(%address, ?addresses, local = local.is_some(), "waiting for pages");
        let machine = machine::boot_id();
        let nixl = shared.config.nixl.is_some();
        Ok(Target {
            nixl,
            shared,
            address,
            addresses,
            local,
            machine,
            acceptor: Some(acceptor),
        })
    }

    /// The TCP address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

fn advertised(config: &TargetConfig, bound: SocketAddr) -> Result<Vec<SocketAddr>, BindError> {
    let addresses = match config.advertise.as_slice() {
        [] => vec![bound],
        // Who advertises a host without a port means the one that is listened on.
        advertise => advertise
            .iter()
            .map(|address| match address.port() {
                0 => SocketAddr::new(address.ip(), bound.port()),
                _ => *address,
            })
            .collect(),
    };
    if addresses.len() > MAX_ADDRESSES {
        return Err(BindError::TooManyAddresses {
            count: addresses.len(),
            limit: MAX_ADDRESSES,
        });
    }
    match addresses
        .iter()
        .find(|address| address.ip().is_unspecified())
    {
        Some(address) => Err(BindError::Unspecified { address: *address }),
        None => Ok(addresses),
    }
}

impl PageTarget for Target {
    fn grant(
        &self,
        pages: &[u32],
        on_event: Option<OnEvent>,
    ) -> Result<(Lease, Grant), GrantError> {
        let table = &self.shared.table;
        let lease = table.lease(pages, on_event)?;
        let grant = Grant {
            incarnation: self.shared.incarnation,
            machine: self.machine,
            addresses: self.addresses.clone(),
            local: self.local.clone(),
            nixl: self.nixl,
            memory: table.region().kind(),
            lease: lease.id(),
            key: lease.key(),
            page_bytes: table.region().page_bytes(),
            pages: pages.to_vec(),
        };
        Ok((lease, grant))
    }

    fn stats(&self) -> Stats {
        self.shared.counters.snapshot(self.shared.table.stats())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::Release);
        self.shared.wake.signal();
        if let Some(acceptor) = self.acceptor.take() {
            // It can only have panicked, which the panic hook has reported.
            let _ = acceptor.join();
        }
    }
}
