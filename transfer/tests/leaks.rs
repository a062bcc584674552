//! A thousand requests that come to nothing leave nothing behind. Alone in its process, because it
//! counts the process's descriptors, mappings and threads.

mod common;

use common::sides::{ALL, target_config, total};
use common::{Pool, pattern, wait_until};
use millrace_transfer::{
    FailureKind, Grant, Initiator, InitiatorConfig, Layout, PageInitiator, PageTarget, Source,
    Target, Wire,
};

const PAGE: usize = 20_000;

#[derive(Debug, PartialEq, Eq)]
struct Held {
    descriptors: usize,
    rings: usize,
    threads: usize,
}

fn held() -> Held {
    let count = |path: &str| std::fs::read_dir(path).unwrap().count();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let rings = maps
        .lines()
        .filter(|line| line.contains("millrace-ring"))
        .count();
    Held {
        descriptors: count("/proc/self/fd"),
        rings,
        threads: count("/proc/self/task"),
    }
}

#[test]
fn a_thousand_abandoned_grants_leave_nothing() {
    let pool = Pool::new(PAGE, 8);
    let target = Target::bind(
        "127.0.0.1:0".parse().unwrap(),
        pool.region.clone(),
        Layout::new(PAGE),
        target_config(),
    )
    .unwrap();
    // Each once before anything is counted: what a process keeps from the first use on is no leak.
    for &transport in ALL {
        let config = InitiatorConfig {
            transport,
            ..InitiatorConfig::default()
        };
        let initiator = Initiator::new(Layout::new(PAGE), config).unwrap();
        let (lease, grant) = target.grant(&[1], None).unwrap();
        drop(initiator.open(&grant).unwrap());
        let _ = lease.revoke();
    }
    let connections = || total(&target.stats(), |wire| wire.connections);
    wait_until("the first connections go", || connections() == 0);
    let before = held();
    for &transport in ALL {
        let config = InitiatorConfig {
            transport,
            ..InitiatorConfig::default()
        };
        let mut initiator = Initiator::new(Layout::new(PAGE), config.clone()).unwrap();
        for round in 0..1000u64 {
            let (lease, grant) = target.grant(&[1, 3, 5, 7], None).unwrap();
            let grant = Grant::from_bytes(&grant.to_bytes()).unwrap();
            // Some never reach the initiator, some are opened, some half written.
            if round % 4 > 0 {
                let mut writer = initiator.open(&grant).unwrap();
                for index in 0..(round % 4) as usize {
                    writer
                        .write(index, Source::from_bytes(pattern(round, index, PAGE)))
                        .unwrap();
                }
                if round % 8 < 4 {
                    drop(writer);
                    let _ = lease.revoke();
                } else {
                    let _ = lease.revoke();
                    drop(writer);
                }
            } else {
                let _ = lease.revoke();
            }
            if round % 50 == 0 {
                // Its connection goes with it.
                initiator = Initiator::new(Layout::new(PAGE), config.clone()).unwrap();
            }
        }
        drop(initiator);
    }
    wait_until("everything is given back", || held() == before);
    let stats = target.stats();
    let leases = 1001 * ALL.len() as u64;
    assert_eq!(
        (stats.leases.granted, stats.leases.revoked),
        (leases, leases)
    );
    assert_eq!(
        (
            stats.leases.active,
            stats.leases.active_pages,
            stats.leases.dropped
        ),
        (0, 0, 0)
    );
    for wire in Wire::ALL.map(|wire| stats.wire(wire)) {
        assert_eq!((wire.connections, wire.in_flight), (0, 0));
    }
    let opened = total(&stats, |wire| wire.connections_opened);
    assert_eq!(opened, 21 * ALL.len() as u64);
    // Nothing but what was abandoned counts as a failure.
    let others = stats.failures.iter().filter(|(kind, _)| {
        !matches!(
            kind,
            FailureKind::Abandoned | FailureKind::LeaseEnded | FailureKind::Lost
        )
    });
    assert!(
        others.clone().all(|(_, count)| *count == 0),
        "{:?}",
        stats.failures
    );
    // The untouched pages in between stayed so.
    assert!(
        [0, 2, 4, 6]
            .iter()
            .all(|page| pool.read(*page) == vec![0; PAGE])
    );
}
