//! The shared memory of one local connection.
//!
//! A ring holds payload bytes and nothing else: positions and lengths travel over the socket, so
//! nothing that either side relies on lies in memory that the other can change. The target makes
//! the ring and maps it read-only; the peer writes it. The memory has no name and goes when both
//! ends have dropped it, however they end. It is sealed against shrinking, so that neither side can
//! make the other fault.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::socket::cvt;

const SEALS: i32 = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;

/// A mapping of ring memory and the position in it up to which bytes have been used.
struct Ring {
    base: *mut u8,
    bytes: usize,
    position: usize,
}

// SAFETY: the mapping is owned; the raw pointer is used through `&mut self` only.
unsafe impl Send for Ring {}

impl Ring {
    fn map(fd: RawFd, bytes: usize, protection: i32) -> io::Result<Ring> {
        // SAFETY: a fresh shared mapping at an address of the kernel's choice; checked below.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                protection,
                libc::MAP_SHARED,
                fd,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Ring {
            base: base.cast(),
            bytes,
            position: 0,
        })
    }

    /// Calls `copy` with the one or two contiguous pieces that the next `count` bytes occupy, and
    /// moves past them. `count` is at most `bytes`.
    fn advance(&mut self, count: usize, mut copy: impl FnMut(*mut u8, usize)) {
        assert!(count <= self.bytes);
        let first = count.min(self.bytes - self.position);
        // SAFETY: `position < bytes`, and the first piece ends at the mapping's end at the latest.
        copy(unsafe { self.base.add(self.position) }, first);
        if first < count {
            copy(self.base, count - first);
        }
        self.position = (self.position + count) % self.bytes;
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping made by `map`, unmapped once.
        unsafe { libc::munmap(self.base.cast(), self.bytes) };
    }
}

/// The target's end.
pub(crate) struct RingReader(Ring);

impl RingReader {
    /// Makes a ring of `bytes` bytes; the descriptor is for the peer.
    pub(crate) fn create(bytes: usize) -> io::Result<(RingReader, OwnedFd)> {
        let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
        // SAFETY: the name is a C string literal.
        let fd = cvt(unsafe { libc::memfd_create(c"millrace-ring".as_ptr(), flags) })?;
        // SAFETY: a descriptor that was just made and that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let length = libc::off_t::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: no memory is involved in either call.
        cvt(unsafe { libc::ftruncate(fd.as_raw_fd(), length) })?;
        // SAFETY: as above.
        cvt(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, SEALS) })?;
        Ok((
            RingReader(Ring::map(fd.as_raw_fd(), bytes, libc::PROT_READ)?),
            fd,
        ))
    }

    pub(crate) fn bytes(&self) -> usize {
        self.0.bytes
    }

    /// Takes the next `count` bytes: `copy` gets them in one or two pieces.
    pub(crate) fn take(&mut self, count: usize, mut copy: impl FnMut(*const u8, usize)) {
        self.0.advance(count, |piece, length| copy(piece, length));
    }
}

/// The initiator's end. Keeps count of the room that the target has given back.
pub(crate) struct RingWriter {
    ring: Ring,
    room: usize,
}

impl RingWriter {
    /// Maps the ring that a target has passed, if it is what the target says it is.
    pub(crate) fn open(fd: OwnedFd, bytes: u64) -> io::Result<RingWriter> {
        let bytes = usize::try_from(bytes).map_err(|_| io::ErrorKind::InvalidData)?;
        let length = std::fs::File::from(fd.try_clone()?).metadata()?.len();
        // SAFETY: no memory is involved.
        let seals = cvt(unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_GET_SEALS) })?;
        if bytes == 0 || length < bytes as u64 || seals & libc::F_SEAL_SHRINK == 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "not a sealed ring of the size announced",
            ));
        }
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let ring = Ring::map(fd.as_raw_fd(), bytes, protection)?;
        Ok(RingWriter {
            room: ring.bytes,
            ring,
        })
    }

    pub(crate) fn room(&self) -> usize {
        self.room
    }

    pub(crate) fn bytes(&self) -> usize {
        self.ring.bytes
    }

    /// Puts `bytes`, which must fit into the room.
    pub(crate) fn put(&mut self, mut bytes: &[u8]) {
        assert!(bytes.len() <= self.room);
        self.room -= bytes.len();
        self.ring.advance(bytes.len(), |piece, length| {
            let (head, rest) = bytes.split_at(length);
            // SAFETY: `piece` is `length` bytes of our mapping; the source is ordinary memory.
            unsafe { std::ptr::copy_nonoverlapping(head.as_ptr(), piece, length) };
            bytes = rest;
        });
    }

    /// The target has taken `bytes`; false if it never got that many.
    pub(crate) fn credit(&mut self, bytes: u64) -> bool {
        let used = self.ring.bytes - self.room;
        match usize::try_from(bytes).ok().filter(|bytes| *bytes <= used) {
            Some(bytes) => self.room += bytes,
            None => return false,
        }
        true
    }
}
