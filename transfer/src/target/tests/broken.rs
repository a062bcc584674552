//! What only a broken or hostile peer says: refused by name, and nothing lands.

use super::*;

/// How often each of them tries.
const ROUNDS: u64 = 20;

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
    for &wire in ALL {
        for (kind, seq, act) in cases {
            let scene = Scene::new(config());
            let (lease, grant) = scene.target.grant(&[1, 2], None).unwrap();
            for round in 1..=ROUNDS {
                let mut peer = Peer::new(&grant, wire);
                act(&mut peer, &grant);
                peer.refused(*seq, *kind);
                drop(peer); // Else the target would listen to it for a while.
                assert_eq!(scene.failures(*kind), round);
                assert!(
                    (0..4).all(|page| scene.untouched(page)),
                    "{kind:?} over {wire:?}"
                );
                wait_until("the connection is gone", || scene.connections() == 0);
                assert_eq!(lease.landed_bytes(), 0);
            }
            // The lease is none the worse for it.
            let mut peer = Peer::new(&grant, wire);
            complete(&mut peer, lease, &grant);
        }
    }
}

#[test]
fn a_page_lands_once_and_is_announced_once() {
    for &wire in ALL {
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
    for &wire in ALL {
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
            nixl: false,
            device: false,
            layout: layout(),
        }),
    ];
    for &wire in ALL {
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
        nixl: false,
        device: false,
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
        ("protocol version", "3", "4")
    );
    drop(other);
    wait_until("all are gone", || scene.connections() == 0);
}

#[cfg(feature = "nixl")]
#[test]
fn by_nixl_a_peer_reaches_its_own_ring_and_nothing_else() {
    fn ring(peer: &mut Peer) -> &mut crate::remote::RemoteRing {
        match &mut peer.to.way {
            Way::Remote(ring) => ring,
            _ => unreachable!("connected by NIXL"),
        }
    }
    let scene = Scene::new(config());
    let (lease, grant) = scene.target.grant(&[1, 2], None).unwrap();
    let mut peer = Peer::new(&grant, Wire::Nixl);
    let mut neighbour = Peer::new(&grant, Wire::Nixl);
    let source = Source::from_bytes(vec![7; 4096]);
    let (base, size) = (ring(&mut peer).base(), ring(&mut peer).bytes() as u64);
    for (what, to) in [
        ("a page under its lease", (scene.base + PAGE) as u64),
        ("a page of its target's own", scene.base as u64),
        ("behind its ring", base + size),
        ("across its ring's end", base + size - 4095),
        ("before its ring", base - 4096),
        ("another peer's ring", ring(&mut neighbour).base()),
    ] {
        for _ in 0..ROUNDS {
            let refused = ring(&mut peer).stray(&source, 4096, to);
            assert!(refused.is_err(), "{what}");
        }
    }
    assert!((0..4).all(|page| scene.untouched(page)));
    // Nothing of this reached the target, and the connection goes on.
    complete(&mut peer, lease, &grant);
    assert_eq!(scene.connections(), 2);
}
