//! From a grant to a connection that its target has welcomed.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use crate::config::{InitiatorConfig, Transport, Wire};
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
pub(super) struct Connection {
    pub wire: Wire,
    pub socket: Socket,
    pub inbox: Inbox,
    /// Present on local connections.
    pub ring: Option<RingWriter>,
    pub checksums: bool,
}

pub(super) fn connect(
    grant: &Grant,
    layout: &Layout,
    config: &InitiatorConfig,
) -> Result<Connection, OpenError> {
    let local = match config.transport {
        Transport::Tcp => None,
        Transport::Auto | Transport::Shm => Some(local_socket(grant)),
    };
    match local {
        Some(Ok((socket, name))) => {
            tracing::info!(wire = "shm", "connecting to a target on this machine");
            return handshake(socket, Wire::Shm, &name, grant, layout, config);
        }
        Some(Err(why)) if config.transport == Transport::Shm => {
            return Err(OpenError::NotLocal(why));
        }
        Some(Err(why)) => tracing::info!(wire = "tcp", why, "no shared memory with this target"),
        None => {}
    }
    let mut last = OpenError::NoAddress("tcp");
    for address in &grant.addresses {
        let name = address.to_string();
        match Socket::connect_tcp(*address, config.connect) {
            Ok(socket) => {
                tracing::info!(wire = "tcp", %address, "connecting to a target");
                return handshake(socket, Wire::Tcp, &name, grant, layout, config);
            }
            Err(error) => {
                last = OpenError::Connect {
                    address: name,
                    cause: error.to_string(),
                }
            }
        }
    }
    Err(last)
}

/// The local way to the target, or why there is none.
fn local_socket(grant: &Grant) -> Result<(Socket, String), String> {
    let name = grant.local.as_deref().ok_or("the target offers none")?;
    if grant.machine == 0 || grant.machine != machine::boot_id() {
        return Err("the target is on another machine".into());
    }
    let socket = Socket::connect_local(name).map_err(|error| {
        format!("the target's local socket cannot be reached (another network namespace?): {error}")
    })?;
    Ok((socket, name.to_owned()))
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
    let (ring_bytes, checksums) = match reply {
        Frame::Welcome {
            ring_bytes,
            checksums,
        } => (ring_bytes, checksums || config.checksums),
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
    let deadline = Instant::now() + config.connect;
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
