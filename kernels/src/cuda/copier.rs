//! Pages on their way: to the host and back, and to other devices.

use std::sync::Arc;

use cudarc::driver::{CudaStream, DriverError, result, sys};

use super::device::Device;
use super::error::CudaError;
use super::memory::no_room;
use super::params::Address;
use super::sharing;
use crate::{CopyPart, KernelError, PageCopier, PageCopy, RingMemory};

/// Copies pages on a stream of its own, beside what computes.
pub struct Copier {
    device: Arc<Device>,
    stream: Arc<CudaStream>,
}

impl Copier {
    pub fn new(device: &Arc<Device>) -> Result<Copier, CudaError> {
        Ok(Copier {
            device: device.clone(),
            stream: device.another_stream()?,
        })
    }

    /// # Safety
    /// As for [`PageCopier::begin_copies`].
    unsafe fn begin(&self, parts: &[CopyPart]) -> Result<Copy, DriverError> {
        self.device.context().bind_to_thread()?;
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        let mut copy = Copy {
            device: self.device.clone(),
            event: result::event::create(flags)?,
            done: true,
        };
        let stream = self.stream.cu_stream();
        // From here on something may have been begun, also if this fails: then nothing tells its end but the stream's.
        // SAFETY: by the caller's promise, and addresses are unique over all devices. The event was just made.
        let begun = unsafe {
            copy_all(&merged(parts), stream)
                .and_then(|()| result::event::record(copy.event, stream))
        };
        if let Err(error) = begun {
            let _ = self.stream.synchronize();
            return Err(error);
        }
        copy.done = false;
        Ok(copy)
    }
}

/// With neighbours that also go beside each other as one: copy engines stop between one copy and the next.
fn merged(parts: &[CopyPart]) -> Vec<CopyPart> {
    let mut merged: Vec<CopyPart> = Vec::with_capacity(parts.len());
    for part in parts {
        match merged.last_mut() {
            Some(last)
                if last.from + last.bytes as u64 == part.from
                    && last.to + last.bytes as u64 == part.to =>
            {
                last.bytes += part.bytes;
            }
            _ => merged.push(*part),
        }
    }
    merged
}

/// # Safety
/// As for [`PageCopier::begin_copies`], on the current device.
unsafe fn copy_all(parts: &[CopyPart], stream: sys::CUstream) -> Result<(), DriverError> {
    let [CopyPart { from, to, bytes }] = *parts else {
        // SAFETY: the caller's promise.
        return unsafe { copy_batch(parts, stream) };
    };
    // SAFETY: as above.
    unsafe { result::memcpy_dtod_async(to, from, bytes, stream) }
}

/// As one piece of work, in which copies do not wait for each other.
///
/// # Safety
/// As for [`copy_all`].
unsafe fn copy_batch(parts: &[CopyPart], stream: sys::CUstream) -> Result<(), DriverError> {
    let mut to: Vec<Address> = parts.iter().map(|part| part.to).collect();
    let mut from: Vec<Address> = parts.iter().map(|part| part.from).collect();
    let mut bytes: Vec<usize> = parts.iter().map(|part| part.bytes).collect();
    let nowhere = sys::CUmemLocation {
        type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_INVALID,
        id: 0,
    };
    // Hints about places are for managed memory. These attributes are of all copies from the first on.
    let (mut first, mut attributes) = (
        0,
        sys::CUmemcpyAttributes {
            srcAccessOrder: sys::CUmemcpySrcAccessOrder::CU_MEMCPY_SRC_ACCESS_ORDER_STREAM,
            srcLocHint: nowhere,
            dstLocHint: nowhere,
            flags: 0,
        },
    );
    // SAFETY: lists of one length that the driver takes in before it returns; the rest is the caller's promise.
    unsafe {
        sys::cuMemcpyBatchAsync_v2(
            to.as_mut_ptr(),
            from.as_mut_ptr(),
            bytes.as_mut_ptr(),
            parts.len(),
            &raw mut attributes,
            &raw mut first,
            1,
            stream,
        )
    }
    .result()
}

impl PageCopier for Copier {
    unsafe fn read(&self, from: *const u8, to: &mut [u8]) {
        self.device.bind();
        // SAFETY: by the caller's promise; waited for before `to` is given back.
        let copied =
            unsafe { result::memcpy_dtoh_async(to, from as Address, self.stream.cu_stream()) };
        self.device.expect(copied);
        self.device.expect(self.stream.synchronize());
    }

    unsafe fn write(&self, from: &[u8], to: *mut u8) {
        self.device.bind();
        // SAFETY: by the caller's promise; waited for before this returns.
        let copied =
            unsafe { result::memcpy_htod_async(to as Address, from, self.stream.cu_stream()) };
        self.device.expect(copied);
        self.device.expect(self.stream.synchronize());
    }

    unsafe fn begin_copies(&self, parts: &[CopyPart]) -> Result<Box<dyn PageCopy>, KernelError> {
        // SAFETY: by the caller's promise.
        match unsafe { self.begin(parts) } {
            Ok(copy) => Ok(Box::new(copy)),
            Err(error) => Err(KernelError::Device(error.to_string())),
        }
    }

    fn make_ring(&self, bytes: usize) -> Result<(RingMemory, Vec<u8>), KernelError> {
        let failed = |error: DriverError| KernelError::Device(error.to_string());
        self.device.context().bind_to_thread().map_err(failed)?;
        let asked = bytes.next_multiple_of(sharing::OWN_ALLOCATION);
        // SAFETY: a plain allocation. Nobody reads of it what was not written there before.
        let address = unsafe { result::malloc_sync(asked) }
            .map_err(|_| no_room("a ring for pages of another device", bytes))?;
        let ring = Ring {
            device: self.device.clone(),
            address,
            is_ours: true,
        };
        let handle = sharing::handle_of(address)?.to_vec();
        Ok((ring.memory(), handle))
    }

    fn open_ring(&self, handle: &[u8], bytes: usize) -> Result<RingMemory, KernelError> {
        let failed = |error: DriverError| KernelError::Device(error.to_string());
        let handle = <[u8; 64]>::try_from(handle)
            .map_err(|_| KernelError::Sharing(format!("its handle has {} bytes", handle.len())))?;
        self.device.context().bind_to_thread().map_err(failed)?;
        let address = sharing::open(handle)?;
        let ring = Ring {
            device: self.device.clone(),
            address,
            is_ours: false,
        };
        let (mut base, mut size) = (0, 0);
        // SAFETY: two locals, and memory that was opened.
        unsafe { sys::cuMemGetAddressRange_v2(&raw mut base, &raw mut size, address) }
            .result()
            .map_err(failed)?;
        if base != address || size < bytes {
            return Err(KernelError::Sharing(format!(
                "it was to have {bytes} bytes and has {size}"
            )));
        }
        Ok(ring.memory())
    }
}

/// Copies on their way, and the event behind them on the stream.
struct Copy {
    device: Arc<Device>,
    event: sys::CUevent,
    /// Nothing is read or written (any more).
    done: bool,
}

// SAFETY: a handle of the driver's, which takes it from any thread.
unsafe impl Send for Copy {}

impl Copy {
    fn end(&mut self) -> Result<(), DriverError> {
        if !self.done {
            // SAFETY: recorded when the copies were begun.
            unsafe { result::event::synchronize(self.event) }?;
            self.done = true;
        }
        Ok(())
    }
}

impl PageCopy for Copy {
    fn is_done(&mut self) -> Result<bool, KernelError> {
        if !self.done {
            // SAFETY: as in `end`.
            match unsafe { result::event::query(self.event) } {
                Ok(()) => self.done = true,
                Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_READY)) => {}
                Err(error) => return Err(KernelError::Device(error.to_string())),
            }
        }
        Ok(self.done)
    }

    fn wait(&mut self) -> Result<(), KernelError> {
        self.end()
            .map_err(|error| KernelError::Device(error.to_string()))
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        if self.device.context().bind_to_thread().is_ok() {
            // A device that has failed copies nothing any more.
            let _ = self.end();
            // SAFETY: made once, destroyed once.
            let _ = unsafe { result::event::destroy(self.event) };
        }
    }
}

struct Ring {
    device: Arc<Device>,
    address: Address,
    /// Allocated here; otherwise opened.
    is_ours: bool,
}

impl Ring {
    fn memory(self) -> RingMemory {
        RingMemory {
            address: self.address,
            owner: Box::new(self),
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.device.context().bind_to_thread().is_ok() {
            // SAFETY: allocated or opened once, given back once, in the same way. At the end of a process the
            // driver may be gone already, and the memory with it.
            let _: Result<_, _> = unsafe {
                match self.is_ours {
                    true => sys::cuMemFree_v2(self.address),
                    false => sys::cuIpcCloseMemHandle(self.address),
                }
            }
            .result();
        }
    }
}
