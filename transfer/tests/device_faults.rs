//! Peers with devices that are other processes, and stop or die in the middle of a page.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::device::Device;
use common::peer::{IS_PEER, Peer, say, unhex};
use common::{Pool, pattern, wait_until};
use millrace_transfer::{
    Grant, Initiator, InitiatorConfig, Layout, LeaseEvent, PageInitiator, PageTarget, Source,
    Target, TargetConfig, Transport,
};

const PAGE: usize = 1 << 20;
const LONG: Duration = Duration::from_secs(60);
const OWNED: u8 = 0xee;

/// Not a test: the body of the peer processes. A page a grant.
#[test]
fn peer() {
    if std::env::var(IS_PEER).is_err() {
        return;
    }
    let source = Pool::of_device(PAGE, 1, 0);
    let config = InitiatorConfig {
        transport: Transport::Shm,
        checksums: false,
        ..InitiatorConfig::default()
    };
    let initiator = Initiator::new(Layout::new(PAGE), config).unwrap();
    initiator.register(&source.region).unwrap();
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let [_, act, grant] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        let signal = match act {
            "stop" => Some(libc::SIGSTOP),
            "kill" => Some(libc::SIGKILL),
            _ => None,
        };
        let grant = Grant::from_bytes(&unhex(grant)).unwrap();
        let bytes = pattern(grant.lease(), 0, PAGE);
        let mut writer = initiator.open(&grant).unwrap();
        let page = match signal {
            None => {
                source.fill(0, &bytes);
                source.region.source(0, ()).unwrap()
            }
            Some(signal) => {
                let looks = AtomicUsize::new(0);
                Source::from_bytes(Acting {
                    bytes,
                    signal,
                    looks,
                })
            }
        };
        writer.write(0, page).unwrap();
        match writer.finish(Vec::new()) {
            Ok(_) => say("finished"),
            Err(error) => say(&format!("failed {error:?}")),
        }
    }
}

/// Bytes whose process stops or dies when its seventh part or so is on its way to the ring. The ring has room
/// for four, so that some have landed by then.
struct Acting {
    bytes: Vec<u8>,
    signal: i32,
    looks: AtomicUsize,
}

impl AsRef<[u8]> for Acting {
    fn as_ref(&self) -> &[u8] {
        if self.looks.fetch_add(1, Ordering::Relaxed) == 8 {
            // SAFETY: no memory is involved.
            unsafe { libc::raise(self.signal) };
        }
        &self.bytes
    }
}

struct Scene {
    device: Device,
    pool: Pool,
    target: Target,
}

impl Scene {
    fn new(stall: Duration) -> Scene {
        let device = Device::new(PAGE);
        let pool = Pool::on(&device, PAGE, 1, 1);
        let config = TargetConfig {
            device_ring_bytes: 256 << 10,
            checksums: false,
            stall,
            ..TargetConfig::default()
        };
        let address = "127.0.0.1:0".parse().unwrap();
        let target = Target::bind(address, pool.region.clone(), Layout::new(PAGE), config).unwrap();
        Scene {
            device,
            pool,
            target,
        }
    }

    fn works(&self, peer: &mut Peer) {
        let (lease, grant) = self.target.grant(&[0], None).unwrap();
        peer.tell("write", "nothing", &grant);
        assert!(matches!(
            lease.wait(LONG),
            Some(LeaseEvent::Announced { .. })
        ));
        assert_eq!(peer.hear(), "finished");
        let bytes = pattern(lease.id(), 0, PAGE);
        drop(lease.complete().unwrap());
        assert!(self.pool.read(0) == bytes);
        assert_eq!(self.device.staged(), 0);
    }
}

#[test]
fn a_ring_is_freed_when_its_peer_is_killed_in_a_write() {
    let scene = Scene::new(LONG);
    for _ in 0..5 {
        let mut peer = Peer::start("writer");
        scene.works(&mut peer);
        let (lease, grant) = scene.target.grant(&[0], None).unwrap();
        peer.tell("write", "kill", &grant);
        assert_eq!(lease.wait(LONG), Some(LeaseEvent::WriterLost));
        drop(lease.revoke());
        wait_until("its ring is freed", || scene.device.rings() == 0);
    }
}

#[test]
fn a_peer_stopped_in_a_write_and_resumed_after_revocation_lands_nothing() {
    let scene = Scene::new(LONG);
    let mut peer = Peer::start("writer");
    for _ in 0..5 {
        let (lease, grant) = scene.target.grant(&[0], None).unwrap();
        peer.tell("write", "stop", &grant);
        peer.wait_stopped();
        wait_until("some of the page lands", || lease.landed_bytes() > 0);
        drop(lease.revoke());
        scene.pool.fill(0, &[OWNED; PAGE]);
        peer.signal(libc::SIGCONT);
        assert_eq!(peer.hear(), "failed LeaseEnded");
        assert!(scene.pool.read(0) == [OWNED; PAGE]);
    }
    scene.works(&mut peer);
    assert_eq!(scene.target.stats().shm.connections_opened, 1);
}

/// It goes on writing the ring of a connection that has ended: that is still there.
#[test]
fn a_ring_is_kept_for_a_peer_that_stays_stopped() {
    let scene = Scene::new(Duration::from_secs(1));
    let mut peer = Peer::start("writer");
    let (lease, grant) = scene.target.grant(&[0], None).unwrap();
    peer.tell("write", "stop", &grant);
    peer.wait_stopped();
    assert_eq!(lease.wait(LONG), Some(LeaseEvent::WriterLost));
    drop(lease.revoke());
    scene.pool.fill(0, &[OWNED; PAGE]);
    let mut other = Peer::start("writer");
    scene.works(&mut other);
    drop(other);
    wait_until("the other's ring is freed", || scene.device.rings() == 1);
    scene.pool.fill(0, &[OWNED; PAGE]);
    peer.signal(libc::SIGCONT);
    let said = peer.hear();
    assert!(said.starts_with("failed Lost"), "{said}");
    wait_until("its ring is freed", || scene.device.rings() == 0);
    assert!(scene.pool.read(0) == [OWNED; PAGE]);
    // And it finds its way back.
    scene.works(&mut peer);
}
