//! Pages from device to device of one machine: the same leases and fences, and no copy on the host.

mod common;

use std::time::Duration;

use common::device::Device;
use common::sides::{LONG, PAGE, layout, loopback};
use common::{Pool, pattern, wait_until};
use millrace_transfer::{
    FailureKind, Initiator, InitiatorConfig, LeaseEvent, PageInitiator, PageTarget, Source, Target,
    TargetConfig, Transport, Wire, WriteError,
};

const PAGES: usize = 8;

/// Two devices, the first's pages filled.
struct Scene {
    from: Device,
    to: Device,
    source: Pool,
    pool: Pool,
    target: Target,
    initiator: Initiator,
}

fn target_config() -> TargetConfig {
    TargetConfig {
        // Smaller than a page, and no multiple of its parts: pages go in parts and the ring wraps in them.
        device_ring_bytes: 70_001,
        checksums: false,
        ..TargetConfig::default()
    }
}

impl Scene {
    fn new(config: TargetConfig) -> Scene {
        let [from, to] = [(); 2].map(|()| Device::new(PAGE * PAGES));
        let (source, pool) = (
            Pool::on(&from, PAGE, PAGES, 0),
            Pool::on(&to, PAGE, PAGES, 1),
        );
        for page in 0..PAGES {
            source.fill(page as u32, &pattern(1, page, PAGE));
        }
        let target = Target::bind(loopback(), pool.region.clone(), layout(), config).unwrap();
        Scene {
            initiator: initiator(&source),
            from,
            to,
            source,
            pool,
            target,
        }
    }

    fn page(&self, page: usize) -> Source {
        self.source.region.source(page as u32, ()).unwrap()
    }

    /// Sends all pages, the last first.
    fn works(&self) {
        let pages: Vec<u32> = (0..PAGES as u32).rev().collect();
        let (lease, grant) = self.target.grant(&pages, None).unwrap();
        let mut writer = self.initiator.open(&grant).unwrap();
        assert_eq!(writer.wire(), Wire::Shm);
        for (index, page) in pages.iter().enumerate() {
            writer.write(index, self.page(*page as usize)).unwrap();
        }
        writer.finish(b"done".to_vec()).unwrap();
        assert!(matches!(
            lease.wait(LONG),
            Some(LeaseEvent::Announced { .. })
        ));
        for page in lease.complete().unwrap().into_pages() {
            assert!(self.pool.read(page) == pattern(1, page as usize, PAGE));
            self.pool.fill(page, &[0; PAGE]);
        }
    }
}

fn initiator(source: &Pool) -> Initiator {
    let config = InitiatorConfig {
        transport: Transport::Shm,
        checksums: false,
        ..InitiatorConfig::default()
    };
    let initiator = Initiator::new(layout(), config).unwrap();
    initiator.register(&source.region).unwrap();
    initiator
}

#[test]
fn pages_go_from_device_to_device_and_touch_no_host() {
    let scene = Scene::new(target_config());
    for _ in 0..5 {
        scene.works();
    }
    assert_eq!((scene.from.staged(), scene.to.staged()), (0, 0));
    assert!(scene.from.begun() > 0 && scene.to.begun() > 0);
    assert_eq!(scene.target.stats().shm.connections_opened, 1);
    assert_eq!(scene.to.rings(), 1);
    drop(scene.initiator);
    wait_until("the ring is freed", || scene.to.rings() == 0);
}

#[test]
fn other_bytes_take_the_same_connection() {
    let scene = Scene::new(target_config());
    let other = Pool::of_device(PAGE, 1, 2);
    other.fill(0, &pattern(2, 0, PAGE));
    let (lease, grant) = scene.target.grant(&[0, 1, 2], None).unwrap();
    let mut writer = scene.initiator.open(&grant).unwrap();
    let bytes = Source::from_bytes(pattern(3, 0, PAGE));
    writer.write(0, bytes).unwrap();
    writer.write(1, scene.page(1)).unwrap();
    writer
        .write(2, other.region.source(0, ()).unwrap())
        .unwrap();
    writer.finish(Vec::new()).unwrap();
    let _ = lease.complete().unwrap();
    assert!(scene.pool.read(0) == pattern(3, 0, PAGE));
    assert!(scene.pool.read(1) == pattern(1, 1, PAGE));
    assert!(scene.pool.read(2) == pattern(2, 0, PAGE));
    assert_eq!(scene.to.staged(), 0);
}

#[test]
fn a_writer_dropped_with_copies_on_their_way_costs_its_lease_alone() {
    let scene = Scene::new(target_config());
    let (lease, grant) = scene.target.grant(&[0, 1, 2], None).unwrap();
    scene.from.allow(1);
    let mut writer = scene.initiator.open(&grant).unwrap();
    writer.write(0, scene.page(0)).unwrap();
    writer.write(1, scene.page(1)).unwrap();
    wait_until("the first part lands", || lease.landed_bytes() > 0);
    drop(writer);
    assert_eq!(lease.wait(Duration::ZERO), None);
    scene.from.allow(usize::MAX);
    assert_eq!(lease.wait(LONG), Some(LeaseEvent::Abandoned));
    let _ = lease.revoke();
    scene.works();
    assert_eq!(scene.target.stats().shm.connections_opened, 1);
}

#[test]
fn copies_that_end_after_revocation_land_nowhere() {
    let scene = Scene::new(target_config());
    let (lease, grant) = scene.target.grant(&[0, 1], None).unwrap();
    scene.from.allow(2);
    let mut writer = scene.initiator.open(&grant).unwrap();
    writer.write(0, scene.page(3)).unwrap();
    writer.write(1, scene.page(4)).unwrap();
    wait_until("some of the page lands", || lease.landed_bytes() > 0);
    assert!(lease.landed_bytes() < PAGE as u64);
    let ended = lease.revoke();
    for page in ended.pages() {
        scene.pool.fill(*page, &[0xee; PAGE]);
    }
    scene.from.allow(usize::MAX);
    assert_eq!(
        writer.finish(Vec::new()).unwrap_err(),
        WriteError::LeaseEnded
    );
    for page in ended.pages() {
        assert!(scene.pool.read(*page) == [0xee; PAGE]);
    }
    scene.works();
    assert_eq!(scene.target.stats().shm.connections_opened, 1);
}

/// Its connection is given up, and the ring stays until the peer has let go of it.
#[test]
fn a_ring_outlives_its_connection_while_copies_are_on_their_way() {
    let scene = Scene::new(TargetConfig {
        stall: Duration::from_secs(1),
        ..target_config()
    });
    let (lease, grant) = scene.target.grant(&[5], None).unwrap();
    scene.from.allow(1);
    let mut writer = scene.initiator.open(&grant).unwrap();
    writer.write(0, scene.page(0)).unwrap();
    assert_eq!(lease.wait(LONG), Some(LeaseEvent::WriterLost));
    let connections = || scene.target.stats().shm.connections;
    wait_until("its connection goes", || connections() == 0);
    assert_eq!(scene.target.stats().failures(FailureKind::Stalled), 1);
    drop(lease.revoke());
    scene.pool.fill(5, &[0xee; PAGE]);
    // Nothing has told the target that the copies have ended.
    let mut other = initiator(&scene.source);
    let (next, grant) = scene.target.grant(&[6], None).unwrap();
    drop(other.open(&grant).unwrap());
    let _ = next.revoke();
    assert_eq!(scene.to.rings(), 2);
    other = initiator(&scene.source);
    wait_until("the ring of one that has ended is freed", || {
        scene.to.rings() == 1
    });
    drop(other);

    scene.from.allow(usize::MAX);
    let failed = writer.finish(Vec::new()).unwrap_err();
    assert!(matches!(failed, WriteError::Lost(_)), "{failed}");
    wait_until("the ring is freed", || scene.to.rings() == 0);
    assert!(scene.pool.read(5) == [0xee; PAGE]);
    scene.works();
}

#[test]
fn a_ring_that_is_still_written_outlives_its_target() {
    let scene = Scene::new(target_config());
    let (lease, grant) = scene.target.grant(&[5], None).unwrap();
    scene.from.allow(0);
    let mut writer = scene.initiator.open(&grant).unwrap();
    writer.write(0, scene.page(0)).unwrap();
    wait_until("a copy is on its way", || scene.from.begun() > 0);
    drop(scene.target);
    assert_eq!(scene.to.rings(), 1);
    scene.from.allow(usize::MAX);
    let failed = writer.finish(Vec::new()).unwrap_err();
    assert!(matches!(failed, WriteError::Lost(_)), "{failed}");
    let _ = lease.revoke();
}

#[test]
fn what_cannot_go_from_device_to_device_goes_by_way_of_the_host() {
    let checking = TargetConfig {
        checksums: true,
        ..target_config()
    };
    for (config, opens) in [(target_config(), false), (checking, true)] {
        let scene = Scene::new(config);
        if !opens {
            scene.from.refuse();
        }
        scene.works();
        assert_eq!(scene.from.begun(), 0);
        assert!(scene.from.staged() >= PAGES && scene.to.staged() >= PAGES);
        wait_until("no ring is kept", || scene.to.rings() == 0);
        assert_eq!(scene.initiator.stats().shm.connections_opened, 1);
    }
}

#[test]
fn a_target_in_host_memory_is_not_asked_for_a_ring() {
    let scene = Scene::new(target_config());
    let pool = Pool::new(PAGE, 1);
    let target = Target::bind(loopback(), pool.region.clone(), layout(), target_config()).unwrap();
    let (lease, grant) = target.grant(&[0], None).unwrap();
    let mut writer = scene.initiator.open(&grant).unwrap();
    writer.write(0, scene.page(2)).unwrap();
    writer.finish(Vec::new()).unwrap();
    let _ = lease.complete().unwrap();
    assert!(pool.read(0) == pattern(1, 2, PAGE));
    assert_eq!(target.stats().shm.connections_opened, 1);
}

#[test]
fn peers_beyond_those_that_get_a_ring_are_served_all_the_same() {
    const MOST: usize = 16;
    let scene = Scene::new(target_config());
    let peers: Vec<Initiator> = (0..MOST + 2).map(|_| initiator(&scene.source)).collect();
    for peer in &peers {
        let (lease, grant) = scene.target.grant(&[0], None).unwrap();
        let mut writer = peer.open(&grant).unwrap();
        writer.write(0, scene.page(7)).unwrap();
        writer.finish(Vec::new()).unwrap();
        let _ = lease.complete().unwrap();
        assert!(scene.pool.read(0) == pattern(1, 7, PAGE));
    }
    assert_eq!(scene.to.rings(), MOST);
    drop(peers);
    wait_until("all rings are freed", || scene.to.rings() == 0);
    scene.works();
    assert_eq!(scene.to.rings(), 1);
}
