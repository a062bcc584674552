//! Who holds which page: free, in use, cached for later, or leased to a peer.
//!
//! A [`PageRef`] is a counted hold on one page. The last hold to go returns the page: to the free
//! list, or, if the page's block is known by its hash, to the cache's end of the eviction order.
//! [`LeasedPages`] are pages that a peer may still write to: they have no way back to the pool but
//! [`LeasedPages::settle`], which wants the transfer layer's proof that all writes have ended.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    mem::ManuallyDrop,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use millrace_kernels::PageMemory;
use millrace_model::blocks::BlockHash;
use millrace_transfer::WritesEnded;

/// The page pool of one engine. Cheap to clone.
#[derive(Clone)]
pub struct PagePool {
    shared: Arc<Shared>,
}

struct Shared {
    memory: Arc<PageMemory>,
    state: Mutex<State>,
}

struct State {
    pages: Vec<PageState>,
    free: Vec<u32>,
    /// Every cached block, in use or not.
    blocks: HashMap<BlockHash, u32>,
    /// Cached pages that nobody holds, least recently released first.
    evictable: BTreeMap<u64, u32>,
    clock: u64,
    leased: usize,
    changes: CacheChanges,
}

#[derive(Default, Clone)]
struct PageState {
    holds: u32,
    block: Option<BlockHash>,
    /// Key in `evictable` while `holds == 0` and `block` is known.
    released_at: u64,
}

/// What happened to the cache since the last look, for the router's prefix index.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct CacheChanges {
    pub stored: Vec<BlockHash>,
    pub removed: Vec<BlockHash>,
}

impl PagePool {
    pub fn new(memory: Arc<PageMemory>) -> PagePool {
        let count = memory.pages();
        let state = State {
            pages: vec![PageState::default(); count],
            free: (0..count as u32).rev().collect(),
            blocks: HashMap::new(),
            evictable: BTreeMap::new(),
            clock: 0,
            leased: 0,
            changes: CacheChanges::default(),
        };
        PagePool {
            shared: Arc::new(Shared {
                memory,
                state: Mutex::new(state),
            }),
        }
    }

    pub fn memory(&self) -> &Arc<PageMemory> {
        &self.shared.memory
    }

    pub fn total(&self) -> usize {
        self.shared.memory.pages()
    }

    /// Pages that [`allocate`](Self::allocate) could give now: free or evictable.
    pub fn available(&self) -> usize {
        let state = self.shared.lock();
        state.free.len() + state.evictable.len()
    }

    /// Cached pages that nobody holds: part of [`available`](Self::available).
    pub fn evictable(&self) -> usize {
        self.shared.lock().evictable.len()
    }

    pub fn leased(&self) -> usize {
        self.shared.lock().leased
    }

    /// Takes `count` pages, evicting the least recently used cached blocks where needed;
    /// all or none.
    pub fn allocate(&self, count: usize) -> Option<Vec<PageRef>> {
        // Most sequences of most steps.
        if count == 0 {
            return Some(Vec::new());
        }
        let mut state = self.shared.lock();
        if state.free.len() + state.evictable.len() < count {
            return None;
        }
        let pages = (0..count).map(|_| state.take()).collect::<Vec<_>>();
        drop(state);
        Some(
            pages
                .into_iter()
                .map(|index| PageRef {
                    shared: self.shared.clone(),
                    index,
                })
                .collect(),
        )
    }

    /// The cached pages of the longest prefix of `hashes`, each now held.
    pub fn matching(&self, hashes: &[BlockHash]) -> Vec<PageRef> {
        let mut state = self.shared.lock();
        let indexes: Vec<u32> = hashes
            .iter()
            .map_while(|hash| state.blocks.get(hash).copied())
            .collect();
        for &index in &indexes {
            state.hold(index);
        }
        drop(state);
        indexes
            .into_iter()
            .map(|index| PageRef {
                shared: self.shared.clone(),
                index,
            })
            .collect()
    }

    /// Names the full block that `page` now holds, so that later prompts find it. The first page
    /// to be named for a block stays; a second copy is simply not cached.
    pub fn store(&self, page: &PageRef, hash: BlockHash) {
        let mut state = self.shared.lock();
        if state.blocks.contains_key(&hash) || state.pages[page.index as usize].block.is_some() {
            return;
        }
        state.blocks.insert(hash, page.index);
        state.pages[page.index as usize].block = Some(hash);
        state.changes.stored.push(hash);
    }

    pub fn take_changes(&self) -> CacheChanges {
        std::mem::take(&mut self.shared.lock().changes)
    }

    /// Hashes of all cached blocks; forgets pending changes, since the answer includes them.
    pub fn snapshot(&self) -> Vec<BlockHash> {
        let mut state = self.shared.lock();
        state.changes = CacheChanges::default();
        state.blocks.keys().copied().collect()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The caller has checked that there is a page.
    fn take(&mut self) -> u32 {
        let index = self.free.pop().unwrap_or_else(|| {
            let (_, index) = self
                .evictable
                .pop_first()
                .expect("availability was checked");
            if let Some(hash) = self.pages[index as usize].block.take() {
                self.blocks.remove(&hash);
                self.changes.removed.push(hash);
            }
            index
        });
        self.pages[index as usize].holds = 1;
        index
    }

    fn hold(&mut self, index: u32) {
        let page = &mut self.pages[index as usize];
        if page.holds == 0 {
            self.evictable.remove(&page.released_at);
        }
        page.holds += 1;
    }

    fn release(&mut self, index: u32) {
        self.clock += 1;
        let page = &mut self.pages[index as usize];
        page.holds -= 1;
        if page.holds == 0 {
            if page.block.is_some() {
                page.released_at = self.clock;
                self.evictable.insert(self.clock, index);
            } else {
                self.free.push(index);
            }
        }
    }
}

/// A hold on one page. While it lives, the page is neither freed nor evicted.
pub struct PageRef {
    shared: Arc<Shared>,
    index: u32,
}

impl PageRef {
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The page's bytes, all layers. Panics where they are not in the host's memory.
    ///
    /// # Safety
    /// Nobody may write to the page while the slice lives: it is full or its sequence has ended,
    /// and it is not leased.
    pub unsafe fn bytes(&self) -> &[u8] {
        let memory = &self.shared.memory;
        assert!(
            memory.device().is_none(),
            "a device's pages are not for the host to look at"
        );
        // SAFETY: `page_ptr` gives the start of `page_bytes` mapped bytes that live as long as
        // `memory`; the caller excludes writers.
        unsafe {
            std::slice::from_raw_parts(
                memory.page_ptr(self.index as usize),
                memory.layout().page_bytes(),
            )
        }
    }
}

impl Clone for PageRef {
    fn clone(&self) -> PageRef {
        self.shared.lock().hold(self.index);
        PageRef {
            shared: self.shared.clone(),
            index: self.index,
        }
    }
}

impl Drop for PageRef {
    fn drop(&mut self) {
        self.shared.lock().release(self.index);
    }
}

impl fmt::Debug for PageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageRef({})", self.index)
    }
}

/// Lets go of a sequence's pages last to first, so that a prefix outlives what followed it.
pub fn release(mut pages: Vec<PageRef>) {
    while pages.pop().is_some() {}
}

/// Pages that a peer may write to until their lease is settled.
///
/// Dropping them unsettled does not free them: a page lost is better than a page that is written
/// by two.
#[derive(Debug)]
#[must_use = "leased pages come back only through `settle`"]
pub struct LeasedPages {
    pages: ManuallyDrop<Vec<PageRef>>,
}

impl LeasedPages {
    /// Promises `pages` to a peer. They must be fresh: held by the caller alone and not cached.
    pub fn lease(pages: Vec<PageRef>) -> LeasedPages {
        if let Some(first) = pages.first() {
            first.shared.lock().leased += pages.len();
        }
        LeasedPages {
            pages: ManuallyDrop::new(pages),
        }
    }

    pub fn indexes(&self) -> Vec<u32> {
        self.pages.iter().map(PageRef::index).collect()
    }

    /// Ends the lease. `proof` says that no write to these pages can land any more.
    ///
    /// # Panics
    /// If the proof is for other pages: the caller has mixed up two leases, and neither may be
    /// freed.
    pub fn settle(mut self, proof: WritesEnded) -> Vec<PageRef> {
        assert_eq!(proof.pages(), self.indexes(), "a proof for another lease");
        let pages = std::mem::take(&mut *self.pages);
        if let Some(first) = pages.first() {
            first.shared.lock().leased -= pages.len();
        }
        pages
    }
}

impl Drop for LeasedPages {
    fn drop(&mut self) {
        if !self.pages.is_empty() {
            tracing::error!(
                pages = self.pages.len(),
                "leased pages were dropped without proof; they are lost"
            );
        }
    }
}
