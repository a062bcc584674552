//! Peers that are configured differently, and connections that are no peers.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use common::*;
use millrace_exchange::{FrameError, FrameLimits, LinkError, Mesh, MeshConfig, MeshError, Refusal};
use millrace_experts::RankId;
use std::time::Duration;

/// What the dialing rank 0 is told by rank 1.
fn refused(dialer: MeshConfig, listener: MeshConfig) -> Refusal {
    let quiet = || Arc::new(|| {});
    let listens = Mesh::bind(listener.clone(), quiet()).unwrap();
    let dials = Mesh::bind(dialer.clone(), quiet()).unwrap();
    listens.set_peers(&[member(dialer.me, dials.address())]);
    dials.set_peers(&[member(listener.me, listens.address())]);
    let refusal = |mesh: &Mesh| match mesh.problems().pop() {
        Some((_, LinkError::Refused(refusal))) => Some(refusal),
        _ => None,
    };
    until("refused", || refusal(&dials).is_some());
    // Both can say why.
    assert_eq!(refusal(&listens), refusal(&dials));
    assert!(dials.linked().is_empty() && listens.linked().is_empty());
    refusal(&dials).unwrap()
}

fn differs(field: &str, listener: &str, dialer: &str) -> Refusal {
    Refusal::Differs {
        field: field.into(),
        listener: listener.into(),
        dialer: dialer.into(),
    }
}

#[test]
fn a_difference_is_refused_by_name() {
    let zero = || config(life(0, 1), LIMITS);
    let one = || config(life(1, 1), LIMITS);
    let mut other = one();
    other.layout[0].1 = "xyz".into();
    assert_eq!(
        refused(zero(), other),
        differs("model revision", "xyz", "abc")
    );

    let wider = FrameLimits {
        hidden: 32,
        ..LIMITS
    };
    assert_eq!(
        refused(config(life(0, 1), wider), one()),
        differs("hidden size", "24", "32")
    );
    assert_eq!(
        refused(zero().with("draft", 1), one()),
        differs("draft", "absent", "1")
    );
    assert_eq!(
        refused(zero(), one().with("draft", 1)),
        differs("draft", "1", "absent")
    );

    let mut other = zero();
    other.group = "another".into();
    let why = refused(other, one());
    assert_eq!(why, differs("group", "group", "another"));
    assert!(
        why.to_string()
            .contains("start every rank of a group alike"),
        "{why}"
    );
}

#[test]
fn a_life_is_linked_once_both_know_of_it() {
    let (zero, one) = (mesh(life(0, 1), LIMITS), mesh(life(1, 1), LIMITS));
    zero.set_peers(&[member(life(1, 1), one.address())]);
    let why = LinkError::Refused(Refusal::NotListed);
    until("turned away", || {
        zero.problems() == [(life(1, 1), why.clone())]
    });
    one.set_peers(&[member(life(0, 1), zero.address())]);
    until("linked", || {
        zero.linked() == [life(1, 1)] && one.linked() == [life(0, 1)]
    });
    assert_eq!(zero.problems(), []);
}

#[test]
fn the_higher_rank_does_not_dial() {
    let me = life(1, 1);
    let mesh = mesh(me, LIMITS);
    mesh.set_peers(&[member(life(2, 1), anywhere())]);
    let (_, kind, why) = raw::greet(mesh.address(), (life(2, 1), me), "group", "abc", &LIMITS);
    assert_eq!((kind, why.as_str()), (raw::REFUSED, "\"direction\""));
}

/// Every piece of garbage ends its own connection and nothing else.
#[test]
fn garbage_is_harmless() {
    // Which is also how long a handshake may take.
    let silence = Duration::from_secs(2);
    let group = Group::of(2, |id| impatient(id, LIMITS, silence));
    let target = group.meshes[0].address();
    let huge = raw::Header {
        kind: raw::HELLO,
        short: [0, 0, 0, u32::MAX],
        long: [0; 3],
    };
    let early = raw::Header {
        kind: raw::HEARTBEAT,
        short: [0; 4],
        long: [0; 3],
    };
    let no_json = raw::Header {
        kind: raw::HELLO,
        short: [0, 0, 0, 3],
        long: [0; 3],
    };
    let pieces = [
        b"GET / HTTP/1.1\r\nHost: somebody-who-is-lost.example\r\n\r\n\r\n".to_vec(),
        vec![0xff; 4096],
        vec![0; 4096],
        huge.bytes(),
        early.bytes(),
        [no_json.bytes(), b"[{]".to_vec()].concat(),
        b"MRX".to_vec(),
    ];
    let mut streams: Vec<TcpStream> = Vec::new();
    for piece in &pieces {
        let mut stream = TcpStream::connect(target).unwrap();
        stream.write_all(piece).unwrap();
        streams.push(stream);
    }
    // Also those that say too little are let go.
    for mut stream in streams {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.is_empty(), "{rest:?}");
    }
    assert_eq!(group.meshes[0].linked(), [group.ids[1]]);
    assert_eq!(group.meshes[0].take_lost(), []);
}

/// Frames that a linked peer must not send cost it the link, with the reason.
#[test]
fn a_wrong_frame_ends_the_link() {
    let (peer, me) = (life(0, 9), life(1, 1));
    let frame = |kind, short, long| raw::Header { kind, short, long }.bytes();
    let parcel = |rows: u32, pairs: &[[u32; 2]]| {
        let work = pairs.len() as u32;
        let mut bytes = frame(
            raw::DISPATCH,
            [0, rows, work, work * 8 + rows * 96],
            [1, 0, 0],
        );
        bytes.extend(pairs.iter().flatten().flat_map(|value| value.to_le_bytes()));
        bytes.extend(vec![0; rows as usize * 96]);
        bytes
    };
    let cases: Vec<(Vec<u8>, LinkError)> = vec![
        (vec![0; 48], FrameError::Magic.into()),
        (
            frame(99, [0; 4], [0; 3]),
            FrameError::UnknownKind(99).into(),
        ),
        (
            frame(raw::DISPATCH, [0, 1, 0, 95], [1, 0, 0]),
            FrameError::Length {
                expected: 96,
                actual: 95,
            }
            .into(),
        ),
        (
            frame(raw::DISPATCH, [0, u32::MAX, 0, 0], [1, 0, 0]),
            FrameError::TooMany {
                what: "rows",
                count: u32::MAX as usize,
                limit: LIMITS.rows,
            }
            .into(),
        ),
        (
            frame(raw::SHARE, [0, 0, 0, 1025], [1, 0, 0]),
            FrameError::TooMany {
                what: "shared bytes",
                count: 1025,
                limit: 1024,
            }
            .into(),
        ),
        (
            frame(raw::START, [3, 0, 0, 0], [1, 0, 0]),
            FrameError::Stray { kind: "start" }.into(),
        ),
        (
            frame(raw::WELCOME, [0; 4], [0; 3]),
            FrameError::Unexpected { kind: "welcome" }.into(),
        ),
        (
            parcel(2, &[[0, 0], [2, 0]]),
            FrameError::Work {
                row: 2,
                rows: 2,
                slot: 0,
                slots: LIMITS.slots,
            }
            .into(),
        ),
        (
            parcel(2, &[[1, 8]]),
            FrameError::Work {
                row: 1,
                rows: 2,
                slot: 8,
                slots: LIMITS.slots,
            }
            .into(),
        ),
        (
            (0..40).flat_map(|_| parcel(1, &[])).collect(),
            LinkError::Overflow(8),
        ),
    ];
    for (bytes, why) in cases {
        let mesh = mesh(me, LIMITS);
        mesh.set_peers(&[member(peer, anywhere())]);
        let (mut stream, kind, _) = raw::greet(mesh.address(), (peer, me), "group", "abc", &LIMITS);
        assert_eq!(kind, raw::WELCOME);
        until("linked", || !mesh.linked().is_empty());
        // It may be closed before all of it is written.
        let _ = stream.write_all(&bytes);
        until("lost", || mesh.problems() == [(peer, why.clone())]);
        assert_eq!(mesh.take_lost(), [peer]);
    }
}

#[test]
fn out_of_lockstep_ends_the_link() {
    let (peer, me) = (life(0, 9), life(1, 1));
    let mesh = mesh(me, LIMITS);
    mesh.set_peers(&[member(peer, anywhere())]);
    let (mut stream, ..) = raw::greet(mesh.address(), (peer, me), "group", "abc", &LIMITS);
    until("linked", || !mesh.linked().is_empty());
    let of = |layer, long| {
        raw::Header {
            kind: raw::DISPATCH,
            short: [layer, 0, 0, 0],
            long,
        }
        .bytes()
    };
    // One of an old epoch is nothing; one of a later layer is.
    stream.write_all(&of(7, [1, 5, 0])).unwrap();
    stream.write_all(&of(1, [2, 0, 0])).unwrap();
    let load = [Load::even(&[1, 1], 1, &LIMITS, 0)];
    step(&mesh, (2, 0), me, &[peer, me], &load, &LIMITS).unwrap_err();
    let why = mesh.problems().pop().unwrap().1.to_string();
    let told = "the rank sent dispatch of layer 1 in step 2.0 where dispatch of layer 0 in step 2.0 was due";
    assert!(why.starts_with(told), "{why}");
}

#[test]
fn a_configuration_that_cannot_work_is_refused() {
    let bind = |config: MeshConfig| Mesh::bind(config, Arc::new(|| {})).err().unwrap();
    let me = RankId {
        rank: 0,
        incarnation: 1,
    };
    let mut nervous = config(me, LIMITS);
    nervous.silence = nervous.heartbeat;
    assert!(matches!(bind(nervous), MeshError::Heartbeat { .. }));
    let vast = FrameLimits {
        hidden: 7168,
        work: 1 << 20,
        ..LIMITS
    };
    assert!(matches!(
        bind(config(me, vast)),
        MeshError::FrameSize { .. }
    ));
    let talkative = config(me, LIMITS).with("notes", "x".repeat(5000));
    assert!(matches!(bind(talkative), MeshError::Layout { .. }));
    let first = mesh(me, LIMITS);
    let mut second = config(me, LIMITS);
    second.listen = first.address();
    assert!(matches!(bind(second), MeshError::Listen { .. }));
}
