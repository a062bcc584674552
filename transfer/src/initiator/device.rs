//! Writing into a ring in the memory of the target's device, from the memory of one that reaches it.

use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::device::{DeviceAccess, DeviceCopy, DeviceMemory};
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

    fn write(
        &self,
        source: &Source,
        offset: usize,
        bytes: usize,
        to: u64,
    ) -> Result<Box<dyn RemoteWrite>, RemoteError> {
        let (access, to) = (access(&self.region), to as *mut u8);
        match source.region() {
            Some((region, page)) if region.is_same(&self.region) => {
                // SAFETY: a part of the page, which stays while its source does, and of the ring, which stays
                // while this does; both outlive the copy, whose end dropping it waits for.
                let copy = unsafe {
                    let from = region.page_ptr(page).add(offset);
                    access.begin_copy(from, to, bytes)?
                };
                Ok(Box::new(Copying(copy)))
            }
            _ => {
                // SAFETY: a part of the ring.
                unsafe { access.write(&source.bytes()[offset..][..bytes], to) };
                Ok(Box::new(Written))
            }
        }
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

/// From the host, and done when it was begun.
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
