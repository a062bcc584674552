//! Pages from one side to the other in one process, over both wires.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use common::sides::{ALL, LONG, PAGE, initiator, layout, loopback, target, target_config, total};
use common::{Pool, pattern, wait_until};
use millrace_transfer::{
    FailureKind, Grant, Initiator, InitiatorConfig, LeaseEvent, MemoryKind, PageInitiator,
    PageTarget, Source, Target, TargetConfig, Transport, TryWriteError, Wire, WriteError, Written,
};

#[test]
fn pages_arrive_and_the_message_after_them() {
    for &transport in ALL {
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
        let wire = match transport {
            Transport::Shm => Wire::Shm,
            Transport::Nixl => Wire::Nixl,
            _ => Wire::Tcp,
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
fn sources_are_kept_until_acknowledged_and_then_let_go() {
    struct Hold(Arc<AtomicUsize>);
    impl Drop for Hold {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    for &transport in ALL {
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
    for &transport in ALL {
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
    let initiator = Initiator::new(layout(), config).unwrap();
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
    for lease in [lease, next] {
        let _ = lease.revoke();
    }
    // All of this went over one connection, which none of it has cost.
    assert_eq!(initiator.stats().shm.connections_opened, 1);
}

/// From one device's memory into another's, neither of which the host can follow pointers into. With checksums
/// and without; and a lease that ends keeps the page as it is.
#[test]
fn pages_of_devices_travel_by_way_of_the_host() {
    for &transport in ALL {
        for checksums in [false, true] {
            let (from, to) = (Pool::of_device(PAGE, 3, 0), Pool::of_device(PAGE, 3, 1));
            let config = TargetConfig {
                checksums,
                ..target_config()
            };
            let target = Target::bind(loopback(), to.region.clone(), layout(), config).unwrap();
            let initiator = initiator(transport);
            for (page, seed) in [(0, 1), (1, 2), (2, 3)] {
                from.fill(page, &pattern(seed, 0, PAGE));
            }
            let (lease, grant) = target.grant(&[2, 0], None).unwrap();
            assert_eq!(grant.memory(), MemoryKind::Device(1));
            let mut writer = initiator.open(&grant).unwrap();
            writer.write(0, from.region.source(1, ()).unwrap()).unwrap();
            writer.write(1, from.region.source(0, ()).unwrap()).unwrap();
            writer.finish(b"done".to_vec()).unwrap();
            assert!(matches!(
                lease.wait(LONG),
                Some(LeaseEvent::Announced { .. })
            ));
            drop(lease.complete().unwrap().into_pages());
            assert_eq!(to.read(2), pattern(2, 0, PAGE), "{transport:?}");
            assert_eq!(to.read(0), pattern(1, 0, PAGE), "{transport:?}");

            let (lease, grant) = target.grant(&[2], None).unwrap();
            let mut writer = initiator.open(&grant).unwrap();
            drop(lease.revoke().into_pages());
            let _ = writer.write(0, from.region.source(2, ()).unwrap());
            assert!(writer.finish(Vec::new()).is_err());
            assert_eq!(to.read(2), pattern(2, 0, PAGE), "{transport:?}");
        }
    }
}

#[test]
fn a_revoked_lease_takes_no_more_and_leaves_the_connection_alone() {
    for &transport in ALL {
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
        assert_eq!(total(&failures, |wire| wire.connections_opened), 1);
    }
}

#[test]
fn many_writers_share_a_connection() {
    for &transport in ALL {
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
        assert_eq!(total(&stats, |wire| wire.connections_opened), 1);
        assert_eq!(total(&stats, |wire| wire.pages), 640);
    }
}
