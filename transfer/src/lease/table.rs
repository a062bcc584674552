//! Every live lease of one region.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

use super::entry::{Entry, LandingPage};
use super::handle::{Lease, LeaseEvent, OnEvent};
use crate::error::{GrantError, Refusal};
use crate::grant::MAX_PAGES;
use crate::machine;
use crate::memory::MemoryRegion;
use crate::stats::LeaseStats;

/// The leases on one region's pages: at most one a page.
///
/// A [`crate::Target`] has one inside. Alone it is a region that no peer can reach, which is what
/// tests of page managers want.
pub struct LeaseTable {
    region: MemoryRegion,
    live: Mutex<Live>,
    pub(super) ended: Ended,
}

struct Live {
    next: u64,
    entries: HashMap<u64, Arc<Entry>>,
    /// By page number.
    leased: Vec<bool>,
    leased_pages: u64,
}

#[derive(Default)]
pub(super) struct Ended {
    pub completed: AtomicU64,
    pub revoked: AtomicU64,
    pub dropped: AtomicU64,
}

impl LeaseTable {
    pub fn new(region: MemoryRegion) -> Arc<LeaseTable> {
        let leased = vec![false; region.pages()];
        let live = Live {
            next: 1,
            entries: HashMap::new(),
            leased,
            leased_pages: 0,
        };
        Arc::new(LeaseTable {
            region,
            live: Mutex::new(live),
            ended: Ended::default(),
        })
    }

    pub fn region(&self) -> &MemoryRegion {
        &self.region
    }

    /// Puts `pages` under a new lease. `on_event`, if any, hears of its first event on a transport
    /// thread, which it must not keep waiting.
    pub fn lease(
        self: &Arc<Self>,
        pages: &[u32],
        on_event: Option<OnEvent>,
    ) -> Result<Lease, GrantError> {
        if pages.is_empty() {
            return Err(GrantError::NoPages);
        }
        if pages.len() > MAX_PAGES {
            return Err(GrantError::TooManyPages {
                count: pages.len(),
                limit: MAX_PAGES,
            });
        }
        let key = machine::random_u128().map_err(|error| GrantError::NoKey(error.kind()))?;
        let mut live = self.live.lock();
        live.take(pages)?;
        let id = live.next;
        live.next += 1;
        let entry = Arc::new(Entry::new(
            id,
            key,
            pages.to_vec(),
            self.region.clone(),
            on_event,
        ));
        live.entries.insert(id, entry.clone());
        Ok(Lease::new(self.clone(), entry))
    }

    pub fn stats(&self) -> LeaseStats {
        let live = self.live.lock();
        LeaseStats {
            granted: live.next - 1,
            completed: self.ended.completed.load(Relaxed),
            revoked: self.ended.revoked.load(Relaxed),
            dropped: self.ended.dropped.load(Relaxed),
            active: live.entries.len() as u64,
            active_pages: live.leased_pages,
        }
    }

    /// Admits a write of `bytes` bytes to page `index` of a lease.
    pub(crate) fn begin(
        &self,
        lease: u64,
        key: u128,
        index: u32,
        bytes: u64,
    ) -> Result<LandingPage, Refusal> {
        let entry = self.find(lease, key)?;
        let page_bytes = self.region.page_bytes();
        if bytes != page_bytes as u64 {
            return Err(Refusal::WrongLength { bytes, page_bytes });
        }
        entry.begin(index)
    }

    pub(crate) fn announce(&self, lease: u64, key: u128, message: Vec<u8>) -> Result<(), Refusal> {
        self.find(lease, key)?.announce(message)
    }

    pub(crate) fn abandon(&self, lease: u64, key: u128) -> Result<(), Refusal> {
        self.find(lease, key)?.raise(LeaseEvent::Abandoned);
        Ok(())
    }

    /// The connection that wrote into `lease` is gone. Only for ids that [`Self::begin`] admitted.
    pub(crate) fn writer_lost(&self, lease: u64) {
        let entry = self.live.lock().entries.get(&lease).cloned();
        if let Some(entry) = entry {
            entry.writer_lost();
        }
    }

    fn find(&self, lease: u64, key: u128) -> Result<Arc<Entry>, Refusal> {
        let live = self.live.lock();
        match live.entries.get(&lease) {
            Some(entry) if entry.key == key => Ok(entry.clone()),
            Some(_) => Err(Refusal::WrongKey { lease }),
            None if (1..live.next).contains(&lease) => Err(Refusal::LeaseEnded { lease }),
            None => Err(Refusal::UnknownLease { lease }),
        }
    }

    /// Forgets an ended lease; its pages may be leased again.
    pub(super) fn remove(&self, entry: &Entry) {
        let mut live = self.live.lock();
        live.entries.remove(&entry.id);
        live.give_back(&entry.pages);
    }
}

impl Live {
    /// Marks all of `pages` as leased, or none.
    fn take(&mut self, pages: &[u32]) -> Result<(), GrantError> {
        for (taken, page) in pages.iter().enumerate() {
            let refused = match self.leased.get_mut(*page as usize) {
                None => GrantError::OutOfRange {
                    page: *page,
                    pages: self.leased.len(),
                },
                Some(true) => GrantError::AlreadyLeased { page: *page },
                Some(leased) => {
                    *leased = true;
                    continue;
                }
            };
            pages[..taken]
                .iter()
                .for_each(|page| self.leased[*page as usize] = false);
            return Err(refused);
        }
        self.leased_pages += pages.len() as u64;
        Ok(())
    }

    fn give_back(&mut self, pages: &[u32]) {
        pages
            .iter()
            .for_each(|page| self.leased[*page as usize] = false);
        self.leased_pages -= pages.len() as u64;
    }
}
