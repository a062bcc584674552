//! The memory at the target into which the peer of one connection writes payload.
//!
//! A ring holds payload bytes and nothing else: positions and lengths travel over the socket, so
//! nothing that either side relies on lies in memory that the other can change.
//!
//! A peer of this machine maps the ring, too. The target makes it and maps it read-only; the memory
//! has no name and goes when both ends have dropped it, however they end. It is sealed against
//! shrinking, so that neither side can make the other fault. A peer with remote access writes a ring
//! of the target's own memory by address ([`crate::nixl`]), and a peer's device one in the memory of the
//! target's device ([`crate::device`]).
//!
//! A ring, also between devices that could write each other's pages: a copy that was queued is made even if
//! the peer is stopped and its lease has been revoked meanwhile, and then it must not find a page that is
//! somebody else's by now.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::device::DeviceMemory;
use crate::socket::cvt;

const SEALS: i32 = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;

/// Ring memory and the position in it up to which bytes have been used.
struct Ring {
    base: *mut u8,
    bytes: usize,
    position: usize,
    held: Held,
}

/// What its memory is, and what becomes of it.
enum Held {
    Mapping,
    /// A mapping to whose addresses somebody may still write when it has gone.
    Haunted,
    /// Goes with what is in here. The host must not follow pointers into it.
    Device(#[expect(dead_code, reason = "it is held")] DeviceMemory),
}

// SAFETY: the memory is owned; the raw pointer is used through `&mut self` only.
unsafe impl Send for Ring {}

impl Ring {
    fn map(fd: RawFd, bytes: usize, protection: i32) -> io::Result<Ring> {
        Self::mapped(bytes, protection, libc::MAP_SHARED, fd)
    }

    fn mapped(bytes: usize, protection: i32, flags: i32, fd: RawFd) -> io::Result<Ring> {
        // SAFETY: a fresh mapping at an address of the kernel's choice; checked below.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, fd, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Ring {
            base: base.cast(),
            bytes,
            position: 0,
            held: Held::Mapping,
        })
    }

    /// Calls `copy` with the one or two contiguous pieces that the next `count` bytes occupy, and
    /// moves past them. `count` is at most `bytes`.
    fn advance(&mut self, count: usize, mut copy: impl FnMut(*mut u8, usize)) {
        assert!(count <= self.bytes);
        let first = count.min(self.bytes - self.position);
        // SAFETY: `position < bytes`, and the first piece ends at the ring's end at the latest.
        copy(unsafe { self.base.add(self.position) }, first);
        if first < count {
            copy(self.base, count - first);
        }
        self.position = (self.position + count) % self.bytes;
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        match self.held {
            Held::Device(_) => {}
            // SAFETY: the mapping made by `mapped`, unmapped once.
            Held::Mapping => unsafe {
                libc::munmap(self.base.cast(), self.bytes);
            },
            Held::Haunted => self.exorcise(),
        }
    }
}

impl Ring {
    /// Gives the memory back and keeps its addresses from being used again.
    fn exorcise(&mut self) {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
        // SAFETY: replaces the mapping made by `mapped`, once, with one that nobody can access.
        let empty =
            unsafe { libc::mmap(self.base.cast(), self.bytes, libc::PROT_NONE, flags, -1, 0) };
        if empty == libc::MAP_FAILED {
            // Only a system out of mappings gets here. Unmapping is what must not happen.
            tracing::error!(
                bytes = self.bytes,
                "cannot retire a ring: its memory is lost"
            );
        }
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

    /// Makes a ring in memory of this process's own, to be registered for a peer's remote access.
    ///
    /// When it is dropped its memory is given back, but its addresses are not used again as long as
    /// the process lives: a peer on this machine may write by address without any key (UCX does, by
    /// `process_vm_writev`), and one that was stopped meanwhile would hit whatever is there by then.
    pub(crate) fn registered(bytes: usize) -> io::Result<RingReader> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let mut ring = Ring::mapped(bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1)?;
        ring.held = Held::Haunted;
        Ok(RingReader(ring))
    }

    /// A ring of `bytes` bytes in memory of a device.
    pub(crate) fn on_device(memory: DeviceMemory, bytes: usize) -> RingReader {
        RingReader(Ring {
            base: memory.address as *mut u8,
            bytes,
            position: 0,
            held: Held::Device(memory),
        })
    }

    /// Whether the pieces that it gives are for a device and not for the host.
    pub(crate) fn is_on_device(&self) -> bool {
        matches!(self.0.held, Held::Device(_))
    }

    pub(crate) fn base(&self) -> *mut u8 {
        self.0.base
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

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(reader: &mut RingReader, count: usize) -> Vec<u8> {
        let mut out = Vec::new();
        reader.take(count, |piece, length| {
            // SAFETY: `take` gives pieces of its mapping.
            out.extend_from_slice(unsafe { std::slice::from_raw_parts(piece, length) });
        });
        out
    }

    #[test]
    fn bytes_come_out_as_they_went_in_round_and_round() {
        let (mut reader, fd) = RingReader::create(10_007).unwrap();
        let mut writer = RingWriter::open(fd, 10_007).unwrap();
        let mut next = 0u8;
        for count in [1, 10_007, 4_000, 9_999, 10_007, 3] {
            let bytes: Vec<u8> = std::iter::repeat_with(|| {
                next = next.wrapping_mul(5).wrapping_add(1);
                next
            })
            .take(count)
            .collect();
            writer.put(&bytes);
            assert_eq!(writer.room(), 10_007 - count);
            assert!(taken(&mut reader, count) == bytes);
            assert!(!writer.credit(count as u64 + 1), "more than was used");
            assert!(writer.credit(count as u64));
        }
    }

    #[test]
    fn only_a_sealed_ring_of_the_announced_size_is_mapped() {
        let (_, fd) = RingReader::create(4096).unwrap();
        assert!(RingWriter::open(fd.try_clone().unwrap(), 4097).is_err());
        assert!(RingWriter::open(fd.try_clone().unwrap(), 0).is_err());
        assert!(RingWriter::open(fd.try_clone().unwrap(), u64::MAX).is_err());
        // The other side cannot take the memory away.
        assert!(std::fs::File::from(fd).set_len(0).is_err());
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(RingWriter::open(file.into(), 4096).is_err());
    }
}
