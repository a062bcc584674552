//! What the owner of leased pages holds.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::entry::{Entry, Phase};
use super::table::LeaseTable;
use crate::deadline::within;
use crate::memory::MemoryRegion;

/// Runs on a transport thread at a lease's first event; must not wait or panic.
pub type OnEvent = Box<dyn FnOnce(LeaseEvent) + Send>;

/// What became of a lease's writer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseEvent {
    /// Every page has landed; `message` is what the writer had to say. [`Lease::complete`] will
    /// succeed.
    Announced { message: Vec<u8> },
    /// The writer gave up before it had written everything.
    Abandoned,
    /// The connection broke in between. Pages may be missing; nothing more comes over it.
    WriterLost,
}

/// Pages that a peer may write.
///
/// There is no `free` here: the pages belong to the peer until [`Lease::complete`] or
/// [`Lease::revoke`] turns the lease into [`WritesEnded`]. Dropping it instead ends the writes too,
/// but leaves no proof, so its pages stay unusable: a bug, which is logged and counted.
#[must_use = "leased pages can only be freed after complete() or revoke()"]
pub struct Lease {
    table: Arc<LeaseTable>,
    /// Absent only once consumed.
    entry: Option<Arc<Entry>>,
}

/// The lease cannot be completed yet, and is handed back.
#[derive(Debug, thiserror::Error)]
#[error("{landed} of the {pages} pages of lease {} have landed and the writer has not announced them", lease.id())]
pub struct NotComplete {
    pub lease: Lease,
    pub landed: usize,
    pub pages: usize,
}

impl Lease {
    pub(super) fn new(table: Arc<LeaseTable>, entry: Arc<Entry>) -> Lease {
        Lease {
            table,
            entry: Some(entry),
        }
    }

    fn entry(&self) -> &Arc<Entry> {
        self.entry
            .as_ref()
            .expect("a lease is consumed only by value")
    }

    pub fn id(&self) -> u64 {
        self.entry().id
    }

    pub(crate) fn key(&self) -> u128 {
        self.entry().key
    }

    pub fn pages(&self) -> &[u32] {
        &self.entry().pages
    }

    /// Pages that have landed so far, whole and verified.
    pub fn landed(&self) -> usize {
        self.entry().fence.lock().landed
    }

    /// Bytes that have landed so far, those of half-written pages included.
    pub fn landed_bytes(&self) -> u64 {
        self.entry().fence.lock().landed_bytes
    }

    /// The first event, waited for at most `timeout`; `None` if nothing happened.
    pub fn wait(&self, timeout: Duration) -> Option<LeaseEvent> {
        let deadline = within(timeout);
        let entry = self.entry();
        let mut fence = entry.fence.lock();
        while fence.event.is_none() {
            if entry.event.wait_until(&mut fence, deadline).timed_out() {
                break;
            }
        }
        fence.event.clone()
    }

    /// Ends a lease whose pages have all landed and been announced.
    pub fn complete(mut self) -> Result<WritesEnded, Box<NotComplete>> {
        let fence = self.entry().fence.lock();
        if fence.phase != Phase::Announced {
            let (landed, pages) = (fence.landed, self.pages().len());
            drop(fence);
            return Err(Box::new(NotComplete {
                lease: self,
                landed,
                pages,
            }));
        }
        drop(fence);
        Ok(self.end(|table| &table.ended.completed))
    }

    /// Ends the lease whatever the peer is doing. Once this returns, no peer (dead, hung, stopped
    /// or alive) can change a byte of the pages. Never waits for a peer: at most for one copy of
    /// 256 KiB, or for the few copies that a device has begun.
    pub fn revoke(mut self) -> WritesEnded {
        self.end(|table| &table.ended.revoked)
    }

    fn end(&mut self, count: fn(&LeaseTable) -> &AtomicU64) -> WritesEnded {
        let entry = self
            .entry
            .take()
            .expect("a lease is consumed only by value");
        entry.end();
        self.table.remove(&entry);
        count(&self.table).fetch_add(1, Relaxed);
        WritesEnded {
            lease: entry.id,
            pages: entry.pages.clone(),
            region: entry.region.clone(),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(entry) = self.entry.take() {
            entry.end();
            self.table.remove(&entry);
            self.table.ended.dropped.fetch_add(1, Relaxed);
            tracing::error!(
                lease = entry.id,
                pages = entry.pages.len(),
                "lease dropped without complete() or revoke(): its pages cannot be freed"
            );
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease({}, {} pages)", self.id(), self.pages().len())
    }
}

/// Proof that no peer can write a lease's pages any more. Only this crate makes one, by
/// [`Lease::complete`] or [`Lease::revoke`]; page managers free leased pages against it alone.
///
/// ```compile_fail
/// # fn f(ended: millrace_transfer::WritesEnded) {
/// let twice = (ended.clone(), ended); // One proof frees once.
/// # }
/// ```
/// ```compile_fail
/// let made_up = millrace_transfer::WritesEnded { lease: 1, pages: vec![2] };
/// ```
#[derive(Debug)]
#[must_use = "this is what leased pages are freed against"]
pub struct WritesEnded {
    lease: u64,
    pages: Vec<u32>,
    region: MemoryRegion,
}

impl WritesEnded {
    /// Number of the lease. Pools of other regions have leases of the same numbers.
    pub fn lease(&self) -> u64 {
        self.lease
    }

    /// The pages that it is a proof for, of its region.
    pub fn pages(&self) -> &[u32] {
        &self.pages
    }

    pub fn region(&self) -> &MemoryRegion {
        &self.region
    }

    pub fn into_pages(self) -> Vec<u32> {
        self.pages
    }
}
