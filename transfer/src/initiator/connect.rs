//! From a grant to a connection that its target has welcomed.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use super::device::DeviceRing;
use crate::config::{InitiatorConfig, Transport, Wire};
use crate::deadline::within;
use crate::error::{DecodeError, OpenError};
use crate::frame::{Frame, Reason};
use crate::grant::Grant;
use crate::inbox::Inbox;
use crate::layout::Layout;
use crate::machine;
use crate::memory::{MemoryKind, MemoryRegion};
use crate::nixl::{Agent, NixlRing};
use crate::passing::recv_with_fd;
use crate::remote::{RemoteError, RemoteRing};
use crate::ring::RingWriter;
use crate::socket::{READABLE, Socket};

/// A connection past its handshake.
pub(crate) struct Connection {
    pub wire: Wire,
    pub socket: Socket,
    pub inbox: Inbox,
    pub way: Way,
    pub checksums: bool,
    /// The shorter of the two sides' patience with silence.
    pub idle: Duration,
}

/// Where payload goes.
pub(crate) enum Way {
    /// Over the socket, between frames.
    Socket,
    /// Into a ring that this process has mapped.
    Shared(RingWriter),
    /// Into a ring that only a card or a device can write.
    Remote(RemoteRing),
}

/// What a target may need to open its network cards for one more peer: some tenths of a second, if
/// they are real ones.
const OPENING: Duration = Duration::from_secs(10);

/// Signs of life are never sent more often than this asks for, whatever a target says.
const MIN_IDLE: Duration = Duration::from_millis(30);

/// What connections of one initiator have in common.
pub(crate) struct Origin<'a> {
    pub layout: &'a Layout,
    pub config: &'a InitiatorConfig,
    /// Where this side has NIXL.
    pub nixl: Option<&'a Arc<Agent>>,
    /// The pool that pages come from, if it is a device's.
    pub device: Option<&'a MemoryRegion>,
}

pub(crate) fn connect(grant: &Grant, origin: &Origin<'_>) -> Result<Connection, OpenError> {
    let mut last = OpenError::NoAddress("tcp");
    for address in addresses(grant, origin)? {
        match attempt(&address, grant, origin) {
            Ok(connection) => {
                tracing::info!(wire = connection.wire.as_str(), %address, "connected to a target");
                return Ok(connection);
            }
            // It is there and has made up its mind.
            Err(error @ (OpenError::Mismatch { .. } | OpenError::Busy)) => return Err(error),
            Err(error) => {
                match error {
                    // Slower from here on, and nobody would know.
                    OpenError::Unavailable { .. } => {
                        tracing::warn!(%address, %error, "not this way")
                    }
                    _ => tracing::info!(%address, %error, "not this way"),
                }
                last = error;
            }
        }
    }
    Err(last)
}

#[derive(Debug)]
enum Address {
    /// With a ring in device memory, if the target makes one.
    Device(String),
    Local(String),
    Nixl(SocketAddr),
    Tcp(SocketAddr),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Device(name) => write!(f, "local socket {name} (device to device)"),
            Address::Local(name) => write!(f, "local socket {name}"),
            Address::Nixl(address) => write!(f, "{address} (NIXL)"),
            Address::Tcp(address) => address.fmt(f),
        }
    }
}

/// Where the target may be reached, best first.
fn addresses(grant: &Grant, origin: &Origin<'_>) -> Result<Vec<Address>, OpenError> {
    let (transport, nixl) = (origin.config.transport, origin.nixl.is_some());
    let local = match &grant.local {
        _ if !transport.allows(Wire::Shm) => None,
        Some(name) if grant.machine != 0 && grant.machine == machine::boot_id() => {
            Some(name.clone())
        }
        Some(_) if transport == Transport::Shm => return Err(OpenError::OtherMachine),
        None if transport == Transport::Shm => return Err(OpenError::NoAddress("shm")),
        _ => None,
    };
    if transport == Transport::Nixl && !grant.nixl {
        return Err(OpenError::NoAddress("nixl"));
    }
    let over = |wire, allowed: bool, address: fn(SocketAddr) -> Address| {
        let addresses = grant.addresses.iter().copied().map(address);
        addresses.filter(move |_| allowed && transport.allows(wire))
    };
    // Checksums are computed on the host, so bytes have to come by there.
    let on_devices = grant.memory != MemoryKind::Host && origin.device.is_some();
    let device = local
        .clone()
        .filter(|_| on_devices && !origin.config.checksums);
    Ok(device
        .map(Address::Device)
        .into_iter()
        .chain(local.map(Address::Local))
        .chain(over(Wire::Nixl, nixl && grant.nixl, Address::Nixl))
        .chain(over(Wire::Tcp, true, Address::Tcp))
        .collect())
}

fn attempt(address: &Address, grant: &Grant, origin: &Origin<'_>) -> Result<Connection, OpenError> {
    let patience = origin.config.connect;
    let (socket, wire) = match address {
        // Two pods of one machine usually have network namespaces of their own, and then this
        // fails at once.
        Address::Device(name) | Address::Local(name) => (Socket::connect_local(name), Wire::Shm),
        Address::Nixl(address) => (Socket::connect_tcp(*address, patience), Wire::Nixl),
        Address::Tcp(address) => (Socket::connect_tcp(*address, patience), Wire::Tcp),
    };
    let device = origin
        .device
        .filter(|_| matches!(address, Address::Device(_)));
    let origin = &Origin { device, ..*origin };
    match socket {
        Ok(socket) => handshake(socket, wire, &address.to_string(), grant, origin),
        Err(error) => Err(OpenError::Connect {
            address: address.to_string(),
            cause: error.to_string(),
        }),
    }
}

fn handshake(
    socket: Socket,
    wire: Wire,
    address: &str,
    grant: &Grant,
    origin: &Origin<'_>,
) -> Result<Connection, OpenError> {
    let config = origin.config;
    let failed = |cause: String| OpenError::Handshake {
        address: address.into(),
        cause,
    };
    let patience = match wire {
        Wire::Nixl => config.connect + OPENING,
        Wire::Shm | Wire::Tcp => config.connect,
    };
    let broken = |error: io::Error| match error.kind() {
        io::ErrorKind::TimedOut => OpenError::HandshakeTimeout {
            address: address.into(),
            patience,
        },
        _ => failed(error.to_string()),
    };
    let mut hello = Vec::new();
    Frame::Hello {
        incarnation: grant.incarnation,
        nixl: wire == Wire::Nixl,
        device: origin.device.is_some(),
        layout: origin.layout.clone(),
    }
    .encode(&mut hello);
    // A target that turns us away unheard (it has too many connections) may have closed already;
    // what it had to say is then still there to read.
    let sent = socket.send_all(&hello, config.connect);
    let (reply, inbox, fd) = reply(&socket, patience).map_err(|error| match sent {
        Err(first) => broken(first),
        Ok(()) => match error {
            ReplyError::Socket(error) => broken(error),
            ReplyError::Decode(error) => failed(error.to_string()),
        },
    })?;
    let (ring_bytes, checksums, idle, ring_address, description) = match reply {
        Frame::Welcome {
            ring_bytes,
            checksums,
            idle_millis,
            ring_address,
            description,
        } => (
            ring_bytes,
            checksums || config.checksums,
            Duration::from_millis(idle_millis).clamp(MIN_IDLE, config.idle.max(MIN_IDLE)),
            ring_address,
            description,
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
                Reason::NoNixl => OpenError::Unavailable {
                    transport: Wire::Nixl.as_str(),
                    cause: ours,
                },
            });
        }
        other => return Err(failed(format!("it answered with a {} frame", other.name()))),
    };
    let unavailable = |transport, error: RemoteError| OpenError::Unavailable {
        transport,
        cause: error.to_string(),
    };
    let way = match (wire, fd, origin) {
        (Wire::Tcp, ..) => Way::Socket,
        (Wire::Shm, Some(fd), _) if description.is_empty() => {
            if origin.device.is_some() {
                tracing::warn!(
                    address,
                    "pages go by way of the host: the target has no ring in device memory for them (its log says why)"
                );
            }
            Way::Shared(RingWriter::open(fd, ring_bytes).map_err(broken)?)
        }
        (
            Wire::Shm,
            Some(fd),
            Origin {
                device: Some(region),
                ..
            },
        ) => {
            let ring = DeviceRing::open(region, &description, ring_bytes, fd).and_then(|ring| {
                let base = ring.base();
                RemoteRing::new(Box::new(ring), base, ring_bytes)
            });
            Way::Remote(ring.map_err(|error| unavailable("copies between devices", error))?)
        }
        (Wire::Shm, ..) => return Err(failed("it passed no shared memory".into())),
        (
            Wire::Nixl,
            _,
            Origin {
                nixl: Some(agent), ..
            },
        ) => {
            let remote = agent.connect(&description).map_err(RemoteError::from);
            let ring = remote.and_then(|to| {
                RemoteRing::new(Box::new(NixlRing::new(to)), ring_address, ring_bytes)
            });
            Way::Remote(ring.map_err(|error| unavailable(wire.as_str(), error))?)
        }
        (Wire::Nixl, ..) => unreachable!("tried only with an agent"),
    };
    Ok(Connection {
        wire,
        socket,
        inbox,
        way,
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
    patience: Duration,
) -> Result<(Frame, Inbox, Option<OwnedFd>), ReplyError> {
    let deadline = within(patience);
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
