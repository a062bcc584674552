//! How connections are made, refused, kept and lost, over both wires.

mod common;

use std::time::Duration;

use common::sides::{self, ALL, PAGE, initiator, layout, loopback, target, target_config, total};
use common::{Pool, pattern, wait_until};
use millrace_transfer::{
    FailureKind, Initiator, InitiatorConfig, Layout, OpenError, PageInitiator, PageTarget, Source,
    Target, TargetConfig, Transport, Wire, WriteError,
};

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
        ..target_config()
    };
    let no_shm = Target::bind(loopback(), pool.region.clone(), layout(), config).unwrap();
    let (lease, grant) = no_shm.grant(&[0], None).unwrap();
    assert_eq!(initiator.open(&grant).unwrap().wire(), Wire::Tcp);
    let only_shm = sides::initiator(Transport::Shm);
    assert!(matches!(
        only_shm.open(&grant).err().unwrap(),
        OpenError::NoAddress("shm")
    ));
    let _ = lease.revoke();
}

#[test]
fn peers_that_do_not_fit_are_refused_by_the_field_that_differs() {
    let pool = Pool::new(PAGE, 4);
    let target = target(&pool);
    for &transport in ALL {
        let (lease, grant) = target.grant(&[0], None).unwrap();
        let config = InitiatorConfig {
            transport,
            ..InitiatorConfig::default()
        };
        let refused = |layout: Layout| {
            Initiator::new(layout, config.clone())
                .unwrap()
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
    assert_eq!(
        target.stats().failures(FailureKind::Mismatch),
        3 * ALL.len() as u64
    );
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
    for &transport in ALL {
        let pool = Pool::new(PAGE, 2);
        let config = TargetConfig {
            max_connections: 1,
            ..target_config()
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
    for &transport in ALL {
        let pool = Pool::new(PAGE, 2);
        let idle = Duration::from_millis(900);
        let config = TargetConfig {
            idle,
            ..target_config()
        };
        let target = Target::bind(loopback(), pool.region.clone(), layout(), config).unwrap();
        // More patient than the target, whose time counts.
        let config = InitiatorConfig {
            transport,
            ..InitiatorConfig::default()
        };
        let initiator = Initiator::new(layout(), config).unwrap();
        let open = || total(&target.stats(), |wire| wire.connections);
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
    for &transport in ALL {
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
fn a_panicking_callback_or_source_fails_its_connection_and_nothing_else() {
    for &transport in ALL {
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
        assert_eq!(total(&initiator.stats(), |wire| wire.in_flight), 0);
    }
}
