//! Page pools and waiting, for the tests.

#![allow(dead_code)] // Every test file uses its own part.

pub mod sides;

use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace_transfer::{DeviceAccess, MemoryRegion};

struct Elsewhere {
    forbidden: usize,
    base: usize,
}

impl DeviceAccess for Elsewhere {
    unsafe fn read(&self, from: *const u8, to: &mut [u8]) {
        let from = (from as usize - self.forbidden + self.base) as *const u8;
        // SAFETY: as far from the start of the memory as the address was; valid by the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) }
    }

    unsafe fn write(&self, from: &[u8], to: *mut u8) {
        let to = (to as usize - self.forbidden + self.base) as *mut u8;
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) }
    }
}

/// A pool whose bytes a test may look at and own, by the rules of leases.
#[derive(Clone)]
pub struct Pool {
    pub region: MemoryRegion,
    base: usize,
}

impl Pool {
    pub fn new(page_bytes: usize, pages: usize) -> Pool {
        let mut memory = vec![0u8; page_bytes * pages];
        let base = memory.as_mut_ptr();
        // SAFETY: the vector lives in the region, its heap block does not move, and it is reached
        // only through the region and the methods below.
        let region = unsafe { MemoryRegion::new(base, page_bytes, pages, memory) };
        Pool {
            region: region.expect("a valid region"),
            base: base as usize,
        }
    }

    /// Memory as of a device: its addresses are real ones that nobody may follow, and only its access knows
    /// where the bytes are.
    pub fn of_device(page_bytes: usize, pages: usize, ordinal: u32) -> Pool {
        let bytes = (page_bytes * pages).next_multiple_of(4096);
        let map = |protection| {
            // SAFETY: a new anonymous mapping.
            let base = unsafe {
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0)
            };
            assert_ne!(base, libc::MAP_FAILED);
            base as usize
        };
        let forbidden = map(libc::PROT_NONE);
        let base = map(libc::PROT_READ | libc::PROT_WRITE);
        let access = Arc::new(Elsewhere { forbidden, base });
        // SAFETY: the access finds bytes for every address of the region; both mappings stay.
        let region = unsafe {
            let forbidden = forbidden as *mut u8;
            MemoryRegion::of_device(forbidden, page_bytes, pages, ordinal, access, ())
        };
        Pool {
            region: region.expect("a valid region"),
            base,
        }
    }

    fn page_ptr(&self, page: u32) -> *mut u8 {
        assert!((page as usize) < self.region.pages());
        (self.base + page as usize * self.region.page_bytes()) as *mut u8
    }

    /// The page's bytes now; call it only while nobody may write the page.
    pub fn read(&self, page: u32) -> Vec<u8> {
        // SAFETY: in range, and by the caller's promise nobody writes.
        unsafe {
            std::slice::from_raw_parts(self.page_ptr(page), self.region.page_bytes()).to_vec()
        }
    }

    /// Uses a page that is nobody else's.
    pub fn fill(&self, page: u32, bytes: &[u8]) {
        assert_eq!(bytes.len(), self.region.page_bytes());
        // SAFETY: in range, and by the caller's promise nobody else touches it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.page_ptr(page), bytes.len()) }
    }
}

/// Bytes that tell a page written for `seed` and `index` from any other.
pub fn pattern(seed: u64, index: usize, bytes: usize) -> Vec<u8> {
    let mut state =
        seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ ((index as u64) << 32) ^ 0x5851_f42d_4c95_7f2d;
    let mut out = Vec::with_capacity(bytes + 8);
    while out.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(bytes);
    out
}

/// Waits until `done`; fails the test after a time that only a hang can reach.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
