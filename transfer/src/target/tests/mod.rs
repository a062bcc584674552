//! Peers that speak the protocol by hand, to say what no correct initiator says.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use xxhash_rust::xxh3::xxh3_64;

use super::Target;
use crate::config::{InitiatorConfig, TargetConfig, Transport, Wire};
use crate::frame::Frame;
use crate::initiator::connect::{Connection, Origin, Way, connect};
use crate::nixl::{Agent, NixlConfig};
use crate::socket::READABLE;
use crate::{
    FailureKind, Grant, Layout, Lease, LeaseEvent, LeaseTable, MemoryRegion, PageTarget, Source,
    WritesEnded,
};

mod broken;
mod late;

const PAGE: usize = 50_000;
/// Every way of this build.
const ALL: &[Wire] = match cfg!(feature = "nixl") {
    true => &[Wire::Nixl, Wire::Shm, Wire::Tcp],
    false => &[Wire::Shm, Wire::Tcp],
};
/// What the pool's owner has in pages that are its own.
const OWNED: u8 = 0xee;

/// A target and a look into its memory.
struct Scene {
    target: Target,
    base: usize,
    pages: usize,
}

impl Scene {
    fn new(config: TargetConfig) -> Scene {
        let pages = 4;
        let mut memory = vec![OWNED; PAGE * pages];
        let base = memory.as_mut_ptr();
        // SAFETY: the vector lives in the region, its heap block does not move, and it is reached
        // only through the region and `Scene::page`.
        let region = unsafe { MemoryRegion::new(base, PAGE, pages, memory) }.unwrap();
        let target =
            Target::bind("127.0.0.1:0".parse().unwrap(), region, layout(), config).unwrap();
        Scene {
            target,
            base: base as usize,
            pages,
        }
    }

    fn page(&self, page: usize) -> &[u8] {
        assert!(page < self.pages);
        // SAFETY: in range; the tests look at pages only while nobody may write them.
        unsafe { std::slice::from_raw_parts((self.base + page * PAGE) as *const u8, PAGE) }
    }

    /// Uses a page that is its owner's.
    fn own(&self, page: usize) {
        assert!(page < self.pages);
        // SAFETY: in range, and nobody else may touch the page.
        unsafe { std::ptr::write_bytes((self.base + page * PAGE) as *mut u8, OWNED, PAGE) }
    }

    fn untouched(&self, page: usize) -> bool {
        self.page(page).iter().all(|byte| *byte == OWNED)
    }

    fn failures(&self, kind: FailureKind) -> u64 {
        self.target.stats().failures(kind)
    }

    fn connections(&self) -> u64 {
        let stats = self.target.stats();
        Wire::ALL
            .map(|wire| stats.wire(wire).connections)
            .iter()
            .sum()
    }
}

fn layout() -> Layout {
    Layout::new(PAGE)
}

fn config() -> TargetConfig {
    TargetConfig {
        ring_bytes: 64 << 10,
        nixl: cfg!(feature = "nixl").then(|| NixlConfig {
            ring_bytes: 64 << 10,
            ..NixlConfig::default()
        }),
        ..TargetConfig::default()
    }
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A peer past its handshake.
struct Peer {
    to: Connection,
}

impl Peer {
    fn new(grant: &Grant, wire: Wire) -> Peer {
        let transport = match wire {
            Wire::Nixl => Transport::Nixl,
            Wire::Shm => Transport::Shm,
            Wire::Tcp => Transport::Tcp,
        };
        let config = InitiatorConfig {
            transport,
            ..InitiatorConfig::default()
        };
        let agent =
            (wire == Wire::Nixl).then(|| Arc::new(Agent::new(&NixlConfig::default()).unwrap()));
        let origin = Origin {
            layout: &layout(),
            config: &config,
            nixl: agent.as_ref(),
            device: None,
        };
        Peer {
            to: connect(grant, &origin).unwrap(),
        }
    }

    fn raw(&self, bytes: &[u8]) {
        self.to
            .socket
            .send_all(bytes, Duration::from_secs(60))
            .unwrap();
    }

    fn send(&self, frame: Frame) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        self.raw(&bytes);
    }

    fn header(&self, grant: &Grant, seq: u64, index: u32) {
        let Grant { lease, key, .. } = *grant;
        self.send(Frame::Write {
            seq,
            lease,
            key,
            index,
            bytes: PAGE as u64,
            checksum: None,
        });
    }

    fn payload(&mut self, bytes: &[u8]) {
        match &mut self.to.way {
            Way::Socket => self.raw(bytes),
            Way::Remote(ring) => {
                let mut told = Vec::new();
                ring.put(0, &Source::from_bytes(bytes.to_vec()), 0, bytes.len())
                    .unwrap();
                while ring.is_writing() {
                    ring.settle(&mut told).unwrap();
                }
                self.raw(&told);
            }
            Way::Shared(ring) => {
                ring.put(bytes);
                self.send(Frame::Data {
                    bytes: bytes.len() as u32,
                });
            }
        }
    }

    fn write(&mut self, grant: &Grant, seq: u64, index: u32, byte: u8) {
        self.header(grant, seq, index);
        self.payload(&[byte; PAGE]);
    }

    /// The next answer that is not credit; `None` if the target has closed.
    fn answer(&mut self) -> Option<Frame> {
        loop {
            while let Some(frame) = self.to.inbox.frame().unwrap() {
                match frame {
                    Frame::Credit { bytes } => assert!(match &mut self.to.way {
                        Way::Socket => false,
                        Way::Remote(ring) => ring.credit(bytes),
                        Way::Shared(ring) => ring.credit(bytes),
                    }),
                    other => return Some(other),
                }
            }
            match self.to.inbox.fill(&self.to.socket) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let patience = Instant::now() + Duration::from_secs(60);
                    assert!(
                        self.to.socket.wait(READABLE, patience).unwrap(),
                        "no answer"
                    );
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Expects a refusal of `seq` and then the end.
    fn refused(&mut self, seq: u64, kind: FailureKind) {
        match self.answer() {
            Some(Frame::Nack {
                seq: refused, code, ..
            }) => {
                assert_eq!((refused, FailureKind::from_code(code)), (seq, Some(kind)));
            }
            other => panic!("{kind:?} expected, not {other:?}"),
        }
        assert_eq!(self.answer(), None);
    }
}

/// Writes both pages of a lease, properly.
fn complete(peer: &mut Peer, lease: Lease, grant: &Grant) {
    for index in 0..2 {
        peer.write(grant, index.into(), index, 9);
        assert_eq!(peer.answer(), Some(Frame::Ack { seq: index.into() }));
    }
    peer.send(Frame::Finish {
        seq: 2,
        lease: grant.lease,
        key: grant.key,
        message: Vec::new(),
    });
    assert_eq!(peer.answer(), Some(Frame::Ack { seq: 2 }));
    let _ = lease.complete().unwrap();
}
