//! Waking a thread that waits in `poll`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::socket::cvt;

/// An eventfd: readable from the first [`Wake::signal`] to the next [`Wake::clear`].
pub(crate) struct Wake(OwnedFd);

impl Wake {
    pub(crate) fn new() -> io::Result<Wake> {
        // SAFETY: no memory is involved; the result is checked.
        let fd = cvt(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        // SAFETY: a descriptor that was just made and that nobody else owns.
        Ok(Wake(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    pub(crate) fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// One that another process has made.
    pub(crate) fn of(fd: OwnedFd) -> Wake {
        Wake(fd)
    }

    pub(crate) fn signal(&self) {
        let one = 1u64;
        // SAFETY: eight bytes of a local. It fails only where the counter is full: signalled enough.
        unsafe { libc::write(self.raw(), (&raw const one).cast(), 8) };
    }

    pub(crate) fn clear(&self) {
        let mut count = 0u64;
        // SAFETY: eight bytes of a local. It fails only where nothing was signalled.
        unsafe { libc::read(self.raw(), (&raw mut count).cast(), 8) };
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
