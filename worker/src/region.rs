//! The page pool, registered for transfer.

use std::sync::Arc;

use millrace_engine::pages::PagePool;
use millrace_kernels::{CopyPart, KernelError, PageCopier, PageCopy, RingMemory};
use millrace_transfer::{
    DeviceAccess, DeviceCopy, DeviceError, DeviceMemory, DevicePart, MemoryRegion, RegionError,
};

/// The whole of a pool's memory as a region that pages move into (decode) or out of (prefill).
pub fn transfer_region(pool: &PagePool) -> Result<MemoryRegion, RegionError> {
    let memory = pool.memory().clone();
    let (base, page_bytes, pages) = (memory.base(), memory.layout().page_bytes(), memory.pages());
    let device = memory
        .device()
        .map(|(ordinal, copier)| (ordinal, Arc::new(ByCopier(copier.clone()))));
    // SAFETY: `memory` is the owner of the memory at `base`, which has this extent and stays until the
    // region drops its owner.
    // - Leased pages: the engine leases fresh pages and touches them again only after
    //   `LeasedPages::settle`, which takes the `WritesEnded` of their lease.
    // - Sources: made only of pages that the engine announced as finished, each with the
    //   `PageRef` that keeps it from being freed, evicted or written as its `hold`.
    unsafe {
        match device {
            None => MemoryRegion::new(base, page_bytes, pages, memory),
            Some((ordinal, access)) => {
                MemoryRegion::of_device(base, page_bytes, pages, ordinal, access, memory)
            }
        }
    }
}

/// A backend's copies are what transfer calls access: neither crate knows the other.
struct ByCopier(Arc<dyn PageCopier>);

impl DeviceAccess for ByCopier {
    unsafe fn read(&self, from: *const u8, to: &mut [u8]) {
        // SAFETY: the caller's promise.
        unsafe { self.0.read(from, to) }
    }

    unsafe fn write(&self, from: &[u8], to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { self.0.write(from, to) }
    }

    unsafe fn begin_copies(
        &self,
        parts: &[DevicePart],
    ) -> Result<Box<dyn DeviceCopy>, DeviceError> {
        let part = |&DevicePart { from, to, bytes }: &DevicePart| CopyPart { from, to, bytes };
        let parts: Vec<CopyPart> = parts.iter().map(part).collect();
        // SAFETY: the caller's promise.
        let copies = unsafe { self.0.begin_copies(&parts) };
        Ok(Box::new(Begun(copies.map_err(told)?)))
    }

    fn make_ring(&self, bytes: usize) -> Result<(DeviceMemory, Vec<u8>), DeviceError> {
        let (ring, handle) = self.0.make_ring(bytes).map_err(told)?;
        Ok((memory(ring), handle))
    }

    fn open_ring(&self, handle: &[u8], bytes: usize) -> Result<DeviceMemory, DeviceError> {
        self.0.open_ring(handle, bytes).map(memory).map_err(told)
    }
}

struct Begun(Box<dyn PageCopy>);

impl DeviceCopy for Begun {
    fn is_done(&mut self) -> Result<bool, DeviceError> {
        self.0.is_done().map_err(told)
    }

    fn wait(&mut self) -> Result<(), DeviceError> {
        self.0.wait().map_err(told)
    }
}

fn memory(ring: RingMemory) -> DeviceMemory {
    let RingMemory { address, owner } = ring;
    DeviceMemory { address, owner }
}

fn told(error: KernelError) -> DeviceError {
    DeviceError(error.to_string())
}
