//! A peer that speaks by hand, so that it can say what no mesh would.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use millrace_exchange::FrameLimits;
use millrace_experts::RankId;

pub const HELLO: u8 = 1;
pub const WELCOME: u8 = 2;
pub const REFUSED: u8 = 3;
pub const HEARTBEAT: u8 = 4;
pub const START: u8 = 5;
pub const DISPATCH: u8 = 6;
pub const SHARE: u8 = 8;

pub struct Header {
    pub kind: u8,
    /// Layer, rows, work, length.
    pub short: [u32; 4],
    /// Epoch, step, ready_for.
    pub long: [u64; 3],
}

impl Header {
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"MRX\x02".to_vec();
        bytes.extend([self.kind, 0, 0, 0]);
        bytes.extend(self.short.iter().flat_map(|value| value.to_le_bytes()));
        bytes.extend(self.long.iter().flat_map(|value| value.to_le_bytes()));
        bytes
    }
}

/// Sends a hello, and returns the kind and the body of the answer.
pub fn greet(
    to: SocketAddr,
    (from, target): (RankId, RankId),
    group: &str,
    revision: &str,
    limits: &FrameLimits,
) -> (TcpStream, u8, String) {
    let body = format!(
        r#"{{"group":"{group}","from":{{"rank":{},"incarnation":{}}},"to":{{"rank":{},"incarnation":{}}},
        "layout":[["model revision","{revision}"],["hidden size","{}"],["rows a parcel","{}"],
        ["work a parcel","{}"],["slots a rank","{}"]]}}"#,
        from.rank,
        from.incarnation,
        target.rank,
        target.incarnation,
        limits.hidden,
        limits.rows,
        limits.work,
        limits.slots
    );
    let header = Header {
        kind: HELLO,
        short: [0, 0, 0, body.len() as u32],
        long: [0; 3],
    };
    let mut stream = TcpStream::connect(to).unwrap();
    stream.write_all(&header.bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    let mut answer = [0; 48];
    stream.read_exact(&mut answer).unwrap();
    let length = u32::from_le_bytes(answer[20..24].try_into().unwrap());
    let mut body = vec![0; length as usize];
    stream.read_exact(&mut body).unwrap();
    (stream, answer[4], String::from_utf8(body).unwrap())
}
