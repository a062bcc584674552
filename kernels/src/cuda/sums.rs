//! Sums that kernels add to, and that the host looks at now and then without keeping the device waiting.

use std::ptr::NonNull;
use std::sync::Arc;

use cudarc::driver::{DriverError, result};

use super::device::Device;
use super::memory::Memory;
use super::params::Address;
use crate::KernelError;

/// Numbers that only grow on the device. [`close`](Self::close) asks for a copy in order with the kernels, so that
/// [`take`](Self::take), after something else has been waited for, finds it there.
pub struct Sums {
    device: Arc<Device>,
    memory: Memory,
    closed: Pinned,
    taken: Vec<u64>,
}

impl Sums {
    pub fn new(
        device: &Arc<Device>,
        count: usize,
        what: &'static str,
    ) -> Result<Sums, KernelError> {
        let memory = Memory::new(device, 8 * count, what)?;
        let closed = Pinned::new(count).map_err(|error| {
            KernelError::Device(format!("no pinned memory for {what}: {error}"))
        })?;
        Ok(Sums {
            device: device.clone(),
            memory,
            closed,
            taken: vec![0; count],
        })
    }

    /// For what cannot say that there is no room: then there are none, and the device says so when it is asked; see
    /// [`Memory::noted`].
    pub fn noted(device: &Arc<Device>, count: usize, what: &'static str) -> Sums {
        Sums::new(device, count, what).unwrap_or_else(|error| Sums {
            device: device.clone(),
            memory: Memory::nowhere(device, error),
            closed: Pinned::none(),
            taken: Vec::new(),
        })
    }

    /// Of the `index`th.
    pub fn address(&self, index: usize) -> Address {
        self.memory.address() + 8 * index as u64
    }

    pub fn close(&mut self) {
        self.device.bind();
        let from = self.memory.address();
        // SAFETY: pinned memory of this size, which stays until the device is done: dropping waits.
        let copied =
            unsafe { result::memcpy_dtoh_async(self.closed.numbers(), from, self.device.stream()) };
        self.device.expect(copied);
    }

    /// Adds what came to them between the closings before this call and before the last one.
    pub fn take(&mut self, sums: &mut [u64]) {
        assert_eq!(sums.len(), self.taken.len());
        self.device.bind();
        self.device.wait();
        // SAFETY: nothing is copied any more.
        let closed = unsafe { self.closed.numbers() };
        for ((sum, taken), closed) in sums.iter_mut().zip(&mut self.taken).zip(closed) {
            *sum += *closed - *taken;
            *taken = *closed;
        }
    }
}

impl Drop for Sums {
    fn drop(&mut self) {
        if self.device.context().bind_to_thread().is_ok() {
            // SAFETY: the stream lives as long as the device. One that has failed copies nothing any more.
            let _: Result<_, _> = unsafe { result::stream::synchronize(self.device.stream()) };
        }
    }
}

/// Host memory that the device copies into by itself.
struct Pinned {
    memory: NonNull<u64>,
    count: usize,
}

// SAFETY: memory of its own.
unsafe impl Send for Pinned {}

impl Pinned {
    fn none() -> Pinned {
        Pinned {
            memory: NonNull::dangling(),
            count: 0,
        }
    }

    /// Zeros, by the context of the calling thread.
    fn new(count: usize) -> Result<Pinned, DriverError> {
        let mut pinned = Pinned::none();
        if count > 0 {
            // SAFETY: a plain allocation, zeroed before anyone sees it.
            unsafe {
                let memory: *mut u64 = result::malloc_host(8 * count, 0)?.cast();
                memory.write_bytes(0, count);
                pinned.memory = NonNull::new(memory).expect("the driver has given memory");
            }
            pinned.count = count;
        }
        Ok(pinned)
    }

    /// # Safety
    /// Read and written by nobody else while the device copies.
    unsafe fn numbers(&mut self) -> &mut [u64] {
        // SAFETY: allocated with as many, and zeroed.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), self.count) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.count > 0 {
            // SAFETY: allocated once, freed once. At the end of a process the driver may be gone already.
            let _: Result<_, _> = unsafe { result::free_host(self.memory.as_ptr().cast()) };
        }
    }
}
