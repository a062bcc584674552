//! The page pool, registered for transfer.

use millrace_engine::pages::PagePool;
use millrace_transfer::{MemoryKind, MemoryRegion, RegionError};

/// The whole of a pool's memory as a region that pages move into (decode) or out of (prefill).
pub fn transfer_region(pool: &PagePool) -> Result<MemoryRegion, RegionError> {
    let memory = pool.memory().clone();
    let (base, page_bytes, pages) = (memory.base(), memory.layout().page_bytes(), memory.pages());
    // SAFETY: `memory` is the owner of the mapping at `base`, which has this extent and stays
    // mapped until the region drops its owner.
    // - Leased pages: the engine leases fresh pages and touches them again only after
    //   `LeasedPages::settle`, which takes the `WritesEnded` of their lease.
    // - Sources: made only of pages that the engine announced as finished, each with the
    //   `PageRef` that keeps it from being freed, evicted or written as its `hold`.
    unsafe { MemoryRegion::new(base, page_bytes, pages, MemoryKind::Host, memory) }
}
