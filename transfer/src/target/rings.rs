//! Rings in device memory, which may have to outlive their connection.
//!
//! A device writes them for a peer, and a peer that was stopped with copies queued goes on when it is resumed,
//! long after its connection was given up here. Such a copy must find the ring and not what the memory has
//! become since. So a ring is freed only once its peer has said that it is done with it and has closed it (it
//! does so whenever a connection ends, by a descriptor of its own that works when the connection does not), or
//! the peer's process has ended, and its devices' work with it. What a connection ending says is less than
//! either. Until then the ring is kept; a target makes no more than [`MOST_RINGS`], and peers beyond that send
//! by way of the host.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use parking_lot::Mutex;

use crate::device::DeviceError;
use crate::ring::RingReader;
use crate::socket::{READABLE, Socket, cvt, poll_fd, wait};
use crate::wake::Wake;

/// Rings of one target at a time, in use and kept: 1 GiB of device memory with rings of the default size.
const MOST_RINGS: usize = 16;

/// Why a peer gets no ring in device memory.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoRing {
    #[error("pages here are in the host's memory")]
    OnHost,
    #[error("checksums are asked for here, and the host computes them")]
    Checksums,
    #[error(
        "its process cannot be watched ({0}); both need one PID namespace (hostPID, or one container)"
    )]
    Unseen(#[from] io::Error),
    #[error("there are {MOST_RINGS} rings in device memory already")]
    TooMany,
    #[error("cannot make a ring in device memory: {0}")]
    Device(#[from] DeviceError),
}

/// Who writes a ring, as far as the end of that can be seen.
pub(super) struct Guest {
    /// Signalled by the peer.
    pub let_go: Wake,
    /// Readable once the process has ended.
    process: OwnedFd,
}

impl Guest {
    /// The peer at the other end of a local socket.
    pub fn of(socket: &Socket) -> io::Result<Guest> {
        let pid = socket.peer_process()?;
        // SAFETY: no memory is involved; the result is checked.
        let fd = cvt(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) } as i32)?;
        // SAFETY: a descriptor that was just made and that nobody else owns.
        let process = unsafe { OwnedFd::from_raw_fd(fd) };
        // The number may be another process's by now, if the peer has ended: then so has its socket.
        if socket.has_ended()? {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(Guest {
            let_go: Wake::new()?,
            process,
        })
    }

    fn fds(&self) -> [libc::pollfd; 2] {
        [self.let_go.raw(), self.process.as_raw_fd()].map(|fd| poll_fd(fd, READABLE))
    }

    fn is_gone(&self) -> bool {
        let now = std::time::Instant::now();
        matches!(wait(&mut self.fds(), Some(now)), Ok(true))
    }
}

/// The rings in device memory of one target.
#[derive(Default)]
pub(super) struct Rings(Mutex<State>);

#[derive(Default)]
struct State {
    made: usize,
    retired: Vec<(RingReader, Guest)>,
}

impl Rings {
    /// Makes one more, unless there are too many.
    pub fn make(
        &self,
        make: impl FnOnce() -> Result<RingReader, DeviceError>,
    ) -> Result<RingReader, NoRing> {
        let mut state = self.0.lock();
        if state.made >= MOST_RINGS {
            return Err(NoRing::TooMany);
        }
        let ring = make()?;
        state.made += 1;
        Ok(ring)
    }

    /// Takes a ring back whose connection has ended, and frees it as soon as `guest` is gone.
    pub fn retire(&self, ring: RingReader, guest: Guest) {
        self.0.lock().retired.push((ring, guest));
        self.collect();
    }

    /// Frees what nobody writes any more.
    pub fn collect(&self) {
        let mut state = self.0.lock();
        let kept = state.retired.len();
        state.retired.retain(|(_, guest)| !guest.is_gone());
        state.made -= kept - state.retired.len();
    }

    /// What to wait for before [`Rings::collect`] finds something.
    pub fn fds(&self) -> Vec<libc::pollfd> {
        let state = self.0.lock();
        let guests = state.retired.iter();
        guests.flat_map(|(_, guest)| guest.fds()).collect()
    }
}

impl Drop for Rings {
    fn drop(&mut self) {
        self.collect();
        // Their memory lives as long as the process: there will be nobody to free it.
        for (ring, _) in std::mem::take(&mut self.0.get_mut().retired) {
            tracing::warn!(
                bytes = ring.bytes(),
                "a ring in device memory is left to a peer that may still write it"
            );
            std::mem::forget(ring);
        }
    }
}
