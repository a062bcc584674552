//! Writing into a ring in the memory of the target's device, from the memory of one that reaches it.

use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::device::{DeviceAccess, DeviceCopy, DeviceMemory, DevicePart};
use crate::memory::{MemoryRegion, Source};
use crate::remote::{RemoteError, RemoteMemory, RemoteWrite};
use crate::wake::Wake;

/// Between devices a page takes some microseconds, and waking a thread takes longer than that.
const SPIN: Duration = Duration::from_micros(200);

/// A target's ring, opened by the device that pages come from.
pub(super) struct DeviceRing {
    /// Closed before the target is told so.
    ring: DeviceMemory,
    region: MemoryRegion,
    /// Copies to be begun together.
    added: Vec<DevicePart>,
    _let_go: LetGo,
}

/// Tells the target, when dropped, that nothing here writes its ring any more, so that it may free the memory.
/// Not over the connection: that may have ended, or be full, in the middle of a frame.
struct LetGo(Wake);

impl DeviceRing {
    /// Opens what a target has made for this connection. If that fails the target is told, too.
    pub(super) fn open(
        region: &MemoryRegion,
        handle: &[u8],
        bytes: u64,
        let_go: OwnedFd,
    ) -> Result<DeviceRing, RemoteError> {
        let let_go = LetGo(Wake::of(let_go));
        let size = usize::try_from(bytes).map_err(|_| RemoteError::Size(bytes))?;
        Ok(DeviceRing {
            ring: access(region).open_ring(handle, size)?,
            region: region.clone(),
            added: Vec::new(),
            _let_go: let_go,
        })
    }

    pub(super) fn base(&self) -> u64 {
        self.ring.address
    }
}

fn access(region: &MemoryRegion) -> &dyn DeviceAccess {
    region
        .access()
        .expect("a ring in device memory is asked for by regions in device memory alone")
}

impl RemoteMemory for DeviceRing {
    fn reaches(&self, source: &Source) -> bool {
        source.is_on_host()
            || source
                .region()
                .is_some_and(|(region, _)| region.is_same(&self.region))
    }

    fn add(
        &mut self,
        source: &Source,
        offset: usize,
        bytes: usize,
        to: u64,
    ) -> Result<(), RemoteError> {
        match source.region() {
            Some((region, page)) if region.is_same(&self.region) => self.added.push(DevicePart {
                from: region.page_ptr(page) as u64 + offset as u64,
                to,
                bytes,
            }),
            // SAFETY: a part of the ring.
            _ => unsafe {
                access(&self.region).write(&source.bytes()[offset..][..bytes], to as *mut u8);
            },
        }
        Ok(())
    }

    fn begin(&mut self) -> Result<Box<dyn RemoteWrite>, RemoteError> {
        if self.added.is_empty() {
            return Ok(Box::new(Written));
        }
        // SAFETY: parts of pages, which stay while their sources do, and parts of the ring, which stays while this
        // does; both outlive the copies, whose end dropping them waits for. The target has given those parts of the
        // ring back, and no two are the same.
        let copies = unsafe { access(&self.region).begin_copies(&self.added)? };
        self.added.clear();
        Ok(Box::new(Copying(copies)))
    }

    /// Half of it: the next half is written while the target empties this one.
    fn at_once(&self, ring_bytes: usize) -> usize {
        ring_bytes / 2
    }

    fn spin(&self) -> Duration {
        SPIN
    }
}

struct Copying(Box<dyn DeviceCopy>);

impl RemoteWrite for Copying {
    fn is_done(&mut self) -> Result<bool, RemoteError> {
        Ok(self.0.is_done()?)
    }
}

/// From the host, and done when it was added.
struct Written;

impl RemoteWrite for Written {
    fn is_done(&mut self) -> Result<bool, RemoteError> {
        Ok(true)
    }
}

impl Drop for LetGo {
    fn drop(&mut self) {
        self.0.signal();
    }
}
