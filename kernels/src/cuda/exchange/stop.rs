//! How a step is given up while devices wait for each other in it.

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use cudarc::driver::{result, sys};

use super::super::device::Device;
use super::super::params::Address;
use crate::KernelError;

/// A word in the host's memory that devices see: not zero once a step is given up, by whichever side.
pub(super) struct Stop {
    device: Arc<Device>,
    word: *mut c_void,
}

// SAFETY: memory that is this one's own, read and written as an atomic.
unsafe impl Send for Stop {}

impl Stop {
    pub(super) fn new(device: &Arc<Device>) -> Result<Stop, KernelError> {
        device.bind();
        let flags = sys::CU_MEMHOSTALLOC_DEVICEMAP | sys::CU_MEMHOSTALLOC_PORTABLE;
        // SAFETY: a plain allocation.
        let word = unsafe { result::malloc_host(size_of::<AtomicU32>(), flags) };
        let stop = Stop {
            device: device.clone(),
            word: word.map_err(|error| KernelError::Device(error.to_string()))?,
        };
        stop.clear();
        Ok(stop)
    }

    /// Where devices see it.
    pub(super) fn address(&self) -> Address {
        self.word as Address
    }

    pub(super) fn clear(&self) {
        self.word().store(0, Ordering::Relaxed);
    }

    pub(super) fn set(&self) {
        self.word().store(1, Ordering::Relaxed);
    }

    pub(super) fn is_set(&self) -> bool {
        self.word().load(Ordering::Acquire) != 0
    }

    fn word(&self) -> &AtomicU32 {
        // SAFETY: of this size and alignment, alive for as long as this.
        unsafe { &*self.word.cast::<AtomicU32>() }
    }
}

impl Drop for Stop {
    fn drop(&mut self) {
        if self.device.context().bind_to_thread().is_ok() {
            self.device.wait();
            // SAFETY: allocated once, freed once, and no kernel reads it any more.
            let _: Result<_, _> = unsafe { result::free_host(self.word) };
        }
    }
}
