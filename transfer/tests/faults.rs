//! Peers that are other processes, and die, stop, or go away.
//!
//! The peer is this test program again: it runs [`peer`] alone, takes commands on its standard
//! input and answers on its standard output.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::peer::{IS_PEER, Peer, hex, say, unhex};
use common::sides::total;
use common::{Pool, pattern, wait_until};
use millrace_transfer::{
    FailureKind, Grant, Initiator, InitiatorConfig, Layout, LeaseEvent, NixlConfig, PageInitiator,
    PageTarget, Source, Target, TargetConfig, Transport, WriteError,
};

/// Large against the ring and against what a socket takes at once, so that a page goes in parts.
const PAGE: usize = 8 << 20;
const PAGES: usize = 4;
const LONG: Duration = Duration::from_secs(60);
const ALL: &[&str] = match cfg!(feature = "nixl") {
    true => &["shm", "tcp", "nixl"],
    false => &["shm", "tcp"],
};

// ---- the peer's side --------------------------------------------------------------------------

/// What a peer does to itself in the middle of a page.
#[derive(Clone, Copy, PartialEq)]
enum Act {
    Nothing,
    Stop,
    Kill,
}

struct Page {
    bytes: Vec<u8>,
    act: Act,
    /// At which look: the fourth part or so of a page. By NIXL parts are told of only once they are
    /// there, so there it is one for which the target must have taken the first.
    at: usize,
    looks: AtomicUsize,
}

impl AsRef<[u8]> for Page {
    /// Looked at once when queued and once for every part (and with checksums once when begun).
    fn as_ref(&self) -> &[u8] {
        let signal = match self.act {
            Act::Nothing => return &self.bytes,
            Act::Stop => libc::SIGSTOP,
            Act::Kill => libc::SIGKILL,
        };
        if self.looks.fetch_add(1, Ordering::Relaxed) == self.at {
            // To this very thread, which must not send another byte meanwhile.
            // SAFETY: no memory is involved.
            unsafe { libc::raise(signal) };
        }
        &self.bytes
    }
}

/// Not a test: the body of the peer processes.
#[test]
fn peer() {
    match std::env::var(IS_PEER).as_deref() {
        Ok("target") => peer_target(),
        Ok("poor target") => peer_poor_target(),
        Ok(wire) => peer_initiator(wire),
        Err(_) => {}
    }
}

fn peer_initiator(wire: &str) {
    let initiator = initiator(wire, LONG);
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let [verb, act, grant] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        let grant = Grant::from_bytes(&unhex(grant)).unwrap();
        let mut writer = initiator.open(&grant).unwrap();
        if verb == "open" {
            say("opened");
            std::mem::forget(writer);
            continue;
        }
        let act = match act {
            "stop" => Act::Stop,
            "kill" => Act::Kill,
            _ => Act::Nothing,
        };
        for index in 0..grant.pages().len() {
            // The second page is the one in which it happens, if there are two.
            let act = if index == grant.pages().len().min(2) - 1 {
                act
            } else {
                Act::Nothing
            };
            let page = Page {
                bytes: pattern(grant.lease(), index, PAGE),
                act,
                at: if wire == "nixl" { 8 } else { 5 },
                looks: AtomicUsize::new(0),
            };
            if writer.write(index, Source::from_bytes(page)).is_err() {
                break;
            }
        }
        match writer.finish(b"done".to_vec()) {
            Ok(_) => say("finished"),
            Err(error) => say(&format!("failed {error:?}")),
        }
    }
}

/// Grants all its pages to whoever reads the line, once, and then lives until it is killed.
fn peer_target() {
    let target = bind(&Pool::new(PAGE, PAGES), LONG);
    let (lease, grant) = target
        .grant(&(0..PAGES as u32).collect::<Vec<_>>(), None)
        .unwrap();
    say(&hex(&grant.to_bytes()));
    let _ = std::io::stdin().lines().count();
    let _ = lease.revoke();
}

/// Has not enough memory for what one peer's ring would need; grants a page a line that it reads.
fn peer_poor_target() {
    let pool = Pool::new(PAGE, PAGES);
    let config = TargetConfig {
        shm: false,
        nixl: Some(NixlConfig {
            ring_bytes: 3 << 30,
            ..NixlConfig::default()
        }),
        ..TargetConfig::default()
    };
    let address = "127.0.0.1:0".parse().unwrap();
    let target = Target::bind(address, pool.region, Layout::new(PAGE), config).unwrap();
    let used = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = used.split(' ').next().unwrap().parse().unwrap();
    let limit = libc::rlimit {
        rlim_cur: pages * 4096 + (1 << 30),
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: a local of the right type; only this process is limited.
    let limited = unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limit) };
    assert_eq!(limited, 0);
    for _ in std::io::stdin().lines() {
        let (lease, grant) = target.grant(&[1], None).unwrap();
        say(&hex(&grant.to_bytes()));
        match lease.wait(LONG) {
            Some(LeaseEvent::Announced { .. }) => drop(lease.complete().unwrap()),
            _ => drop(lease.revoke()),
        }
        let stats = target.stats();
        let unavailable = stats.failures(FailureKind::Unavailable);
        say(&format!("{unavailable} {}", stats.tcp.pages));
    }
}

// ---- the test's side --------------------------------------------------------------------------

fn bind(pool: &Pool, stall: Duration) -> Target {
    let config = TargetConfig {
        ring_bytes: 1 << 20,
        stall,
        nixl: cfg!(feature = "nixl").then(|| NixlConfig {
            ring_bytes: 1 << 20,
            ..NixlConfig::default()
        }),
        ..TargetConfig::default()
    };
    Target::bind(
        "127.0.0.1:0".parse().unwrap(),
        pool.region.clone(),
        Layout::new(PAGE),
        config,
    )
    .unwrap()
}

fn initiator(wire: &str, stall: Duration) -> Initiator {
    let transport = match wire {
        "shm" => Transport::Shm,
        "nixl" => Transport::Nixl,
        _ => Transport::Tcp,
    };
    Initiator::new(
        Layout::new(PAGE),
        InitiatorConfig {
            transport,
            stall,
            ..InitiatorConfig::default()
        },
    )
    .unwrap()
}

fn connections(target: &Target) -> u64 {
    total(&target.stats(), |wire| wire.connections)
}

const OWNED: [u8; 2] = [0xee, 0x11];

/// Marks a page as its owner's; [`untouched`] says whether it still is.
fn own(pool: &Pool, page: u32, mark: u8) {
    pool.fill(page, &vec![mark; PAGE]);
}

fn untouched(pool: &Pool, page: u32, mark: u8) -> bool {
    pool.read(page) == vec![mark; PAGE]
}

/// The whole way once, to see that everything still works.
fn works(pool: &Pool, target: &Target, peer: &mut Peer) {
    let (lease, grant) = target.grant(&[3, 1], None).unwrap();
    peer.tell("write", "nothing", &grant);
    assert_eq!(
        lease.wait(LONG),
        Some(LeaseEvent::Announced {
            message: b"done".to_vec()
        })
    );
    assert_eq!(peer.hear(), "finished");
    let id = lease.id();
    let _ = lease.complete().unwrap();
    assert!(pool.read(3) == pattern(id, 0, PAGE) && pool.read(1) == pattern(id, 1, PAGE));
}

#[test]
fn a_peer_killed_before_during_and_after_a_write_costs_nothing() {
    let pool = Pool::new(PAGE, PAGES);
    let target = bind(&pool, LONG);
    for &wire in ALL {
        for round in 0..20 {
            // Before: it has opened the grant and written nothing.
            let mut peer = Peer::start(wire);
            let (lease, grant) = target.grant(&[0, 1], None).unwrap();
            peer.tell("open", "nothing", &grant);
            assert_eq!(peer.hear(), "opened");
            peer.signal(libc::SIGKILL);
            let _ = lease.revoke();
            wait_until("its connection goes", || connections(&target) == 0);

            // During: it kills itself in the middle of the second page.
            let mut peer = Peer::start(wire);
            let (lease, grant) = target.grant(&[0, 1], None).unwrap();
            peer.tell("write", "kill", &grant);
            assert_eq!(
                lease.wait(LONG),
                Some(LeaseEvent::WriterLost),
                "{wire} {round}"
            );
            wait_until("its connection goes", || connections(&target) == 0);
            assert!(lease.landed_bytes() <= PAGE as u64);
            let ended = lease.revoke();
            ended
                .pages()
                .iter()
                .for_each(|page| own(&pool, *page, OWNED[0]));

            // After: everything was announced.
            let mut peer = Peer::start(wire);
            works(&pool, &target, &mut peer);
            peer.signal(libc::SIGKILL);
            wait_until("its connection goes", || connections(&target) == 0);
            assert!(untouched(&pool, 0, OWNED[0]));
        }
    }
    let stats = target.stats();
    assert_eq!((stats.leases.active, stats.leases.dropped), (0, 0));
    assert_eq!(total(&stats, |wire| wire.in_flight), 0);
}

#[test]
fn peers_that_go_while_they_connect_hinder_nobody() {
    let pool = Pool::new(PAGE, PAGES);
    let target = bind(&pool, LONG);
    for &wire in ALL {
        for round in 0..100 {
            let going = initiator(wire, LONG);
            let (lease, grant) = target.grant(&[0], None).unwrap();
            let mut writer = going.open(&grant).unwrap();
            let _ = writer.write(0, Source::from_bytes(pattern(1, 0, PAGE)));
            // From before the connection is there until after it.
            std::thread::sleep(Duration::from_micros(200) * round);
            drop((writer, going));
            let _ = lease.revoke();
        }
        let mut peer = Peer::start(wire);
        works(&pool, &target, &mut peer);
        drop(peer);
        wait_until("all connections go", || connections(&target) == 0);
    }
}

#[test]
fn a_peer_stopped_in_a_write_and_resumed_after_revocation_lands_nothing() {
    let pool = Pool::new(PAGE, PAGES);
    let target = bind(&pool, LONG);
    for &wire in ALL {
        let mut peer = Peer::start(wire);
        for round in 0..20 {
            let (lease, grant) = target.grant(&[2], None).unwrap();
            peer.tell("write", "stop", &grant);
            peer.wait_stopped();
            // In the middle: some of the page has landed, some has not.
            wait_until("some of the page lands", || lease.landed_bytes() > 0);
            assert!(lease.landed_bytes() < PAGE as u64, "{wire} {round}");
            let ended = lease.revoke();
            assert_eq!(ended.pages(), [2]);
            let mark = OWNED[round % 2];
            own(&pool, 2, mark);
            // Half of the times the page is under another lease by then.
            let next = (round % 2 == 0).then(|| target.grant(&[2], None).unwrap());
            peer.signal(libc::SIGCONT);
            assert_eq!(peer.hear(), "failed LeaseEnded");
            assert!(untouched(&pool, 2, mark), "{wire} {round}");
            if let Some((lease, _)) = next {
                assert_eq!(lease.landed_bytes(), 0);
                let _ = lease.revoke();
            }
        }
        works(&pool, &target, &mut peer);
    }
    // Every round went over the one connection of its peer.
    let stats = target.stats();
    assert_eq!(
        (stats.shm.connections_opened, stats.tcp.connections_opened),
        (1, 1)
    );
    assert_eq!(stats.nixl.connections_opened as usize, ALL.len() - 2);
}

#[test]
fn a_peer_that_stays_stopped_loses_its_connection_and_hinders_nobody() {
    let pool = Pool::new(PAGE, PAGES);
    // Long enough for NIXL to make a first connection on a busy machine.
    let target = bind(&pool, Duration::from_secs(2));
    for &wire in ALL {
        let mut stopped = Peer::start(wire);
        let (lease, grant) = target.grant(&[0], None).unwrap();
        stopped.tell("write", "stop", &grant);
        stopped.wait_stopped();
        let mut other = Peer::start(wire);
        works(&pool, &target, &mut other);
        assert_eq!(lease.wait(LONG), Some(LeaseEvent::WriterLost));
        wait_until("the stopped peer's connection goes", || {
            connections(&target) == 1
        });
        let _ = lease.revoke();
        own(&pool, 0, OWNED[0]);
        stopped.signal(libc::SIGCONT);
        let said = stopped.hear();
        assert!(said.starts_with("failed Lost"), "{said}");
        assert!(untouched(&pool, 0, OWNED[0]));
        // And it finds its way back.
        works(&pool, &target, &mut stopped);
        drop((stopped, other));
        wait_until("all connections go", || connections(&target) == 0);
    }
    assert_eq!(
        target.stats().failures(FailureKind::Stalled) as usize,
        ALL.len()
    );
}

#[test]
fn a_target_that_dies_fails_its_writers_soon_and_others_go_on() {
    for &wire in ALL {
        let initiator = initiator(wire, LONG);
        let mut dying = Peer::start("target");
        let grant = Grant::from_bytes(&unhex(&dying.hear())).unwrap();
        let mut writer = initiator.open(&grant).unwrap();
        let target = dying.child.id() as i32;
        struct Killer(Vec<u8>, i32, AtomicUsize);
        impl AsRef<[u8]> for Killer {
            fn as_ref(&self) -> &[u8] {
                if self.2.fetch_add(1, Ordering::Relaxed) == 5 {
                    // SAFETY: a signal to a child that has not been waited for.
                    unsafe { libc::kill(self.1, libc::SIGKILL) };
                }
                &self.0
            }
        }
        for index in 0..PAGES {
            let page = Killer(
                pattern(1, index, PAGE),
                target,
                AtomicUsize::new(if index == 1 { 0 } else { 100 }),
            );
            if let Err(error) = writer.write(index, Source::from_bytes(page)) {
                assert!(matches!(error, WriteError::Lost(_)), "{error}");
            }
        }
        let failed = writer.finish(Vec::new()).unwrap_err();
        assert!(
            matches!(
                failed,
                WriteError::Lost(_) | WriteError::MissingPages { .. }
            ),
            "{failed}"
        );
        assert_eq!(initiator.stats().failures(FailureKind::Lost), 1);
        assert_eq!(total(&initiator.stats(), |wire| wire.in_flight), 0);

        let pool = Pool::new(PAGE, PAGES);
        let living = bind(&pool, LONG);
        let (lease, grant) = living.grant(&[1], None).unwrap();
        let mut writer = initiator.open(&grant).unwrap();
        writer
            .write(0, Source::from_bytes(pattern(1, 0, PAGE)))
            .unwrap();
        writer.finish(Vec::new()).unwrap();
        let _ = lease.complete().unwrap();
    }
}

#[test]
fn a_target_that_stops_is_given_up_after_the_stall_time() {
    for &wire in ALL {
        let initiator = initiator(wire, Duration::from_millis(200));
        let mut stopping = Peer::start("target");
        let grant = Grant::from_bytes(&unhex(&stopping.hear())).unwrap();
        let mut writer = initiator.open(&grant).unwrap();
        stopping.signal(libc::SIGSTOP);
        stopping.wait_stopped();
        for index in 0..PAGES {
            writer
                .write(index, Source::from_bytes(pattern(1, index, PAGE)))
                .unwrap();
        }
        let failed = writer.finish(Vec::new()).unwrap_err();
        assert_eq!(failed, WriteError::Stalled(Duration::from_millis(200)));
        // A stopped target still has its backlog: connecting does not hang either.
        let config = InitiatorConfig {
            connect: Duration::from_millis(200),
            ..InitiatorConfig::default()
        };
        assert!(
            Initiator::new(Layout::new(PAGE), config)
                .unwrap()
                .open(&grant)
                .is_err()
        );
        stopping.signal(libc::SIGCONT);
    }
}

#[cfg(feature = "nixl")]
#[test]
fn a_target_out_of_memory_for_rings_says_so_and_is_written_another_way() {
    use std::io::Write as _;

    use millrace_transfer::{OpenError, Wire};

    let mut target = Peer::start("poor target");
    let insisting = initiator("nixl", LONG);
    let config = InitiatorConfig {
        nixl: Some(NixlConfig::default()),
        ..InitiatorConfig::default()
    };
    let choosing = Initiator::new(Layout::new(PAGE), config).unwrap();
    for round in 1..=20 {
        writeln!(target.input).unwrap();
        let grant = Grant::from_bytes(&unhex(&target.hear())).unwrap();
        match insisting.open(&grant).err() {
            Some(OpenError::Unavailable { transport, cause }) => {
                assert_eq!(transport, "nixl");
                assert!(cause.contains("no memory for a ring"), "{cause}");
            }
            other => panic!("{other:?}"),
        }
        // A connection that is there is used again; a new initiator has to find its way anew.
        let mut writer = choosing.open(&grant).unwrap();
        assert_eq!(writer.wire(), Wire::Tcp);
        let page = pattern(grant.lease(), 0, PAGE);
        writer.write(0, Source::from_bytes(page)).unwrap();
        writer.finish(Vec::new()).unwrap();
        assert_eq!(target.hear(), format!("{} {round}", round + 1));
    }
}
