//! An engine's page pool and its leases, over memory that nobody writes.

use std::sync::Arc;

use millrace_engine::pages::PagePool;
use millrace_kernels::{KvDtype, PageLayout, PageMemory};
use millrace_transfer::{LeaseTable, MemoryRegion};

/// The smallest page there is: only who holds it matters here.
const LAYOUT: PageLayout = PageLayout {
    layers: 1,
    row_values: 1,
    latent: 0,
    dtype: KvDtype::Bf16,
};

/// `pages` pages of address space, without memory behind them until somebody writes, which nobody does.
///
/// # Panics
/// If the system has no address space left, or for no pages: [`Scenario`](crate::Scenario) checks that.
pub fn empty(pages: usize) -> (PagePool, Arc<LeaseTable>) {
    let memory = PageMemory::allocate(LAYOUT, pages).expect("address space for pages");
    let (base, page_bytes) = (memory.base(), memory.layout().page_bytes());
    // SAFETY: `memory` is the mapping of this extent at `base`, and the region's owner. No peer can reach the region,
    // no source is made of it, and nothing here reads or writes a page.
    let region = unsafe { MemoryRegion::new(base, page_bytes, pages, memory.clone()) };
    let region = region.expect("the mapping has pages of some bytes");
    (PagePool::new(memory), LeaseTable::new(region))
}
