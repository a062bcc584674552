//! From a grant to a connection that its target has welcomed.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::config::{InitiatorConfig, Transport, Wire};
use crate::deadline::within;
use crate::error::{DecodeError, OpenError};
use crate::frame::{Frame, Reason};
use crate::grant::Grant;
use crate::inbox::Inbox;
use crate::layout::Layout;
use crate::machine;
use crate::passing::recv_with_fd;
use crate::ring::RingWriter;
use crate::socket::{READABLE, Socket};

/// A connection past its handshake.
pub(crate) struct Connection {
    pub wire: Wire,
    pub socket: Socket,
    pub inbox: Inbox,
    /// Present on local connections.
    pub ring: Option<RingWriter>,
    pub checksums: bool,
    /// The shorter of the two sides' patience with silence.
    pub idle: Duration,
}

/// Signs of life are never sent more often than this asks for, whatever a target says.
const MIN_IDLE: Duration = Duration::from_millis(30);

pub(crate) fn connect(
    grant: &Grant,
    layout: &Layout,
    config: &InitiatorConfig,
) -> Result<Connection, OpenError> {
    let mut last = OpenError::NoAddress("tcp");
    for address in addresses(grant, config.transport)? {
        match attempt(&address, grant, layout, config) {
            Ok(connection) => {
                tracing::info!(wire = connection.wire.as_str(), %address, "connected to a target");
                return Ok(connection);
            }
            // It is there and has made up its mind.
            Err(error @ (OpenError::Mismatch { .. } | OpenError::Busy)) => return Err(error),
            Err(error) => {
                tracing::info!(%address, %error, "not this way");
                last = error;
            }
        }
    }
    Err(last)
}

#[derive(Debug)]
enum Address {
    Local(String),
    Tcp(SocketAddr),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Local(name) => write!(f, "local socket {name}"),
            Address::Tcp(address) => address.fmt(f),
        }
    }
}

/// Where the target may be reached, best first.
fn addresses(grant: &Grant, transport: Transport) -> Result<Vec<Address>, OpenError> {
    let local = match &grant.local {
        _ if transport == Transport::Tcp => None,
        Some(name) if grant.machine != 0 && grant.machine == machine::boot_id() => {
            Some(Address::Local(name.clone()))
        }
        Some(_) if transport == Transport::Shm => return Err(OpenError::OtherMachine),
        None if transport == Transport::Shm => return Err(OpenError::NoAddress("shm")),
        _ => None,
    };
    let tcp = grant.addresses.iter().copied().map(Address::Tcp);
    let tcp = tcp.filter(|_| transport != Transport::Shm);
    Ok(local.into_iter().chain(tcp).collect())
}

fn attempt(
    address: &Address,
    grant: &Grant,
    layout: &Layout,
    config: &InitiatorConfig,
) -> Result<Connection, OpenError> {
    let (socket, wire) = match address {
        // Two pods of one machine usually have network namespaces of their own, and then this
        // fails at once.
        Address::Local(name) => (Socket::connect_local(name), Wire::Shm),
        Address::Tcp(address) => (Socket::connect_tcp(*address, config.connect), Wire::Tcp),
    };
    let address = address.to_string();
    match socket {
        Ok(socket) => handshake(socket, wire, &address, grant, layout, config),
        Err(error) => Err(OpenError::Connect {
            address,
            cause: error.to_string(),
        }),
    }
}

fn handshake(
    socket: Socket,
    wire: Wire,
    address: &str,
    grant: &Grant,
    layout: &Layout,
    config: &InitiatorConfig,
) -> Result<Connection, OpenError> {
    let failed = |cause: String| OpenError::Handshake {
        address: address.into(),
        cause,
    };
    let broken = |error: io::Error| match error.kind() {
        io::ErrorKind::TimedOut => OpenError::HandshakeTimeout {
            address: address.into(),
            patience: config.connect,
        },
        _ => failed(error.to_string()),
    };
    let mut hello = Vec::new();
    Frame::Hello {
        incarnation: grant.incarnation,
        layout: layout.clone(),
    }
    .encode(&mut hello);
    // A target that turns us away unheard (it has too many connections) may have closed already;
    // what it had to say is then still there to read.
    let sent = socket.send_all(&hello, config.connect);
    let (reply, inbox, fd) = reply(&socket, config).map_err(|error| match sent {
        Err(first) => broken(first),
        Ok(()) => match error {
            ReplyError::Socket(error) => broken(error),
            ReplyError::Decode(error) => failed(error.to_string()),
        },
    })?;
    let (ring_bytes, checksums, idle) = match reply {
        Frame::Welcome {
            ring_bytes,
            checksums,
            idle_millis,
        } => (
            ring_bytes,
            checksums || config.checksums,
            Duration::from_millis(idle_millis).clamp(MIN_IDLE, config.idle.max(MIN_IDLE)),
        ),
        Frame::Refused {
            reason,
            field,
            ours,
            theirs,
        } => {
            return Err(match reason {
                // The frame speaks from the target's side.
                Reason::Mismatch => OpenError::Mismatch {
                    field,
                    ours: theirs,
                    theirs: ours,
                },
                Reason::OtherIncarnation => OpenError::OtherIncarnation,
                Reason::Busy => OpenError::Busy,
            });
        }
        other => return Err(failed(format!("it answered with a {} frame", other.name()))),
    };
    let ring = match (wire, fd) {
        (Wire::Tcp, _) => None,
        (Wire::Shm, Some(fd)) => Some(RingWriter::open(fd, ring_bytes).map_err(broken)?),
        (Wire::Shm, None) => return Err(failed("it passed no shared memory".into())),
    };
    Ok(Connection {
        wire,
        socket,
        inbox,
        ring,
        checksums,
        idle,
    })
}

enum ReplyError {
    Socket(io::Error),
    Decode(DecodeError),
}

/// The target's first frame, and the descriptor that came with it.
fn reply(
    socket: &Socket,
    config: &InitiatorConfig,
) -> Result<(Frame, Inbox, Option<OwnedFd>), ReplyError> {
    let deadline = within(config.connect);
    let mut inbox = Inbox::new();
    let mut passed = None;
    loop {
        if let Some(frame) = inbox.frame().map_err(ReplyError::Decode)? {
            return Ok((frame, inbox, passed));
        }
        let received = inbox.gulp(|room| {
            let (count, fd) = recv_with_fd(socket, room)?;
            passed = passed.take().or(fd);
            Ok(count)
        });
        match received {
            Ok(0) => return Err(ReplyError::Socket(io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if !socket
                    .wait(READABLE, deadline)
                    .map_err(ReplyError::Socket)?
                {
                    return Err(ReplyError::Socket(io::ErrorKind::TimedOut.into()));
                }
            }
            Err(error) => return Err(ReplyError::Socket(error)),
        }
    }
}
