//! One lease and its fence.
//!
//! The fence is a mutex. A transport thread holds it while it copies bytes into a page, never for
//! more than [`LANDING_SLICE`] bytes and never while it waits for a peer; whoever ends the lease
//! takes it once. So ending a lease is quick whatever the peer does, and after it no byte lands.
//!
//! Copies inside a device's memory are begun under the fence and go on after it is let go. They are
//! left with it, and who ends the lease waits for them: for a part of a ring, some tens of microseconds,
//! and again for no peer.

use std::io;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use xxhash_rust::xxh3::Xxh3;

use super::handle::{LeaseEvent, OnEvent};
use crate::device::{DeviceCopy, DeviceError, DevicePart};
use crate::error::Refusal;
use crate::memory::MemoryRegion;

/// Most bytes copied under the fence at once: some 50 µs, the longest that ending a lease waits.
pub(crate) const LANDING_SLICE: usize = 256 << 10;

pub(super) struct Entry {
    pub id: u64,
    pub key: u128,
    pub pages: Vec<u32>,
    pub region: MemoryRegion,
    pub fence: Mutex<Fence>,
    /// Signalled when `fence.event` is set.
    pub event: Condvar,
}

pub(super) struct Fence {
    pub phase: Phase,
    slots: Vec<Slot>,
    /// Copies on a device that may not have ended, and the pages (by index) that they fill.
    copies: Vec<(Vec<u32>, Box<dyn DeviceCopy>)>,
    pub landed: usize,
    pub landed_bytes: u64,
    /// The first thing that the lease's owner should hear of.
    pub event: Option<LeaseEvent>,
    on_event: Option<OnEvent>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Open,
    /// Every page landed and the writer said so.
    Announced,
    Ended,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Slot {
    Empty,
    Filling,
    Landed,
}

impl Fence {
    /// Waits for copies into pages `of` that are asked for.
    fn end_copies(&mut self, is_meant: impl Fn(u32) -> bool) {
        let meant = |pages: &[u32]| pages.iter().any(|of| is_meant(*of));
        for (_, mut copy) in self.copies.extract_if(.., |(of, _)| meant(of)) {
            expect(copy.wait());
        }
    }
}

/// A device that refuses a copy inside its own memory is lost, and what it holds with it.
fn expect<T>(done: Result<T, DeviceError>) -> T {
    done.unwrap_or_else(|error| panic!("a page cannot be copied on its device: {error}"))
}

/// The lease has ended: not a byte more may land.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LeaseOver;

impl Entry {
    pub fn new(
        id: u64,
        key: u128,
        pages: Vec<u32>,
        region: MemoryRegion,
        on_event: Option<OnEvent>,
    ) -> Entry {
        let fence = Fence {
            phase: Phase::Open,
            slots: vec![Slot::Empty; pages.len()],
            copies: Vec::new(),
            landed: 0,
            landed_bytes: 0,
            event: None,
            on_event,
        };
        Entry {
            id,
            key,
            pages,
            region,
            fence: Mutex::new(fence),
            event: Condvar::new(),
        }
    }

    /// After this returns nothing writes into the lease's pages. Returns the phase until now.
    pub fn end(&self) -> Phase {
        let mut fence = self.fence.lock();
        // The callback would only tell the owner what it has just decided itself.
        fence.on_event = None;
        fence.end_copies(|_| true);
        std::mem::replace(&mut fence.phase, Phase::Ended)
    }

    /// Reserves page `index` for one writer.
    pub fn begin(self: &Arc<Self>, index: u32) -> Result<LandingPage, Refusal> {
        let lease = self.id;
        let mut fence = self.fence.lock();
        if fence.phase == Phase::Ended {
            return Err(Refusal::LeaseEnded { lease });
        }
        let pages = self.pages.len();
        let slot = fence
            .slots
            .get_mut(index as usize)
            .ok_or(Refusal::IndexOutOfRange {
                lease,
                index,
                pages,
            })?;
        if *slot != Slot::Empty {
            return Err(Refusal::WrittenTwice { lease, index });
        }
        *slot = Slot::Filling;
        Ok(LandingPage {
            entry: self.clone(),
            index,
            filled: 0,
            counted: 0,
            hash: None,
            planned: Vec::new(),
            bounce: Vec::new(),
            landed: false,
        })
    }

    /// Takes the writer's word that it has written everything, if it has.
    pub fn announce(&self, message: Vec<u8>) -> Result<(), Refusal> {
        let (lease, pages) = (self.id, self.pages.len());
        let mut fence = self.fence.lock();
        match fence.phase {
            Phase::Ended => return Err(Refusal::LeaseEnded { lease }),
            Phase::Announced => return Err(Refusal::AnnouncedTwice { lease }),
            Phase::Open if fence.landed < pages => {
                return Err(Refusal::Incomplete {
                    lease,
                    landed: fence.landed,
                    pages,
                });
            }
            Phase::Open => fence.phase = Phase::Announced,
        }
        drop(fence);
        self.raise(LeaseEvent::Announced { message });
        Ok(())
    }

    /// Tells the owner, once: the first event counts.
    pub fn raise(&self, event: LeaseEvent) {
        let mut fence = self.fence.lock();
        if fence.event.is_some() || fence.phase == Phase::Ended {
            return;
        }
        fence.event = Some(event.clone());
        let on_event = fence.on_event.take();
        self.event.notify_all();
        drop(fence);
        if let Some(on_event) = on_event {
            on_event(event);
        }
    }

    /// A connection that wrote here is gone; news only if more was to come.
    pub fn writer_lost(&self) {
        if self.fence.lock().phase == Phase::Open {
            self.raise(LeaseEvent::WriterLost);
        }
    }
}

/// A page that one writer is filling. Dropped before [`LandingPage::landed`], the page counts as
/// not written and may be written again.
pub(crate) struct LandingPage {
    entry: Arc<Entry>,
    index: u32,
    filled: usize,
    /// Bytes of it that are in the lease's `landed_bytes`.
    counted: usize,
    /// Copies on the device that are still to be begun.
    planned: Vec<DevicePart>,
    hash: Option<Box<Xxh3>>,
    /// Of a page that is not in host memory: bytes on their way there.
    bounce: Vec<u8>,
    landed: bool,
}

impl LandingPage {
    pub(crate) fn with_checksum(mut self) -> Self {
        self.hash = Some(Box::default());
        self
    }

    /// Lets `copy` put up to `limit` bytes at the page's next free byte. `copy` gets the place and
    /// how much fits, returns how much it put there, and must not wait for anything.
    pub(crate) fn fill(
        &mut self,
        limit: usize,
        copy: impl FnOnce(*mut u8, usize) -> io::Result<usize>,
    ) -> Result<io::Result<usize>, LeaseOver> {
        let region = &self.entry.region;
        let room = (region.page_bytes() - self.filled)
            .min(limit)
            .min(LANDING_SLICE);
        let page = region.page_ptr(self.entry.pages[self.index as usize]);
        let mut fence = self.entry.fence.lock();
        if fence.phase != Phase::Open {
            return Err(LeaseOver);
        }
        // SAFETY: `filled <= page_bytes`, so this stays inside (or at the end of) the page.
        let place = unsafe { page.add(self.filled) };
        let access = region.access();
        let on_host = match access {
            None => place,
            Some(_) => {
                self.bounce.resize(LANDING_SLICE, 0);
                self.bounce.as_mut_ptr()
            }
        };
        let count = match copy(on_host, room) {
            Ok(count) => count,
            Err(error) => return Ok(Err(error)),
        };
        assert!(count <= room, "{count} bytes copied where {room} fit");
        // SAFETY: bytes just written, inside the page (or on their way there), which is ours while the fence
        // is held.
        let bytes = unsafe { std::slice::from_raw_parts(on_host, count) };
        if let Some(hash) = &mut self.hash {
            hash.update(bytes);
        }
        if let Some(access) = access {
            // SAFETY: as many bytes as have room in the page. Done when it returns, and so before the fence
            // is let go.
            unsafe { access.write(bytes, place) };
        }
        self.filled += count;
        self.counted += count;
        fence.landed_bytes += count as u64;
        Ok(Ok(count))
    }

    /// Puts up to `limit` bytes of `from`, in memory of the page's device, at the page's next free byte, once
    /// [`LandingPage::begin_copies`] is asked to. Returns how many.
    ///
    /// # Safety
    /// The region is a device's, and `from` is valid there for reads of `limit` bytes until the page has landed
    /// or is dropped.
    pub(crate) unsafe fn plan_on_device(&mut self, limit: usize, from: *const u8) -> usize {
        let region = &self.entry.region;
        let count = (region.page_bytes() - self.filled).min(limit);
        let page = region.page_ptr(self.entry.pages[self.index as usize]);
        self.planned.push(DevicePart {
            from: from as u64,
            to: page as u64 + self.filled as u64,
            bytes: count,
        });
        self.filled += count;
        count
    }

    /// Begins the copies that were planned for `pages`, but for those whose lease has ended.
    /// [`LandingPage::landed`] waits for them, and so does whoever ends the lease.
    pub(crate) fn begin_copies<'a>(pages: impl Iterator<Item = &'a mut LandingPage>) {
        let mut pages: Vec<_> = pages.filter(|page| !page.planned.is_empty()).collect();
        for pages in pages.chunk_by_mut(|a, b| Arc::ptr_eq(&a.entry, &b.entry)) {
            let entry = pages[0].entry.clone();
            let mut fence = entry.fence.lock();
            let mut parts = Vec::new();
            for page in pages.iter_mut() {
                parts.append(&mut page.planned);
            }
            if fence.phase != Phase::Open {
                continue;
            }
            for page in pages.iter_mut() {
                fence.landed_bytes += (page.filled - page.counted) as u64;
                page.counted = page.filled;
            }
            let access = entry.region.access().expect("planned for devices alone");
            // SAFETY: what is read is valid by the promise to `plan_on_device`. What is written has room in pages
            // that are ours, each under one writer, until the lease has ended; and that waits for what is in
            // `copies`.
            let copies = expect(unsafe { access.begin_copies(&parts) });
            let of = pages.iter().map(|page| page.index).collect();
            fence.copies.push((of, copies));
        }
    }

    /// Waits for what was begun.
    pub(crate) fn end_copies(&self) {
        let mut fence = self.entry.fence.lock();
        fence.end_copies(|of| of == self.index);
    }

    /// Counts the page as written. Every byte must have come, with the checksum it was sent with.
    pub(crate) fn landed(mut self, checksum: Option<u64>) -> Result<(), Refusal> {
        let (lease, index) = (self.entry.id, self.index);
        if let (Some(hash), Some(sent)) = (&self.hash, checksum)
            && hash.digest() != sent
        {
            return Err(Refusal::Checksum { lease, index });
        }
        let page_bytes = self.entry.region.page_bytes();
        if self.filled != page_bytes {
            return Err(Refusal::WrongLength {
                bytes: self.filled as u64,
                page_bytes,
            });
        }
        let mut fence = self.entry.fence.lock();
        if fence.phase != Phase::Open {
            return Err(Refusal::LeaseEnded { lease });
        }
        fence.end_copies(|of| of == index);
        fence.slots[index as usize] = Slot::Landed;
        fence.landed += 1;
        drop(fence);
        self.landed = true;
        Ok(())
    }
}

impl Drop for LandingPage {
    fn drop(&mut self) {
        if !self.landed {
            let mut fence = self.entry.fence.lock();
            fence.end_copies(|of| of == self.index);
            fence.slots[self.index as usize] = Slot::Empty;
            fence.landed_bytes -= self.counted as u64;
        }
    }
}
