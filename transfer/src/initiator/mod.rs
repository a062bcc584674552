//! The side that writes: one connection and one thread a target, made on first use and made anew
//! after a failure.

mod answers;
pub(crate) mod connect;
mod delivery;
mod device;
mod peer;
mod sender;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use parking_lot::Mutex;

use crate::api::{PageInitiator, PageWriter};
use crate::config::{InitiatorConfig, Transport};
use crate::error::OpenError;
use crate::grant::Grant;
use crate::layout::{Difference, Layout};
use crate::memory::MemoryRegion;
use crate::nixl::{Agent, NixlError};
use crate::stats::{Counters, FailureKind, LeaseStats, Stats};

use connect::Origin;
use peer::{Peer, Running};
use writer::Writer;

/// Writes pages over sockets and shared memory. Dropping it fails what is still in flight.
pub struct Initiator {
    layout: Layout,
    config: InitiatorConfig,
    nixl: Option<Arc<Agent>>,
    /// The pool that pages are written from, if it is a device's.
    device: OnceLock<MemoryRegion>,
    counters: Arc<Counters>,
    /// By the target's incarnation. A slot's own lock is held while connecting, so that one target
    /// out of reach keeps nobody from the others.
    slots: Mutex<HashMap<u128, Arc<Slot>>>,
}

type Slot = Mutex<Line>;

/// The way to one target.
#[derive(Default)]
struct Line {
    running: Option<Running>,
    /// When connecting failed last, and why.
    failed: Option<(Instant, OpenError)>,
}

impl Initiator {
    /// `layout` is what targets must agree on. Fails only where NIXL is asked for and cannot start.
    pub fn new(layout: Layout, config: InitiatorConfig) -> Result<Initiator, NixlError> {
        let wanted = match config.transport {
            Transport::Nixl => Some(config.nixl.clone().unwrap_or_default()),
            Transport::Auto => config.nixl.clone(),
            Transport::Shm | Transport::Tcp => None,
        };
        let nixl = wanted.as_ref().map(Agent::new).transpose()?;
        Ok(Initiator {
            layout,
            config,
            nixl: nixl.map(Arc::new),
            device: OnceLock::new(),
            counters: Arc::default(),
            slots: Mutex::default(),
        })
    }

    /// Registers a pool that pages are written from, before the first grant is opened. Without it NIXL copies
    /// every page once more, and a device's pages go by way of the host to every target. Of devices' pools the
    /// first counts.
    pub fn register(&self, region: &MemoryRegion) -> Result<(), NixlError> {
        if region.access().is_some() {
            self.device.get_or_init(|| region.clone());
            return Ok(());
        }
        match &self.nixl {
            Some(agent) => agent.register_region(region),
            None => Ok(()),
        }
    }

    /// A connection to the grant's target that counts one more writer.
    fn attach(&self, grant: &Grant) -> Result<Arc<Peer>, OpenError> {
        let asked = Instant::now();
        let slot = self.slot(grant.incarnation);
        let mut line = slot.lock();
        let running = line.running.as_ref().map(Running::peer);
        if let Some(peer) = running.filter(|peer| peer.attach()) {
            return Ok(peer.clone());
        }
        // Who has waited while another tried in vain need not try again: a target out of reach
        // would keep the last of many waiting for all of them.
        if let Some((_, error)) = line.failed.as_ref().filter(|(at, _)| *at >= asked) {
            return Err(error.clone());
        }
        // Collects the thread of a connection that has ended.
        line.running = None;
        match self.connect(grant) {
            Ok(running) => {
                let peer = running.peer().clone();
                // A new connection can end at once, too; its writer learns it from its first write.
                peer.attach();
                *line = Line {
                    running: Some(running),
                    failed: None,
                };
                Ok(peer)
            }
            Err(error) => {
                line.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    fn connect(&self, grant: &Grant) -> Result<Running, OpenError> {
        let origin = Origin {
            layout: &self.layout,
            config: &self.config,
            nixl: self.nixl.as_ref(),
            device: self.device.get(),
        };
        let connection = connect::connect(grant, &origin)?;
        Running::start(connection, &self.config, self.counters.clone())
            .map_err(|error| OpenError::System(error.to_string()))
    }

    fn slot(&self, incarnation: u128) -> Arc<Slot> {
        let mut slots = self.slots.lock();
        // Targets come and go: what has ended and is not being used is forgotten.
        slots.retain(|key, slot| {
            *key == incarnation || Arc::strong_count(slot) > 1 || is_alive(slot)
        });
        slots.entry(incarnation).or_default().clone()
    }
}

fn is_alive(slot: &Slot) -> bool {
    let line = slot.lock();
    line.running
        .as_ref()
        .is_some_and(|running| !running.peer().is_closed())
}

impl PageInitiator for Initiator {
    fn open(&self, grant: &Grant) -> Result<Box<dyn PageWriter>, OpenError> {
        // Before any socket: no handshake could make these pages fit.
        let there = Layout::new(grant.page_bytes);
        let here = Layout::new(self.layout.page_bytes());
        let fits = match here.difference(&there) {
            None => Ok(()),
            Some(Difference {
                field,
                ours,
                theirs,
            }) => Err(OpenError::Mismatch {
                field,
                ours,
                theirs,
            }),
        };
        match fits.and_then(|()| self.attach(grant)) {
            Ok(peer) => {
                tracing::debug!(
                    lease = grant.lease,
                    wire = peer.wire().as_str(),
                    "grant opened"
                );
                Ok(Box::new(Writer::new(peer, grant, self.config.stall)))
            }
            Err(error) => {
                self.counters.failed(match error {
                    OpenError::Mismatch { .. } | OpenError::OtherIncarnation => {
                        FailureKind::Mismatch
                    }
                    OpenError::Busy => FailureKind::Busy,
                    OpenError::Unavailable { .. } => FailureKind::Unavailable,
                    _ => FailureKind::Connect,
                });
                tracing::warn!(lease = grant.lease, %error, "cannot open grant");
                Err(error)
            }
        }
    }

    fn stats(&self) -> Stats {
        self.counters.snapshot(LeaseStats::default())
    }
}
