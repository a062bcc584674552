//! The few calls that the standard library has no form of.

use std::io::{self, IoSlice};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use libc::c_int;

pub(crate) const READABLE: i16 = libc::POLLIN;
pub(crate) const WRITABLE: i16 = libc::POLLOUT;

/// Sends what fits now of `parts`, one after the other; `WouldBlock` is nothing.
pub(crate) fn send_now(stream: &TcpStream, parts: &[IoSlice<'_>]) -> io::Result<usize> {
    // SAFETY: all-zero bytes are a valid msghdr: no name, no control data, no parts.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    // The standard library promises that an IoSlice is an iovec; sendmsg does not write to it.
    message.msg_iov = parts.as_ptr().cast_mut().cast();
    message.msg_iovlen = parts.len() as _;
    loop {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the message names initialised memory that is borrowed for the call.
        let sent = unsafe { libc::sendmsg(stream.as_raw_fd(), &raw const message, flags) };
        match usize::try_from(sent) {
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

/// Waits until `fd` is ready for `events` or broken (which the next call on it reports), at most
/// `patience`. May return early.
pub(crate) fn wait(fd: RawFd, events: i16, patience: Duration) {
    let mut fds = [libc::pollfd {
        fd,
        events,
        revents: 0,
    }];
    // Rounded up, so that waking early never turns into spinning.
    let millis = patience
        .as_nanos()
        .div_ceil(1_000_000)
        .min(i32::MAX as u128) as c_int;
    // SAFETY: pointer and length are of one array. Failures are transient (a signal, memory), and
    // the caller looks again.
    unsafe { libc::poll(fds.as_mut_ptr(), 1, millis) };
}

/// Wakes whoever waits for connections on a listening socket, and lets none in any more.
pub(crate) fn stop_listening(fd: RawFd) {
    // SAFETY: no memory is involved. It fails only where the socket has ended already.
    unsafe { libc::shutdown(fd, libc::SHUT_RDWR) };
}
