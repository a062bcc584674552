//! Both sides in one process, over both wires.

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use common::{Pool, pattern, wait_until};
use millrace_transfer::{
    BindError, DecodeError, FailureKind, Grant, GrantError, Initiator, InitiatorConfig, Layout,
    LeaseEvent, LeaseTable, MemoryKind, MemoryRegion, OpenError, PageInitiator, PageTarget, Source,
    Target, TargetConfig, Transport, TryWriteError, Wire, WriteError, Written,
};

const PAGE: usize = 100_003; // No multiple of anything.
const LONG: Duration = Duration::from_secs(60);

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn layout() -> Layout {
    Layout::new(PAGE).with("dtype", "bf16").with("layers", 61)
}

fn target(pool: &Pool) -> Target {
    // A ring smaller than a page, so that pages go in parts and the ring wraps.
    let config = TargetConfig {
        ring_bytes: 64 << 10,
        checksums: true,
        ..TargetConfig::default()
    };
    Target::bind(loopback(), pool.region.clone(), layout(), config).unwrap()
}

fn initiator(transport: Transport) -> Initiator {
    Initiator::new(
        layout(),
        InitiatorConfig {
            transport,
            ..InitiatorConfig::default()
        },
    )
}

const BOTH: [Transport; 2] = [Transport::Shm, Transport::Tcp];

#[test]
fn pages_arrive_and_the_message_after_them() {
    for transport in BOTH {
        let pool = Pool::new(PAGE, 20);
        let target = target(&pool);
        let initiator = initiator(transport);
        for round in 0..3u64 {
            let pages = [3, 17, 0, 9, 4];
            let (told, hears) = mpsc::channel();
            let on_event = Box::new(move |event| told.send(event).unwrap());
            let (lease, grant) = target.grant(&pages, Some(on_event)).unwrap();
            let grant = Grant::from_bytes(&grant.to_bytes()).unwrap();
            assert_eq!(grant.pages(), pages);
            let lease = lease.complete().unwrap_err().lease;

            let mut writer = initiator.open(&grant).unwrap();
            for index in [4, 2, 0, 1, 3] {
                writer
                    .write(index, Source::from_bytes(pattern(round, index, PAGE)))
                    .unwrap();
            }
            let written = writer.finish(b"first token: 7".to_vec()).unwrap();
            assert_eq!(
                written,
                Written {
                    pages: 5,
                    bytes: 5 * PAGE as u64
                }
            );

            let announced = LeaseEvent::Announced {
                message: b"first token: 7".to_vec(),
            };
            assert_eq!(lease.wait(Duration::MAX), Some(announced.clone()));
            assert_eq!(hears.recv_timeout(LONG).unwrap(), announced);
            assert_eq!((lease.landed(), lease.landed_bytes()), (5, 5 * PAGE as u64));
            let ended = lease.complete().unwrap();
            for (index, page) in pages.iter().enumerate() {
                assert!(
                    pool.read(*page) == pattern(round, index, PAGE),
                    "page {page}"
                );
            }
            assert_eq!(ended.into_pages(), pages);
            // Nothing else was touched.
            assert!(
                (0..20)
                    .filter(|page| !pages.contains(page))
                    .all(|page| pool.read(page) == vec![0; PAGE])
            );
        }
        let wire = if transport == Transport::Shm {
            Wire::Shm
        } else {
            Wire::Tcp
        };
        for stats in [target.stats(), initiator.stats()] {
            let seen = stats.wire(wire);
            assert_eq!(
                (seen.pages, seen.bytes, seen.notifications),
                (15, 15 * PAGE as u64, 3)
            );
            assert_eq!(
                (seen.connections, seen.connections_opened, seen.in_flight),
                (1, 1, 0)
            );
            assert!(seen.wire_seconds > 0.0);
            assert!(stats.failures.iter().all(|(_, count)| *count == 0));
        }
        let leases = target.stats().leases;
        assert_eq!(
            (
                leases.granted,
                leases.completed,
                leases.active,
                leases.active_pages
            ),
            (3, 3, 0, 0)
        );
        // The initiator's end closes the connection, and the target lets go of its ring.
        drop(initiator);
        wait_until("the connection closes", || {
            target.stats().wire(wire).connections == 0
        });
    }
}

#[test]
fn auto_takes_shared_memory_where_it_can_and_tcp_where_not() {
    let pool = Pool::new(PAGE, 2);
    let both = target(&pool);
    let (lease, grant) = both.grant(&[0], None).unwrap();
    let initiator = initiator(Transport::Auto);
    assert_eq!(initiator.open(&grant).unwrap().wire(), Wire::Shm);
    let _ = lease.revoke();

    let config = TargetConfig {
        shm: false,
        ..TargetConfig::default()
    };
    let no_shm = Target::bind(loopback(), pool.region.clone(), layout(), config).unwrap();
    let (lease, grant) = no_shm.grant(&[0], None).unwrap();
    assert_eq!(initiator.open(&grant).unwrap().wire(), Wire::Tcp);
    let only_shm = self::initiator(Transport::Shm);
    assert!(matches!(
        only_shm.open(&grant).err().unwrap(),
        OpenError::NoAddress("shm")
    ));
    let _ = lease.revoke();
}

#[test]
fn sources_are_kept_until_acknowledged_and_then_let_go() {
    struct Hold(Arc<AtomicUsize>);
    impl Drop for Hold {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    for transport in BOTH {
        let (from, to) = (Pool::new(PAGE, 4), Pool::new(PAGE, 4));
        (0..4).for_each(|page| from.fill(page, &pattern(9, page as usize, PAGE)));
        let target = target(&to);
        let initiator = initiator(transport);
        let (lease, grant) = target.grant(&[3, 2, 1, 0], None).unwrap();
        let dropped = Arc::new(AtomicUsize::new(0));
        let mut writer = initiator.open(&grant).unwrap();
        for index in 0..4 {
            writer
                .write(
                    index,
                    from.region
                        .source(index as u32, Hold(dropped.clone()))
                        .unwrap(),
                )
                .unwrap();
        }
        writer.finish(Vec::new()).unwrap();
        assert_eq!(dropped.load(Ordering::SeqCst), 4);
        let _ = lease.complete().unwrap();
        assert!((0..4).all(|page| to.read(page) == from.read(3 - page)));
    }
}

#[test]
fn sources_have_been_let_go_when_a_failure_is_told() {
    struct Hold(Arc<AtomicUsize>);
    impl Drop for Hold {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
    for transport in BOTH {
        let (from, to) = (Pool::new(PAGE, 1), Pool::new(PAGE, 64));
        let target = target(&to);
        let initiator = initiator(transport);
        let held = Arc::new(AtomicUsize::new(0));
        for round in 0..20 {
            let pages: Vec<u32> = (0..64).collect();
            let (lease, grant) = target.grant(&pages, None).unwrap();
            let mut writer = initiator.open(&grant).unwrap();
            let mut lease = Some(lease);
            for index in 0..64 {
                held.fetch_add(1, Ordering::SeqCst);
                let page = from.region.source(0, Hold(held.clone())).unwrap();
                // It may have failed by then.
                let _ = writer.write(index, page);
                if index == round * 3 {
                    let _ = lease.take().unwrap().revoke();
                }
            }
            assert!(writer.finish(Vec::new()).is_err());
            assert_eq!(held.load(Ordering::SeqCst), 0);
        }
    }
}

#[test]
fn a_full_queue_hands_the_source_back() {
    let pool = Pool::new(PAGE, 8);
    let target = target(&pool);
    let config = InitiatorConfig {
        transport: Transport::Shm,
        queue_pages: 1,
        ..InitiatorConfig::default()
    };
    let initiator = Initiator::new(layout(), config);
    let pages: Vec<u32> = (0..8).collect();
    let (lease, grant) = target.grant(&pages, None).unwrap();
    let mut writer = initiator.open(&grant).unwrap();
    // A source that holds the connection's thread until it is let go: the queue stays full.
    let (go, gate) = mpsc::channel::<()>();
    struct Gated(
        Vec<u8>,
        parking_lot::Mutex<Option<mpsc::Receiver<()>>>,
        std::thread::ThreadId,
    );
    impl AsRef<[u8]> for Gated {
        fn as_ref(&self) -> &[u8] {
            if std::thread::current().id() != self.2
                && let Some(gate) = self.1.lock().take()
            {
                let _ = gate.recv();
            }
            &self.0
        }
    }
    let gated = Gated(
        pattern(1, 0, PAGE),
        parking_lot::Mutex::new(Some(gate)),
        std::thread::current().id(),
    );
    writer.write(0, Source::from_bytes(gated)).unwrap();
    assert_eq!(writer.pending(), 1);
    let refused = writer
        .try_write(1, Source::from_bytes(pattern(1, 1, PAGE)))
        .unwrap_err();
    let TryWriteError::Full(source) = refused else {
        panic!("{refused}")
    };
    go.send(()).unwrap();
    // `write` waits for room.
    writer.write(1, source).unwrap();
    for index in 2..8 {
        writer
            .write(index, Source::from_bytes(pattern(1, index, PAGE)))
            .unwrap();
    }
    writer.finish(Vec::new()).unwrap();
    let _ = lease.complete().unwrap();
    assert!(
        pages
            .iter()
            .all(|page| pool.read(*page) == pattern(1, *page as usize, PAGE))
    );
}

#[test]
fn slips_of_the_writer_are_caught_before_they_are_sent() {
    let pool = Pool::new(PAGE, 4);
    let target = target(&pool);
    let initiator = initiator(Transport::Shm);
    let (lease, grant) = target.grant(&[0, 1], None).unwrap();
    let page = || Source::from_bytes(vec![1; PAGE]);
    let mut writer = initiator.open(&grant).unwrap();
    assert_eq!(
        writer.write(2, page()),
        Err(WriteError::IndexOutOfRange { index: 2, pages: 2 })
    );
    let short = Source::from_bytes(vec![1; PAGE - 1]);
    assert_eq!(
        writer.write(0, short),
        Err(WriteError::WrongLength {
            bytes: PAGE - 1,
            page_bytes: PAGE
        })
    );
    writer.write(1, page()).unwrap();
    assert_eq!(
        writer.write(1, page()),
        Err(WriteError::WrittenTwice { index: 1 })
    );
    assert_eq!(
        writer.finish(Vec::new()),
        Err(WriteError::MissingPages {
            missing: 1,
            pages: 2
        })
    );
    assert_eq!(lease.wait(LONG), Some(LeaseEvent::Abandoned));

    let (next, grant) = target.grant(&[2], None).unwrap();
    let mut writer = initiator.open(&grant).unwrap();
    writer.write(0, page()).unwrap();
    let too_long = writer.finish(vec![0; 65 << 10]);
    assert_eq!(
        too_long,
        Err(WriteError::MessageTooLong {
            bytes: 65 << 10,
            limit: 64 << 10
        })
    );
    // SAFETY: never followed: a device's memory is refused.
    let device =
        unsafe { MemoryRegion::new(8 as *mut u8, PAGE, 1, MemoryKind::Device(3), ()).unwrap() };
    let (last, grant) = target.grant(&[3], None).unwrap();
    let mut writer = initiator.open(&grant).unwrap();
    assert_eq!(
        writer.write(0, device.source(0, ()).unwrap()),
        Err(WriteError::DeviceMemory(3))
    );
    drop(writer);
    let refused = Target::bind(loopback(), device, layout(), TargetConfig::default()).err();
    assert!(matches!(refused, Some(BindError::DeviceMemory(3))));
    for lease in [lease, next, last] {
        let _ = lease.revoke();
    }
    // All of this went over one connection, which none of it has cost.
    assert_eq!(initiator.stats().shm.connections_opened, 1);
}

#[test]
fn a_revoked_lease_takes_no_more_and_leaves_the_connection_alone() {
    for transport in BOTH {
        let pool = Pool::new(PAGE, 4);
        let target = target(&pool);
        let initiator = initiator(transport);
        let (lease, grant) = target.grant(&[0, 1], None).unwrap();
        let (other, other_grant) = target.grant(&[2, 3], None).unwrap();
        let mut writer = initiator.open(&grant).unwrap();
        let mut other_writer = initiator.open(&other_grant).unwrap();
        writer
            .write(0, Source::from_bytes(pattern(1, 0, PAGE)))
            .unwrap();
        wait_until("the first page lands", || lease.landed() == 1);
        let ended = lease.revoke();
        assert_eq!(ended.pages(), [0, 1]);
        // The pages are their owner's again.
        [0, 1]
            .iter()
            .for_each(|page| pool.fill(*page, &[0xee; PAGE]));
        writer
            .write(1, Source::from_bytes(pattern(1, 1, PAGE)))
            .unwrap();
        assert_eq!(writer.finish(Vec::new()), Err(WriteError::LeaseEnded));
        for index in 0..2 {
            other_writer
                .write(index, Source::from_bytes(pattern(2, index, PAGE)))
                .unwrap();
        }
        other_writer.finish(Vec::new()).unwrap();
        let _ = other.complete().unwrap();
        assert!([0, 1].iter().all(|page| pool.read(*page) == [0xee; PAGE]));
        assert!((0..2).all(|index| pool.read(2 + index as u32) == pattern(2, index, PAGE)));
        let failures = target.stats();
        // The write, and the announcement too if it was sent before the write's answer came.
        let ended = failures.failures(FailureKind::LeaseEnded);
        assert!((1..=2).contains(&ended));
        assert_eq!(initiator.stats().failures(FailureKind::LeaseEnded), ended);
        assert_eq!(
            failures.shm.connections_opened + failures.tcp.connections_opened,
            1
        );
    }
}

#[test]
fn peers_that_do_not_fit_are_refused_by_the_field_that_differs() {
    let pool = Pool::new(PAGE, 4);
    let target = target(&pool);
    for transport in BOTH {
        let (lease, grant) = target.grant(&[0], None).unwrap();
        let config = InitiatorConfig {
            transport,
            ..InitiatorConfig::default()
        };
        let refused = |layout: Layout| {
            Initiator::new(layout, config.clone())
                .open(&grant)
                .err()
                .unwrap()
        };
        let mismatch = |field: &str, ours: &str, theirs: &str| OpenError::Mismatch {
            field: field.into(),
            ours: ours.into(),
            theirs: theirs.into(),
        };
        let other = Layout::new(PAGE + 1)
            .with("dtype", "bf16")
            .with("layers", 61);
        assert_eq!(
            refused(other),
            mismatch("page bytes", &(PAGE + 1).to_string(), &PAGE.to_string())
        );
        let other = Layout::new(PAGE).with("dtype", "f32").with("layers", 61);
        assert_eq!(refused(other), mismatch("dtype", "f32", "bf16"));
        let other = Layout::new(PAGE).with("dtype", "bf16").with("layers", 27);
        assert_eq!(refused(other), mismatch("layers", "27", "61"));
        assert_eq!(
            refused(Layout::new(PAGE).with("dtype", "bf16")),
            mismatch("layers", "(absent)", "61")
        );
        let _ = lease.revoke();
    }
    // The page size is refused before any connection is made; the other three met the target.
    assert_eq!(target.stats().failures(FailureKind::Mismatch), 6);
}

#[test]
fn a_restarted_target_refuses_old_grants_and_takes_new_ones() {
    let pool = Pool::new(PAGE, 2);
    let first = target(&pool);
    let address = first.address();
    let initiator = initiator(Transport::Tcp);
    let (lease, old) = first.grant(&[0], None).unwrap();
    let writer = initiator.open(&old).unwrap();
    drop(first);
    assert!(matches!(
        writer.finish(Vec::new()),
        Err(WriteError::MissingPages { .. } | WriteError::Lost(_))
    ));
    let _ = lease.revoke();
    wait_until("the initiator notices", || {
        initiator.stats().tcp.connections == 0
    });

    let second = Target::bind(
        address,
        pool.region.clone(),
        layout(),
        TargetConfig::default(),
    )
    .unwrap();
    assert_eq!(
        initiator.open(&old).err().unwrap(),
        OpenError::OtherIncarnation
    );
    let (lease, grant) = second.grant(&[0], None).unwrap();
    let mut writer = initiator.open(&grant).unwrap();
    writer
        .write(0, Source::from_bytes(pattern(5, 0, PAGE)))
        .unwrap();
    writer.finish(Vec::new()).unwrap();
    let _ = lease.complete().unwrap();
    assert!(pool.read(0) == pattern(5, 0, PAGE));

    // Nobody listens any more.
    drop(second);
    wait_until("the initiator notices", || {
        initiator.stats().tcp.connections == 0
    });
    let refused = initiator.open(&grant).err().unwrap();
    assert!(matches!(refused, OpenError::Connect { .. }), "{refused}");
}

#[test]
fn too_many_connections_are_turned_away_and_room_is_made_again() {
    for transport in BOTH {
        let pool = Pool::new(PAGE, 2);
        let config = TargetConfig {
            max_connections: 1,
            ..TargetConfig::default()
        };
        let target = Target::bind(loopback(), pool.region.clone(), layout(), config).unwrap();
        let (lease, grant) = target.grant(&[0], None).unwrap();
        let first = initiator(transport);
        let writer = first.open(&grant).unwrap();
        let second = initiator(transport);
        assert_eq!(second.open(&grant).err().unwrap(), OpenError::Busy);
        drop(writer);
        drop(first);
        wait_until("a place is free", || second.open(&grant).is_ok());
        let _ = lease.revoke();
    }
}

#[test]
fn idle_connections_close_and_used_ones_stay() {
    for transport in BOTH {
        let pool = Pool::new(PAGE, 2);
        let idle = Duration::from_millis(900);
        let config = TargetConfig {
            idle,
            ..TargetConfig::default()
        };
        let target = Target::bind(loopback(), pool.region.clone(), layout(), config).unwrap();
        // More patient than the target, whose time counts.
        let config = InitiatorConfig {
            transport,
            ..InitiatorConfig::default()
        };
        let initiator = Initiator::new(layout(), config);
        let open = || target.stats().shm.connections + target.stats().tcp.connections;
        let (lease, grant) = target.grant(&[0], None).unwrap();
        let mut writer = initiator.open(&grant).unwrap();
        // Longer than the target bears silence: signs of life keep it open.
        std::thread::sleep(2 * idle);
        writer
            .write(0, Source::from_bytes(pattern(1, 0, PAGE)))
            .unwrap();
        writer.finish(Vec::new()).unwrap();
        let _ = lease.complete().unwrap();
        wait_until("the unused connection closes", || open() == 0);
        // And the next grant opens another.
        let (lease, grant) = target.grant(&[1], None).unwrap();
        let mut writer = initiator.open(&grant).unwrap();
        writer
            .write(0, Source::from_bytes(pattern(2, 0, PAGE)))
            .unwrap();
        writer.finish(Vec::new()).unwrap();
        let _ = lease.complete().unwrap();
        assert!(
            initiator
                .stats()
                .failures
                .iter()
                .all(|(_, count)| *count == 0)
        );
    }
}

#[test]
fn dropping_an_initiator_fails_what_is_in_flight() {
    for transport in BOTH {
        let pool = Pool::new(PAGE, 2);
        let target = target(&pool);
        let initiator = initiator(transport);
        let (lease, grant) = target.grant(&[0, 1], None).unwrap();
        let mut writer = initiator.open(&grant).unwrap();
        writer
            .write(0, Source::from_bytes(pattern(1, 0, PAGE)))
            .unwrap();
        drop(initiator);
        assert_eq!(
            writer.write(1, Source::from_bytes(pattern(1, 1, PAGE))),
            Err(WriteError::Closed)
        );
        drop(writer);
        let _ = lease.revoke();
    }
}

#[test]
fn grants_that_cannot_be_are_refused() {
    let pool = Pool::new(PAGE, 4);
    let target = target(&pool);
    let refused = |pages: &[u32]| target.grant(pages, None).err().unwrap();
    assert_eq!(refused(&[]), GrantError::NoPages);
    assert_eq!(
        refused(&[1, 4]),
        GrantError::OutOfRange { page: 4, pages: 4 }
    );
    assert_eq!(refused(&[1, 2, 1]), GrantError::AlreadyLeased { page: 1 });
    let (lease, _) = target.grant(&[0, 2], None).unwrap();
    assert_eq!(refused(&[1, 2]), GrantError::AlreadyLeased { page: 2 });
    // What was refused has taken nothing.
    let (rest, _) = target.grant(&[1, 3], None).unwrap();
    assert_eq!(target.stats().leases.active_pages, 4);
    let _ = (lease.revoke(), rest.revoke());
    assert_eq!(target.stats().leases.active_pages, 0);
    let unspecified = "0.0.0.0:0".parse().unwrap();
    let refused = Target::bind(
        unspecified,
        pool.region.clone(),
        layout(),
        TargetConfig::default(),
    )
    .err();
    assert!(matches!(refused, Some(BindError::Unspecified { .. })));
    let refused = Target::bind(
        loopback(),
        pool.region,
        Layout::new(7),
        TargetConfig::default(),
    )
    .err();
    assert!(matches!(
        refused,
        Some(BindError::PageBytes {
            region: PAGE,
            layout: 7
        })
    ));
}

#[test]
fn a_dropped_lease_is_ended_and_counted() {
    let pool = Pool::new(PAGE, 2);
    let table = LeaseTable::new(pool.region.clone());
    drop(table.lease(&[0], None).unwrap());
    let lease = table.lease(&[0, 1], None).unwrap();
    assert_eq!((lease.wait(Duration::ZERO), lease.landed()), (None, 0));
    assert_eq!(lease.revoke().into_pages(), [0, 1]);
    let stats = table.stats();
    assert_eq!(
        (stats.granted, stats.dropped, stats.revoked, stats.active),
        (2, 1, 1, 0)
    );
}

#[test]
fn grants_decode_strictly() {
    let pool = Pool::new(PAGE, 4);
    let config = TargetConfig {
        advertise: vec![
            "192.0.2.7:9".parse().unwrap(),
            "[2001:db8::7]:10".parse().unwrap(),
        ],
        ..TargetConfig::default()
    };
    let target = Target::bind("0.0.0.0:0".parse().unwrap(), pool.region, layout(), config).unwrap();
    let (lease, grant) = target.grant(&[3, 1], None).unwrap();
    let bytes = grant.to_bytes();
    assert_eq!(Grant::from_bytes(&bytes).unwrap(), grant);
    for cut in 0..bytes.len() {
        assert_eq!(
            Grant::from_bytes(&bytes[..cut]),
            Err(DecodeError::Truncated),
            "cut at {cut}"
        );
    }
    let longer = [bytes.as_slice(), &[0]].concat();
    assert_eq!(Grant::from_bytes(&longer), Err(DecodeError::Trailing(1)));
    let mut other = bytes.clone();
    other[0] ^= 1;
    assert_eq!(Grant::from_bytes(&other), Err(DecodeError::Magic));
    let mut other = bytes;
    other[4] += 1;
    assert_eq!(
        Grant::from_bytes(&other),
        Err(DecodeError::Version { ours: 1, theirs: 2 })
    );
    // The key is a secret.
    assert!(!format!("{grant:?}").contains("key"));
    let _ = lease.revoke();
}

#[test]
fn a_panicking_callback_or_source_fails_its_connection_and_nothing_else() {
    for transport in BOTH {
        let pool = Pool::new(PAGE, 2);
        let target = target(&pool);
        let initiator = initiator(transport);
        // The lease owner's.
        let panics = Box::new(|_| panic!("a callback that panics (expected)"));
        let (lease, grant) = target.grant(&[0], Some(panics)).unwrap();
        let mut writer = initiator.open(&grant).unwrap();
        writer
            .write(0, Source::from_bytes(pattern(1, 0, PAGE)))
            .unwrap();
        assert!(matches!(
            writer.finish(Vec::new()),
            Err(WriteError::Lost(_))
        ));
        // It had been announced all the same.
        let _ = lease.complete().unwrap();
        // The writer's.
        let (lease, grant) = target.grant(&[0], None).unwrap();
        let mut writer = initiator.open(&grant).unwrap();
        struct Panics(Vec<u8>, std::thread::ThreadId);
        impl AsRef<[u8]> for Panics {
            fn as_ref(&self) -> &[u8] {
                let at_home = std::thread::current().id() == self.1;
                assert!(at_home, "a source that panics (expected)");
                &self.0
            }
        }
        let panics = Panics(vec![0; PAGE], std::thread::current().id());
        writer.write(0, Source::from_bytes(panics)).unwrap();
        assert!(matches!(
            writer.finish(Vec::new()),
            Err(WriteError::Lost(_))
        ));
        let _ = lease.revoke();
        // And on it goes.
        let (lease, grant) = target.grant(&[0, 1], None).unwrap();
        let mut writer = initiator.open(&grant).unwrap();
        for index in 0..2 {
            writer
                .write(index, Source::from_bytes(pattern(3, index, PAGE)))
                .unwrap();
        }
        writer.finish(Vec::new()).unwrap();
        let _ = lease.complete().unwrap();
        assert_eq!(
            initiator.stats().shm.in_flight + initiator.stats().tcp.in_flight,
            0
        );
    }
}

#[test]
fn many_writers_share_a_connection() {
    for transport in BOTH {
        let pool = Pool::new(PAGE, 64);
        let target = target(&pool);
        let initiator = initiator(transport);
        std::thread::scope(|scope| {
            for thread in 0..8u32 {
                let (target, initiator, pool) = (&target, &initiator, &pool);
                scope.spawn(move || {
                    for round in 0..10u64 {
                        let pages: Vec<u32> = (0..8).map(|page| page * 8 + thread).collect();
                        let (lease, grant) = target.grant(&pages, None).unwrap();
                        let mut writer = initiator.open(&grant).unwrap();
                        let seed = u64::from(thread) << 32 | round;
                        for index in 0..8 {
                            let page = Source::from_bytes(pattern(seed, index, PAGE));
                            writer.write(index, page).unwrap();
                        }
                        writer.finish(Vec::new()).unwrap();
                        let _ = lease.complete().unwrap();
                        for (index, page) in pages.iter().enumerate() {
                            assert!(pool.read(*page) == pattern(seed, index, PAGE));
                        }
                    }
                });
            }
        });
        let stats = initiator.stats();
        assert_eq!(
            stats.shm.connections_opened + stats.tcp.connections_opened,
            1
        );
        assert_eq!(stats.shm.pages + stats.tcp.pages, 640);
    }
}
