//! Page pools and waiting, for the tests.

#![allow(dead_code)] // Every test file uses its own part.

pub mod device;
pub mod peer;
pub mod sides;

use std::sync::Arc;
use std::time::{Duration, Instant};

use device::Device;
use millrace_transfer::MemoryRegion;

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

    /// Memory of a device of its own.
    pub fn of_device(page_bytes: usize, pages: usize, ordinal: u32) -> Pool {
        Pool::on(&Device::new(page_bytes * pages), page_bytes, pages, ordinal)
    }

    /// All memory of a device.
    pub fn on(device: &Device, page_bytes: usize, pages: usize, ordinal: u32) -> Pool {
        let access = Arc::new(device.clone());
        // SAFETY: the device finds bytes for every address of the region, and they stay.
        let region = unsafe {
            MemoryRegion::of_device(device.address(), page_bytes, pages, ordinal, access, ())
        };
        Pool {
            region: region.expect("a valid region"),
            base: device.base(),
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
