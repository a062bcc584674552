//! Memory of a device.

use std::sync::Arc;

use bytemuck::Pod;
use cudarc::driver::{result, sys};

use super::device::Device;
use super::params::Address;
use crate::KernelError;

const LEAST: usize = 16;

/// Bytes on a device, freed when this is dropped.
pub struct Memory {
    device: Arc<Device>,
    address: Address,
    bytes: usize,
    what: &'static str,
}

impl Memory {
    /// Zeroed.
    pub fn new(
        device: &Arc<Device>,
        bytes: usize,
        what: &'static str,
    ) -> Result<Memory, KernelError> {
        let memory = Memory::unset(device, bytes, what)?;
        let asked = bytes.max(LEAST);
        // SAFETY: the whole of what was allocated.
        let zeroed = unsafe { result::memset_d8_async(memory.address, 0, asked, device.stream()) };
        device.expect(zeroed);
        Ok(memory)
    }

    /// Of whatever bytes were there.
    pub fn unset(
        device: &Arc<Device>,
        bytes: usize,
        what: &'static str,
    ) -> Result<Memory, KernelError> {
        device.bind();
        // An address must be the memory's own, also of nothing.
        let asked = bytes.max(LEAST);
        // SAFETY: a plain allocation, of numbers for the device alone.
        let address = unsafe { result::malloc_sync(asked) }.map_err(|_| no_room(what, bytes))?;
        let memory = Memory {
            device: device.clone(),
            address,
            bytes,
            what,
        };
        device.ledger().add(what, bytes);
        Ok(memory)
    }

    /// For what cannot say that there is no room: then it is nowhere, and the device says so when it is asked
    /// ([`Ledger::check`]).
    pub fn noted(device: &Arc<Device>, bytes: usize, what: &'static str) -> Memory {
        Memory::new(device, bytes, what).unwrap_or_else(|error| Memory::nowhere(device, error))
    }

    /// The same with a copy of `values`.
    pub fn noted_copy_of<T: Pod>(device: &Arc<Device>, values: &[T], what: &'static str) -> Memory {
        let copied = Memory::copy_of(device, values, what);
        copied.unwrap_or_else(|error| Memory::nowhere(device, error))
    }

    pub(super) fn nowhere(device: &Arc<Device>, error: KernelError) -> Memory {
        device.ledger().refuse(error);
        Memory {
            device: device.clone(),
            address: 0,
            bytes: 0,
            what: "",
        }
    }

    /// A copy of `values`.
    pub fn copy_of<T: Pod>(
        device: &Arc<Device>,
        values: &[T],
        what: &'static str,
    ) -> Result<Memory, KernelError> {
        let mut memory = Memory::new(device, size_of_val(values), what)?;
        memory.upload(0, values);
        Ok(memory)
    }

    pub fn address(&self) -> Address {
        self.address
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Copies `values` to byte `offset`, in order with what runs on the stream. The values may change
    /// once this returns.
    pub fn upload<T: Pod>(&mut self, offset: usize, values: &[T]) {
        assert!(offset + size_of_val(values) <= self.bytes, "an upload fits");
        if values.is_empty() {
            return;
        }
        self.device.bind();
        let to = self.address + offset as u64;
        // SAFETY: inside this memory. The driver takes pageable memory in before it returns.
        let copied = unsafe { result::memcpy_htod_async(to, values, self.device.stream()) };
        self.device.expect(copied);
    }

    /// Copies from byte `offset` what fills `values`, and waits for it.
    pub fn download<T: Pod>(&self, offset: usize, values: &mut [T]) {
        assert!(
            offset + size_of_val(values) <= self.bytes,
            "a download fits"
        );
        self.device.bind();
        if !values.is_empty() {
            let from = self.address + offset as u64;
            // SAFETY: inside this memory, and waited for before `values` is given back.
            let copied = unsafe { result::memcpy_dtoh_async(values, from, self.device.stream()) };
            self.device.expect(copied);
        }
        self.device.wait();
    }

    /// The same of weights, beside what computes.
    pub fn download_beside(&self, values: &mut [u8]) {
        assert!(values.len() <= self.bytes, "a download fits");
        if values.is_empty() {
            return;
        }
        self.device.bind();
        let stream = self.device.uploads();
        // SAFETY: inside this memory, and waited for before `values` is given back.
        let copied = unsafe { result::memcpy_dtoh_async(values, self.address, stream.cu_stream()) };
        self.device.expect(copied);
        self.device.expect(stream.synchronize());
    }

    pub fn clear(&mut self) {
        self.device.bind();
        // SAFETY: the whole of this memory.
        let cleared =
            unsafe { result::memset_d8_async(self.address, 0, self.bytes, self.device.stream()) };
        self.device.expect(cleared);
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.device.ledger().sub(self.what, self.bytes);
        if self.address != 0 && self.device.context().bind_to_thread().is_ok() {
            // SAFETY: allocated once, freed once; the driver waits for what still uses it. At the end of
            // a process the driver may be gone already, and the memory with it.
            let _: Result<_, _> = unsafe { sys::cuMemFree_v2(self.address) }.result();
        }
    }
}

/// The device that the calling thread has bound has no room for something.
pub fn no_room(what: &'static str, bytes: usize) -> KernelError {
    let (free, total) = result::mem_get_info().unwrap_or_default();
    KernelError::DeviceMemory {
        what,
        bytes,
        free,
        total,
    }
}

/// Memory that grows to the most that was ever asked for.
#[derive(Default)]
pub struct Scratch(Option<Memory>);

impl Scratch {
    /// Where there are `bytes`. What was there may be gone.
    ///
    /// Panics when the device has not that much: the engine asks for the largest batch before it serves.
    pub fn at_least(&mut self, device: &Arc<Device>, bytes: usize) -> &mut Memory {
        if self.0.as_ref().is_none_or(|memory| memory.bytes() < bytes) {
            self.0 = None;
            let memory = Memory::new(device, bytes, "work space");
            self.0 = Some(memory.unwrap_or_else(|error| panic!("{error}")));
        }
        self.0.as_mut().expect("just seen to")
    }

    /// 0 if nothing was asked for yet.
    pub fn address(&self) -> Address {
        self.0.as_ref().map_or(0, Memory::address)
    }

    pub fn upload<T: Pod>(&mut self, device: &Arc<Device>, values: &[T]) -> Address {
        let memory = self.at_least(device, size_of_val(values));
        memory.upload(0, values);
        memory.address()
    }
}
