//! Heartbeats that meet a full socket. (Whole links are tested in `tests/`.)

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::thread;

use super::*;
use crate::FrameLimits;

const LIMITS: FrameLimits = FrameLimits {
    hidden: 1,
    rows: 1,
    work: 1,
    slots: 1,
};

#[test]
fn heartbeats_never_wait_and_never_leave_half_of_themselves() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut theirs, _) = listener.accept().unwrap();
    let peer = RankId {
        rank: 1,
        incarnation: 1,
    };
    let incoming = Incoming::new(ours, Duration::from_secs(1));
    let link = Link::new(peer, &incoming, Arc::default()).unwrap();
    // Nobody reads: the socket fills up, and most of these find no room.
    for _ in 0..400_000 {
        link.beat().unwrap();
    }
    let start = Start {
        epoch: 2,
        step: 3,
        ready_for: 4,
        rows: 5,
    };
    let read = thread::spawn(move || {
        let mut beats = 0;
        loop {
            let mut bytes = [0; HEADER];
            theirs.read_exact(&mut bytes).unwrap();
            match Header::decode(&bytes, &LIMITS).unwrap() {
                header if header.kind == Kind::Start => return (beats, header.to_start()),
                header => assert_eq!(header, Header::bare(Kind::Heartbeat)),
            }
            beats += 1;
        }
    });
    // What did not fit of the last one goes before this.
    link.send_start(&start).unwrap();
    let (beats, read) = read.join().unwrap();
    assert_eq!(read, start);
    assert!((1..400_000).contains(&beats), "{beats} of them fit");
}
