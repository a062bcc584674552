//! A thread for each listed life with a higher rank: connects, reads the link to its end, and starts
//! again.

use std::io::{self, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::{self, Thread};
use std::time::Duration;

use millrace_experts::RankId;

use crate::link::Incoming;
use crate::roster::Roster;
use crate::wire::{Header, Hello, Kind};
use crate::{FrameError, LinkError, Refusal};

/// Between two attempts, doubling.
const BACKOFF: Duration = Duration::from_millis(20);
const LONGEST_BACKOFF: Duration = Duration::from_secs(1);

/// Dials `id` as long as it is `wanted`.
pub(crate) fn spawn(
    roster: Arc<Roster>,
    id: RankId,
    wanted: Arc<AtomicBool>,
) -> io::Result<Thread> {
    let name = format!("link-{}", id.rank);
    let run = move || keep_linked(&roster, id, &wanted);
    let handle = thread::Builder::new().name(name).spawn(run)?;
    Ok(handle.thread().clone())
}

fn keep_linked(roster: &Roster, id: RankId, wanted: &AtomicBool) {
    let mut backoff = BACKOFF;
    while wanted.load(SeqCst) && !roster.is_closed() {
        if let Some(address) = roster.address_of(id) {
            match connect(roster, id, &address) {
                Ok(incoming) => {
                    backoff = BACKOFF;
                    roster.run_link(id, incoming);
                }
                Err(why) => roster.note(id, why),
            }
        }
        thread::park_timeout(backoff);
        backoff = (backoff * 2).min(LONGEST_BACKOFF);
    }
}

fn connect(roster: &Roster, id: RankId, address: &str) -> Result<Incoming, LinkError> {
    let config = &roster.config;
    let stream = reach(address, config.silence).map_err(|error| LinkError::Connect {
        address: address.to_owned(),
        reason: error.to_string(),
    })?;
    let hello = Hello::new(config, id).to_json();
    let mut bytes = Header::greeting(Kind::Hello, hello.len()).encode().to_vec();
    bytes.extend(hello);
    write(&stream, &bytes, config.silence).map_err(|error| LinkError::Io(error.kind()))?;
    let mut incoming = Incoming::new(stream, config.silence);
    let header = incoming.header(&config.limits)?;
    match header.kind {
        Kind::Welcome => Ok(incoming),
        Kind::Refused => Err(Refusal::from_json(&incoming.greeting(&header)?)?.into()),
        other => Err(FrameError::Unexpected { kind: other.name() }.into()),
    }
}

/// Connects to the first address of `host:port` that answers.
fn reach(address: &str, patience: Duration) -> io::Result<TcpStream> {
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, patience) {
            Ok(stream) => {
                // Frames are small and waited for.
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// Writes a greeting, which a fresh socket has room for.
pub(crate) fn write(mut stream: &TcpStream, bytes: &[u8], patience: Duration) -> io::Result<()> {
    stream.set_write_timeout(Some(patience))?;
    stream.write_all(bytes)
}
