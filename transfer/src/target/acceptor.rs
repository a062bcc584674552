//! Accepting connections, and collecting their threads.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::Shared;
use super::receiver;
use crate::config::Wire;
use crate::error::BindError;
use crate::frame::{Frame, Reason};
use crate::machine;
use crate::socket::{READABLE, Socket, poll_fd, wait};

pub(super) struct Listeners {
    tcp: TcpListener,
    local: Option<UnixListener>,
    pub address: SocketAddr,
    pub local_name: Option<String>,
}

impl Listeners {
    pub fn bind(address: SocketAddr, shm: bool) -> Result<Listeners, BindError> {
        let listen = |source| BindError::Listen { address, source };
        let tcp = TcpListener::bind(address).map_err(listen)?;
        tcp.set_nonblocking(true).map_err(listen)?;
        let address = tcp.local_addr().map_err(listen)?;
        let (local, local_name) = match shm {
            true => {
                let (listener, name) =
                    bind_local().map_err(|source| BindError::ListenLocal { source })?;
                (Some(listener), Some(name))
            }
            false => (None, None),
        };
        Ok(Listeners {
            tcp,
            local,
            address,
            local_name,
        })
    }
}

/// A local socket under a fresh abstract name: no file to clean up, whatever becomes of us.
fn bind_local() -> io::Result<(UnixListener, String)> {
    let name = format!("millrace-{:032x}", machine::random_u128()?);
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name)?;
    let listener = UnixListener::bind_addr(&address)?;
    listener.set_nonblocking(true)?;
    Ok((listener, name))
}

pub(super) struct Acceptor {
    listeners: Listeners,
    shared: Arc<Shared>,
    connections: Vec<Connection>,
    opened: u64,
}

struct Connection {
    socket: Arc<Socket>,
    /// Set by the thread, which then wakes the acceptor, as the last thing it does.
    ended: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Acceptor {
    pub fn start(listeners: Listeners, shared: Arc<Shared>) -> io::Result<JoinHandle<()>> {
        let acceptor = Acceptor {
            listeners,
            shared,
            connections: Vec::new(),
            opened: 0,
        };
        thread::Builder::new()
            .name("transfer-accept".into())
            .spawn(move || acceptor.run())
    }

    fn run(mut self) {
        while !self.shared.closing.load(Ordering::Acquire) {
            if let Err(error) = self.turn() {
                tracing::warn!(%error, "cannot accept transfer connections; retrying");
                // Out of descriptors, typically: the listener stays readable meanwhile.
                thread::sleep(Duration::from_millis(100));
            }
        }
        for connection in &self.connections {
            connection.socket.shutdown();
        }
        for connection in self.connections {
            let _ = connection.thread.join();
        }
    }

    fn turn(&mut self) -> io::Result<()> {
        let mut fds = vec![
            poll_fd(self.shared.wake.raw(), READABLE),
            poll_fd(self.listeners.tcp.as_raw_fd(), READABLE),
        ];
        fds.extend(
            self.listeners
                .local
                .iter()
                .map(|local| poll_fd(local.as_raw_fd(), READABLE)),
        );
        fds.extend(self.shared.rings.fds());
        wait(&mut fds, None)?;
        self.shared.wake.clear();
        self.collect();
        self.shared.rings.collect();
        if fds[1].revents != 0
            && let Some(stream) = ready(self.listeners.tcp.accept())?
        {
            self.admit(stream.0.into(), Wire::Tcp)?;
        }
        if let Some(local) = &self.listeners.local
            && fds[2].revents != 0
            && let Some(stream) = ready(local.accept())?
        {
            self.admit(stream.0.into(), Wire::Shm)?;
        }
        Ok(())
    }

    /// Joins the threads of connections that have ended.
    fn collect(&mut self) {
        let ended = |connection: &mut Connection| connection.ended.load(Ordering::Acquire);
        for connection in self.connections.extract_if(.., ended) {
            // It can only have panicked, which it has reported.
            let _ = connection.thread.join();
        }
    }

    fn admit(&mut self, fd: OwnedFd, wire: Wire) -> io::Result<()> {
        let socket = Arc::new(Socket::new(fd));
        if wire == Wire::Tcp {
            socket.tune_tcp()?;
        }
        if self.connections.len() >= self.shared.config.max_connections {
            let busy = Frame::Refused {
                reason: Reason::Busy,
                field: String::new(),
                ours: String::new(),
                theirs: String::new(),
            };
            let mut bytes = Vec::new();
            busy.encode(&mut bytes);
            // A fresh socket takes so little at once; a peer that misses it sees the end instead.
            let _ = socket.send(&bytes, false);
            socket.shutdown_send();
            tracing::warn!(
                limit = self.connections.len(),
                "transfer connection turned away: too many"
            );
            return Ok(());
        }
        self.opened += 1;
        let ended = Arc::new(AtomicBool::new(false));
        let (shared, theirs, has_ended) = (self.shared.clone(), socket.clone(), ended.clone());
        let thread = thread::Builder::new()
            .name(format!("transfer-in-{}", self.opened))
            .spawn(move || {
                receiver::serve(&shared, &theirs, wire);
                has_ended.store(true, Ordering::Release);
                shared.wake.signal();
            })?;
        self.connections.push(Connection {
            socket,
            ended,
            thread,
        });
        Ok(())
    }
}

/// `WouldBlock` and a peer that has gone again are no connection and no error.
fn ready<T>(accepted: io::Result<T>) -> io::Result<Option<T>> {
    match accepted {
        Ok(accepted) => Ok(Some(accepted)),
        Err(error) => match error.kind() {
            io::ErrorKind::WouldBlock
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted => Ok(None),
            _ => Err(error),
        },
    }
}
