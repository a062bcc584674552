//! One connected socket, TCP or local: never blocks except in [`Socket::wait`], which always has a
//! deadline.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use libc::{c_int, c_void};

use crate::deadline::within;

/// A non-blocking duplex byte stream.
pub(crate) struct Socket {
    fd: OwnedFd,
}

/// What [`wait`] waits for on one descriptor.
pub(crate) const READABLE: i16 = libc::POLLIN;
pub(crate) const WRITABLE: i16 = libc::POLLOUT;

impl Socket {
    pub(crate) fn new(fd: OwnedFd) -> Socket {
        Socket { fd }
    }

    /// Connects within `patience`.
    pub(crate) fn connect_tcp(address: SocketAddr, patience: Duration) -> io::Result<Socket> {
        let stream = TcpStream::connect_timeout(&address, patience)?;
        let socket = Socket::new(stream.into());
        socket.tune_tcp()?;
        Ok(socket)
    }

    /// Connects to the abstract local socket `name`; at once or not at all.
    pub(crate) fn connect_local(name: &str) -> io::Result<Socket> {
        let (address, length) = local_address(name)?;
        // SAFETY: plain socket call; the result is checked.
        let fd = cvt(unsafe { libc::socket(libc::AF_UNIX, SOCKET_FLAGS, 0) })?;
        // SAFETY: a descriptor that was just made and that nobody else owns.
        let socket = Socket::new(unsafe { OwnedFd::from_raw_fd(fd) });
        // SAFETY: the address is an initialised sockaddr_un and `length` lies within it. The socket
        // is non-blocking: a full backlog (a stopped target) answers EAGAIN instead of waiting.
        cvt(unsafe { libc::connect(fd, (&raw const address).cast(), length) })?;
        Ok(socket)
    }

    /// Frames are small and answers are waited for.
    pub(crate) fn tune_tcp(&self) -> io::Result<()> {
        let value: c_int = 1;
        let length = size_of::<c_int>() as libc::socklen_t;
        // SAFETY: the option value is a c_int that outlives the call.
        cvt(unsafe {
            libc::setsockopt(
                self.raw(),
                libc::IPPROTO_TCP,
                libc::TCP_NODELAY,
                (&raw const value).cast(),
                length,
            )
        })?;
        Ok(())
    }

    pub(crate) fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Takes what has arrived, up to `length` bytes; 0 is the peer's end; `WouldBlock` is nothing.
    ///
    /// # Safety
    /// `to` is valid for writes of `length` bytes.
    pub(crate) unsafe fn recv_raw(&self, to: *mut u8, length: usize) -> io::Result<usize> {
        retry(|| {
            // SAFETY: the caller's contract.
            unsafe { libc::recv(self.raw(), to.cast::<c_void>(), length, libc::MSG_DONTWAIT) }
        })
    }

    pub(crate) fn recv(&self, to: &mut [u8]) -> io::Result<usize> {
        // SAFETY: a slice is valid for writes of its length.
        unsafe { self.recv_raw(to.as_mut_ptr(), to.len()) }
    }

    /// Sends what fits now. `more` says that further bytes follow at once.
    pub(crate) fn send(&self, bytes: &[u8], more: bool) -> io::Result<usize> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL | if more { libc::MSG_MORE } else { 0 };
        retry(|| {
            // SAFETY: pointer and length are of one slice.
            unsafe {
                libc::send(
                    self.raw(),
                    bytes.as_ptr().cast::<c_void>(),
                    bytes.len(),
                    flags,
                )
            }
        })
    }

    pub(crate) fn send_all(&self, mut bytes: &[u8], patience: Duration) -> io::Result<()> {
        let mut deadline = within(patience);
        while !bytes.is_empty() {
            match self.send(bytes, false) {
                Ok(count) => {
                    bytes = &bytes[count..];
                    deadline = within(patience);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !self.wait(WRITABLE, deadline)? {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits until the socket is ready for `events` (or broken, which reading then reports); false
    /// when `deadline` came first.
    pub(crate) fn wait(&self, events: i16, deadline: Instant) -> io::Result<bool> {
        let mut fds = [poll_fd(self.raw(), events)];
        wait(&mut fds, Some(deadline))
    }

    /// Waits for up to `time` and does not sleep meanwhile.
    pub(crate) fn spin(&self, events: i16, time: Duration) -> io::Result<bool> {
        let mut fds = [poll_fd(self.raw(), events)];
        let deadline = within(time);
        while !wait_briefly(&mut fds, Duration::ZERO)? {
            if Instant::now() >= deadline {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The number of the process that has connected this local socket.
    pub(crate) fn peer_process(&self) -> io::Result<libc::pid_t> {
        let mut peer = libc::ucred {
            pid: 0,
            uid: 0,
            gid: 0,
        };
        let mut length = size_of::<libc::ucred>() as libc::socklen_t;
        // SAFETY: a local of the option's type and its size.
        cvt(unsafe {
            libc::getsockopt(
                self.raw(),
                libc::SOL_SOCKET,
                libc::SO_PEERCRED,
                (&raw mut peer).cast(),
                &raw mut length,
            )
        })?;
        match peer.pid {
            // Of a PID namespace that cannot be seen from this one.
            ..=0 => Err(io::ErrorKind::NotFound.into()),
            pid => Ok(pid),
        }
    }

    /// Whether the peer has closed its end.
    pub(crate) fn has_ended(&self) -> io::Result<bool> {
        let mut fds = [poll_fd(self.raw(), libc::POLLRDHUP)];
        wait(&mut fds, Some(Instant::now()))
    }

    /// Ends the connection both ways; whoever waits on it wakes up.
    pub(crate) fn shutdown(&self) {
        // SAFETY: no memory is involved. An error means that it has ended already.
        unsafe { libc::shutdown(self.raw(), libc::SHUT_RDWR) };
    }

    /// Ends sending, so that the peer reads an end after what was sent.
    pub(crate) fn shutdown_send(&self) {
        // SAFETY: as above.
        unsafe { libc::shutdown(self.raw(), libc::SHUT_WR) };
    }
}

pub(crate) const SOCKET_FLAGS: c_int = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;

/// The abstract address of `name`, and its length.
pub(crate) fn local_address(name: &str) -> io::Result<(libc::sockaddr_un, libc::socklen_t)> {
    // SAFETY: all-zero bytes are a valid sockaddr_un.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    // The first byte stays zero: that is what makes a name abstract.
    let room = address
        .sun_path
        .get_mut(1..=name.len())
        .ok_or(io::ErrorKind::InvalidInput)?;
    for (to, from) in room.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let length = std::mem::offset_of!(libc::sockaddr_un, sun_path) + 1 + name.len();
    Ok((address, length as libc::socklen_t))
}

pub(crate) fn poll_fd(fd: RawFd, events: i16) -> libc::pollfd {
    libc::pollfd {
        fd,
        events,
        revents: 0,
    }
}

/// Waits until one of `fds` is ready; false when `deadline` came first.
pub(crate) fn wait(fds: &mut [libc::pollfd], deadline: Option<Instant>) -> io::Result<bool> {
    loop {
        let millis = match deadline {
            None => -1,
            // Rounded up, so that waking early never turns into spinning.
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                left.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128) as c_int
            }
        };
        // SAFETY: pointer and length are of one slice.
        let ready = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, millis) };
        match cvt(ready) {
            Ok(0) if millis < 0 => {}
            Ok(ready) => return Ok(ready > 0),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Waits until one of `fds` is ready, for a time that may be shorter than a millisecond; false when
/// that was over first.
pub(crate) fn wait_briefly(fds: &mut [libc::pollfd], time: Duration) -> io::Result<bool> {
    let time = libc::timespec {
        tv_sec: time.as_secs() as libc::time_t,
        tv_nsec: time.subsec_nanos().into(),
    };
    let (count, no_mask) = (fds.len() as libc::nfds_t, std::ptr::null());
    // SAFETY: pointer and length are of one slice, the time is a local, and no mask is allowed.
    match cvt(unsafe { libc::ppoll(fds.as_mut_ptr(), count, &raw const time, no_mask) }) {
        Ok(ready) => Ok(ready > 0),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
        Err(error) => Err(error),
    }
}

/// -1 as the error it stands for.
pub(crate) fn cvt(result: c_int) -> io::Result<c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(count) => return Ok(count),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}
