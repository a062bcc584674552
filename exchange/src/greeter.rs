//! The listening end of a handshake, on a thread of its own, which becomes the link's reader.

use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;

use millrace_experts::RankId;

use crate::dialer::write;
use crate::link::Incoming;
use crate::roster::Roster;
use crate::wire::{Header, Hello, Kind};
use crate::{FrameError, LinkError, Refusal};

/// Connections that may be in a handshake at once: whoever connects and says nothing must not use up
/// threads.
const MOST_STRANGERS: usize = 64;

pub(crate) fn greet(roster: &Arc<Roster>, stream: TcpStream) {
    if roster.strangers.fetch_add(1, SeqCst) >= MOST_STRANGERS {
        roster.strangers.fetch_sub(1, SeqCst);
        return;
    }
    let shared = Arc::clone(roster);
    let run = move || {
        let met = meet(&shared, stream);
        shared.strangers.fetch_sub(1, SeqCst);
        match met {
            Ok((id, incoming)) => shared.run_link(id, incoming),
            Err(why) => tracing::debug!(%why, "turned a connection away"),
        }
    };
    if let Err(error) = thread::Builder::new().name("link".into()).spawn(run) {
        roster.strangers.fetch_sub(1, SeqCst);
        tracing::error!(%error, "cannot start a link's thread");
    }
}

fn meet(roster: &Roster, stream: TcpStream) -> Result<(RankId, Incoming), LinkError> {
    let config = &roster.config;
    let io = |error: std::io::Error| LinkError::Io(error.kind());
    // The listener's mode is not inherited everywhere.
    stream.set_nonblocking(false).map_err(io)?;
    stream.set_nodelay(true).map_err(io)?;
    let mut incoming = Incoming::new(stream, config.silence);
    let header = incoming.header(&config.limits)?;
    if header.kind != Kind::Hello {
        let kind = header.kind.name();
        return Err(FrameError::Unexpected { kind }.into());
    }
    let hello = Hello::from_json(&incoming.greeting(&header)?)?;
    match hello.check(config).and_then(|()| roster.admits(hello.from)) {
        Ok(()) => {
            let welcome = Header::bare(Kind::Welcome).encode();
            write(incoming.stream(), &welcome, config.silence).map_err(io)?;
            Ok((hello.from, incoming))
        }
        Err(refusal) => {
            roster.note(hello.from, refusal.clone().into());
            refuse(roster, &incoming, &refusal);
            Err(refusal.into())
        }
    }
}

fn refuse(roster: &Roster, incoming: &Incoming, refusal: &Refusal) {
    let body = refusal.to_json();
    let mut bytes = Header::greeting(Kind::Refused, body.len())
        .encode()
        .to_vec();
    bytes.extend(body);
    // A dialer that is gone already needs no reason.
    let _ = write(incoming.stream(), &bytes, roster.config.silence);
}
