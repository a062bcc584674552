//! Targets that break the protocol, spoken by hand.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use crate::config::{InitiatorConfig, Transport};
use crate::frame::Frame;
use crate::{
    FailureKind, Grant, Initiator, Layout, MemoryKind, OpenError, PageInitiator, Source, WriteError,
};

const PAGE: usize = 1000;

/// A grant of whoever listens there.
fn grant(listener: &TcpListener) -> Grant {
    Grant {
        incarnation: 7,
        machine: 0,
        addresses: vec![listener.local_addr().unwrap()],
        local: None,
        nixl: false,
        memory: MemoryKind::Host,
        lease: 1,
        key: 2,
        page_bytes: PAGE,
        pages: vec![0],
    }
}

fn initiator(connect: Duration) -> Initiator {
    let config = InitiatorConfig {
        transport: Transport::Tcp,
        connect,
        ..InitiatorConfig::default()
    };
    Initiator::new(Layout::new(PAGE), config).unwrap()
}

fn encoded(frames: &[Frame]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frames.iter().for_each(|frame| frame.encode(&mut bytes));
    bytes
}

fn welcome() -> Frame {
    Frame::Welcome {
        ring_bytes: 0,
        checksums: false,
        idle_millis: 120_000,
        ring_address: 0,
        description: Vec::new(),
    }
}

/// Reads the initiator's first frame.
fn hello(stream: &mut TcpStream) {
    let (mut bytes, mut part) = (Vec::new(), [0; 256]);
    while Frame::decode(&bytes).unwrap().is_none() {
        let count = stream.read(&mut part).unwrap();
        assert!(count > 0);
        bytes.extend_from_slice(&part[..count]);
    }
}

#[test]
fn answers_to_nothing_that_was_asked_end_the_connection() {
    let cases = [
        encoded(&[Frame::Ack { seq: 1 }]),
        encoded(&[Frame::Ack { seq: u64::MAX }]),
        encoded(&[Frame::Nack {
            seq: 0,
            code: u16::MAX,
            detail: String::new(),
        }]),
        encoded(&[Frame::Nack {
            seq: 9,
            code: FailureKind::LeaseEnded.code(),
            detail: String::new(),
        }]),
        encoded(&[Frame::Credit { bytes: 1 }]),
        encoded(&[welcome()]),
        encoded(&[Frame::Ping { seq: 0 }]),
        vec![0xff; 32],
    ];
    for answer in cases {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let grant = grant(&listener);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                hello(&mut stream);
                stream.write_all(&encoded(&[welcome()])).unwrap();
                // The page has come; nothing that is said now is about it.
                let mut page = [0; PAGE];
                stream.read_exact(&mut page).unwrap();
                stream.write_all(&answer).unwrap();
                let _ = stream.read_to_end(&mut Vec::new());
            });
            let initiator = initiator(Duration::from_secs(60));
            let mut writer = initiator.open(&grant).unwrap();
            writer.write(0, Source::from_bytes([1; PAGE])).unwrap();
            let failed = writer.finish(Vec::new()).unwrap_err();
            assert!(
                matches!(failed, WriteError::Protocol(_)),
                "{failed} after {answer:?}"
            );
            assert_eq!(initiator.stats().failures(FailureKind::Malformed), 1);
            assert_eq!(initiator.stats().tcp.in_flight, 0);
        });
    }
}

#[test]
fn handshakes_that_go_wrong_are_errors_in_time() {
    type Act = fn(TcpStream);
    type IsExpected = fn(&OpenError) -> bool;
    let cases: [(Act, IsExpected); 4] = [
        (|_| (), |error| matches!(error, OpenError::Handshake { .. })),
        (
            |mut stream| {
                hello(&mut stream);
                stream
                    .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                    .unwrap();
                let _ = stream.read_to_end(&mut Vec::new());
            },
            |error| matches!(error, OpenError::Handshake { .. }),
        ),
        (
            |mut stream| {
                hello(&mut stream);
                stream
                    .write_all(&encoded(&[Frame::Ack { seq: 0 }]))
                    .unwrap();
                let _ = stream.read_to_end(&mut Vec::new());
            },
            |error| matches!(error, OpenError::Handshake { .. }),
        ),
        (
            // Says nothing until the other has given up.
            |mut stream| drop(stream.read_to_end(&mut Vec::new())),
            |error| matches!(error, OpenError::HandshakeTimeout { .. }),
        ),
    ];
    for (act, is_expected) in cases {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let grant = grant(&listener);
        std::thread::scope(|scope| {
            scope.spawn(|| act(listener.accept().unwrap().0));
            let initiator = initiator(Duration::from_millis(500));
            let error = initiator.open(&grant).err().unwrap();
            assert!(is_expected(&error), "{error}");
            assert_eq!(initiator.stats().failures(FailureKind::Connect), 1);
        });
    }
}

#[test]
fn the_second_address_is_tried_where_the_first_is_dead() {
    let dead = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut grant = grant(&listener);
    grant.addresses.insert(0, dead);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            hello(&mut stream);
            stream.write_all(&encoded(&[welcome()])).unwrap();
            let _ = stream.read_to_end(&mut Vec::new());
        });
        let initiator = initiator(Duration::from_secs(60));
        assert!(initiator.open(&grant).is_ok());
    });
}
