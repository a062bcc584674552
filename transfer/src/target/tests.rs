//! Peers that speak the protocol by hand, to say what no correct initiator says.

use std::io;
use std::time::{Duration, Instant};

use xxhash_rust::xxh3::xxh3_64;

use super::Target;
use crate::config::{InitiatorConfig, TargetConfig, Transport, Wire};
use crate::frame::Frame;
use crate::initiator::connect::{Connection, connect};
use crate::socket::READABLE;
use crate::{
    FailureKind, Grant, Layout, Lease, LeaseEvent, LeaseTable, MemoryKind, MemoryRegion,
    PageTarget, WritesEnded,
};

const PAGE: usize = 50_000;
const BOTH: [Wire; 2] = [Wire::Shm, Wire::Tcp];
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
        let region =
            unsafe { MemoryRegion::new(base, PAGE, pages, MemoryKind::Host, memory) }.unwrap();
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
        stats.shm.connections + stats.tcp.connections
    }
}

fn layout() -> Layout {
    Layout::new(PAGE)
}

fn config() -> TargetConfig {
    TargetConfig {
        ring_bytes: 64 << 10,
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
        let transport = if wire == Wire::Shm {
            Transport::Shm
        } else {
            Transport::Tcp
        };
        let config = InitiatorConfig {
            transport,
            ..InitiatorConfig::default()
        };
        Peer {
            to: connect(grant, &layout(), &config).unwrap(),
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
        match &mut self.to.ring {
            None => self.raw(bytes),
            Some(ring) => {
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
                    Frame::Credit { bytes } => {
                        assert!(self.to.ring.as_mut().unwrap().credit(bytes))
                    }
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

#[test]
fn what_only_a_broken_peer_sends_is_refused_and_lands_nowhere() {
    type Act = fn(&mut Peer, &Grant);
    let cases: &[(FailureKind, u64, Act)] = &[
        (FailureKind::UnknownLease, 0, |peer, grant| {
            let grant = Grant {
                lease: grant.lease + 1,
                ..grant.clone()
            };
            peer.write(&grant, 0, 0, 1);
        }),
        (FailureKind::UnknownLease, 0, |peer, grant| {
            peer.write(
                &Grant {
                    lease: 0,
                    ..grant.clone()
                },
                0,
                0,
                1,
            );
        }),
        (FailureKind::WrongKey, 0, |peer, grant| {
            peer.write(
                &Grant {
                    key: grant.key ^ 1,
                    ..grant.clone()
                },
                0,
                0,
                1,
            );
        }),
        (FailureKind::IndexOutOfRange, 0, |peer, grant| {
            peer.write(grant, 0, 2, 1)
        }),
        (FailureKind::IndexOutOfRange, 0, |peer, grant| {
            peer.write(grant, 0, u32::MAX, 1)
        }),
        (FailureKind::WrongLength, 0, |peer, grant| {
            let (lease, key) = (grant.lease, grant.key);
            peer.send(Frame::Write {
                seq: 0,
                lease,
                key,
                index: 0,
                bytes: PAGE as u64 + 1,
                checksum: None,
            });
        }),
        (FailureKind::WrongLength, 0, |peer, grant| {
            let (lease, key) = (grant.lease, grant.key);
            peer.send(Frame::Write {
                seq: 0,
                lease,
                key,
                index: 0,
                bytes: u64::MAX,
                checksum: None,
            });
        }),
        (FailureKind::WrongKey, 0, |peer, grant| {
            let (lease, key) = (grant.lease, !grant.key);
            peer.send(Frame::Finish {
                seq: 0,
                lease,
                key,
                message: Vec::new(),
            });
        }),
        (FailureKind::WrongKey, u64::MAX, |peer, grant| {
            peer.send(Frame::Abandon {
                lease: grant.lease,
                key: !grant.key,
            });
        }),
        (FailureKind::Incomplete, 0, |peer, grant| {
            let (lease, key) = (grant.lease, grant.key);
            peer.send(Frame::Finish {
                seq: 0,
                lease,
                key,
                message: Vec::new(),
            });
        }),
    ];
    for wire in BOTH {
        for (kind, seq, act) in cases {
            let scene = Scene::new(config());
            let (lease, grant) = scene.target.grant(&[1, 2], None).unwrap();
            let mut peer = Peer::new(&grant, wire);
            act(&mut peer, &grant);
            peer.refused(*seq, *kind);
            drop(peer); // Else the target would listen to it for a while.
            assert_eq!(scene.failures(*kind), 1);
            assert!(
                (0..4).all(|page| scene.untouched(page)),
                "{kind:?} over {wire:?}"
            );
            wait_until("the connection is gone", || scene.connections() == 0);
            assert_eq!(lease.landed_bytes(), 0);
            // The lease is none the worse for it.
            let mut peer = Peer::new(&grant, wire);
            complete(&mut peer, lease, &grant);
        }
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

#[test]
fn a_page_lands_once_and_is_announced_once() {
    for wire in BOTH {
        for again in [false, true] {
            let scene = Scene::new(config());
            let (lease, grant) = scene.target.grant(&[1], None).unwrap();
            let (key, message) = (grant.key, vec![1, 2, 3]);
            let mut peer = Peer::new(&grant, wire);
            peer.write(&grant, 0, 0, 7);
            assert_eq!(peer.answer(), Some(Frame::Ack { seq: 0 }));
            if again {
                peer.write(&grant, 1, 0, 8);
                peer.refused(1, FailureKind::WrittenTwice);
                assert_eq!(
                    lease.wait(Duration::from_secs(60)),
                    Some(LeaseEvent::WriterLost)
                );
                let _ = lease.revoke();
            } else {
                peer.send(Frame::Finish {
                    seq: 1,
                    lease: grant.lease,
                    key,
                    message: message.clone(),
                });
                assert_eq!(peer.answer(), Some(Frame::Ack { seq: 1 }));
                peer.send(Frame::Finish {
                    seq: 2,
                    lease: grant.lease,
                    key,
                    message,
                });
                peer.refused(2, FailureKind::WrittenTwice);
                let _ = lease.complete().unwrap();
            }
            assert!(scene.page(1).iter().all(|byte| *byte == 7));
        }
    }
}

#[test]
fn a_checksum_must_fit_what_arrived() {
    for wire in BOTH {
        let scene = Scene::new(config());
        let (lease, grant) = scene.target.grant(&[1], None).unwrap();
        let write = |peer: &mut Peer, sum: u64| {
            let (lease, key) = (grant.lease, grant.key);
            peer.send(Frame::Write {
                seq: 0,
                lease,
                key,
                index: 0,
                bytes: PAGE as u64,
                checksum: Some(sum),
            });
            peer.payload(&[7; PAGE]);
        };
        let sum = xxh3_64(&[7; PAGE]);
        let mut peer = Peer::new(&grant, wire);
        write(&mut peer, sum ^ 1);
        peer.refused(0, FailureKind::Checksum);
        assert_eq!((lease.landed(), lease.landed_bytes()), (0, 0));
        // The page counts as never written, so it can be written again.
        let mut peer = Peer::new(&grant, wire);
        write(&mut peer, sum);
        assert_eq!(peer.answer(), Some(Frame::Ack { seq: 0 }));
        let _ = lease.revoke();
    }
}

#[test]
fn malformed_frames_and_frames_out_of_turn_close_the_connection() {
    let encoded = |frame: Frame| {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        bytes
    };
    let cases = [
        vec![0xff; 64],
        vec![0, 0, 0, 0, 99, 0, 0, 0],
        vec![0, 0, 0, 0, 6, 0, 0, 0],
        encoded(Frame::Ack { seq: 0 }),
        encoded(Frame::Data { bytes: 1 }),
        encoded(Frame::Hello {
            incarnation: 1,
            layout: layout(),
        }),
    ];
    for wire in BOTH {
        for bytes in &cases {
            let scene = Scene::new(config());
            let (lease, grant) = scene.target.grant(&[1, 2], None).unwrap();
            let mut peer = Peer::new(&grant, wire);
            peer.raw(bytes);
            assert_eq!(peer.answer(), None);
            wait_until("it is counted", || {
                scene.failures(FailureKind::Malformed) == 1
            });
            assert!((0..4).all(|page| scene.untouched(page)));
            let _ = lease.revoke();
        }
    }
}

#[test]
fn data_frames_are_held_to_the_page_and_the_ring() {
    for bytes in [0, PAGE as u32 + 1, u32::MAX] {
        let scene = Scene::new(config());
        let (lease, grant) = scene.target.grant(&[1, 2], None).unwrap();
        let mut peer = Peer::new(&grant, Wire::Shm);
        peer.header(&grant, 0, 0);
        peer.send(Frame::Data { bytes });
        assert_eq!(peer.answer(), None);
        wait_until("it is counted", || {
            scene.failures(FailureKind::Malformed) == 1
        });
        assert!((0..4).all(|page| scene.untouched(page)));
        let _ = lease.revoke();
    }
}

/// Half a page, then the lease ends and its pages are used again, then the other half.
#[test]
fn a_late_writer_lands_nothing_in_a_page_that_is_used_again() {
    for wire in BOTH {
        let scene = Scene::new(config());
        let (lease, grant) = scene.target.grant(&[1], None).unwrap();
        let mut peer = Peer::new(&grant, wire);
        peer.header(&grant, 0, 0);
        peer.payload(&[7; PAGE / 2]);
        wait_until("half a page lands", || {
            lease.landed_bytes() == PAGE as u64 / 2
        });
        let ended: WritesEnded = lease.revoke();
        assert_eq!(ended.pages(), [1]);
        scene.own(1);
        // The same page, even under a new lease.
        let (next, next_grant) = scene.target.grant(&[1], None).unwrap();
        peer.payload(&[7; PAGE - PAGE / 2]);
        match peer.answer() {
            Some(Frame::Nack { seq: 0, code, .. }) => {
                assert_eq!(code, FailureKind::LeaseEnded.code())
            }
            other => panic!("{other:?}"),
        }
        assert!(scene.untouched(1));
        // The connection is in step and goes on.
        peer.write(&next_grant, 1, 0, 5);
        assert_eq!(peer.answer(), Some(Frame::Ack { seq: 1 }));
        assert!(scene.page(1).iter().all(|byte| *byte == 5));
        let _ = next.revoke();
    }
}

#[test]
fn a_peer_that_stalls_or_goes_loses_its_connection_and_its_page_is_free_to_be_written() {
    for wire in BOTH {
        for goes in [false, true] {
            let stall = Duration::from_secs(if goes { 60 } else { 1 });
            let scene = Scene::new(TargetConfig { stall, ..config() });
            let (lease, grant) = scene.target.grant(&[1, 2], None).unwrap();
            let mut peer = Peer::new(&grant, wire);
            peer.header(&grant, 0, 0);
            peer.payload(&[7; PAGE / 2]);
            // Dropped here if it goes.
            let peer = (!goes).then_some(peer);
            assert_eq!(
                lease.wait(Duration::from_secs(60)),
                Some(LeaseEvent::WriterLost)
            );
            wait_until("the connection is gone", || scene.connections() == 0);
            let kind = if goes {
                FailureKind::Lost
            } else {
                FailureKind::Stalled
            };
            assert_eq!(scene.failures(kind), 1);
            assert_eq!(lease.landed_bytes(), 0);
            complete(&mut Peer::new(&grant, wire), lease, &grant);
            drop(peer);
        }
    }
}

#[test]
fn a_handshake_that_never_comes_or_is_not_one_ends() {
    let scene = Scene::new(TargetConfig {
        stall: Duration::from_millis(50),
        ..config()
    });
    let silent = std::net::TcpStream::connect(scene.target.address()).unwrap();
    wait_until("silence is counted", || {
        scene.failures(FailureKind::Stalled) == 1
    });
    drop(silent);

    let scene = Scene::new(config());
    let mut http = std::net::TcpStream::connect(scene.target.address()).unwrap();
    io::Write::write_all(&mut http, b"GET / HTTP/1.1\r\n\r\n").unwrap();
    wait_until("nonsense is counted", || {
        scene.failures(FailureKind::Malformed) == 1
    });
    assert_eq!(io::Read::read(&mut http, &mut [0; 8]).unwrap_or(0), 0);
    // Another version is refused by name.
    let mut hello = Vec::new();
    Frame::Hello {
        incarnation: 0,
        layout: layout(),
    }
    .encode(&mut hello);
    hello[16] += 1;
    let mut other = std::net::TcpStream::connect(scene.target.address()).unwrap();
    io::Write::write_all(&mut other, &hello).unwrap();
    let mut reply = Vec::new();
    io::Read::read_to_end(&mut other, &mut reply).unwrap();
    let Ok(Some((
        Frame::Refused {
            field,
            ours,
            theirs,
            ..
        },
        _,
    ))) = Frame::decode(&reply)
    else {
        panic!("{reply:?}")
    };
    assert_eq!(
        (field.as_str(), ours.as_str(), theirs.as_str()),
        ("protocol version", "1", "2")
    );
    drop(other);
    wait_until("all are gone", || scene.connections() == 0);
}

#[test]
fn ending_a_lease_waits_for_no_more_than_a_copy() {
    // No peers: the table alone, with a "copy" that we hold open.
    let mut memory = vec![0u8; 8];
    let base = memory.as_mut_ptr();
    // SAFETY: the vector lives in the region and does not move.
    let region = unsafe { MemoryRegion::new(base, 8, 1, MemoryKind::Host, memory) }.unwrap();
    let table = LeaseTable::new(region);
    let lease = table.lease(&[0], None).unwrap();
    let mut page = table.begin(lease.id(), lease.key(), 0, 8).unwrap();
    let (copying, is_copying) = std::sync::mpsc::channel();
    let (go, gate) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let copier = scope.spawn(move || {
            let copied = page.fill(8, |_, room| {
                copying.send(()).unwrap();
                gate.recv().unwrap();
                Ok(room)
            });
            assert_eq!(copied.unwrap().unwrap(), 8);
            page.fill(8, |_, _| unreachable!("after the end")).is_err()
        });
        is_copying.recv().unwrap();
        let ender = scope.spawn(move || lease.revoke());
        // It cannot end while bytes are being put into the page.
        std::thread::sleep(Duration::from_millis(20));
        assert!(!ender.is_finished());
        go.send(()).unwrap();
        assert_eq!(ender.join().unwrap().pages(), [0]);
        assert!(copier.join().unwrap());
    });
}
