//! Weights on their way to the device, beside everything else that it does.
//!
//! While a model is loaded they go by way of a few pinned buffers: some threads read and convert what the file holds
//! into one while the device takes the one before. Pinning memory makes a device wait, so what is loaded while the
//! model serves goes from ordinary memory, on one thread, and holds nobody up.

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys};

use super::device::Device;
use super::memory::Memory;
use crate::{KernelError, Pace};

const BUFFERS: usize = 3;
const BUFFER_BYTES: usize = 32 << 20;
/// At once, while the model serves.
const BACKGROUND_BYTES: usize = 4 << 20;
const MOST_THREADS: usize = 8;
/// Less than this is not worth a thread.
const THREAD_BYTES: usize = 1 << 20;

/// Writes rows of the given numbers, all of them.
pub type Fill<'a> = &'a (dyn Fn(Range<usize>, &mut [u8]) -> Result<(), KernelError> + Sync);

/// Memory of a copy of `bytes`.
pub fn copied(
    device: &Arc<Device>,
    bytes: &[u8],
    what: &'static str,
    pace: Pace,
) -> Result<Memory, KernelError> {
    let memory = Memory::unset(device, bytes.len(), what)?;
    upload(device, &memory, 0, [bytes.len(), 1], pace, &|rows, to| {
        to.copy_from_slice(&bytes[rows]);
        Ok(())
    })?;
    Ok(memory)
}

/// Puts `[rows, row_bytes]` at byte `offset` of `to`. What the device is asked for after this finds them there.
///
/// # Errors
/// There is no pinned memory, or what `fill` says.
pub fn upload(
    device: &Device,
    to: &Memory,
    offset: usize,
    [rows, row_bytes]: [usize; 2],
    pace: Pace,
    fill: Fill<'_>,
) -> Result<(), KernelError> {
    assert!(offset + rows * row_bytes <= to.bytes(), "an upload fits");
    if rows * row_bytes == 0 {
        return Ok(());
    }
    device.bind();
    let to = to.address() + offset as u64;
    match pace {
        Pace::Full => {
            let mut pinned = device.pinned();
            let pinned = match &mut *pinned {
                Some(pinned) => pinned,
                none => none.insert(Pinned::new(device.context(), device.uploads())?),
            };
            let done = pinned.upload(to, [rows, row_bytes], fill);
            // Also after a failure: what was begun writes memory that is about to be freed.
            let after = pinned.before(device.stream());
            device.expect(after);
            done
        }
        Pace::Background => {
            let step = (BACKGROUND_BYTES / row_bytes).max(1);
            // Aligned for every type of values.
            let mut bytes = vec![0u64; (step.min(rows) * row_bytes).div_ceil(size_of::<u64>())];
            let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut bytes);
            for first in (0..rows).step_by(step) {
                let last = rows.min(first + step);
                let bytes = &mut bytes[..(last - first) * row_bytes];
                fill(first..last, bytes)?;
                let to = to + (first * row_bytes) as u64;
                // SAFETY: inside the memory, and waited for before `bytes` changes.
                device.expect(unsafe {
                    result::memcpy_htod_async(to, bytes, device.uploads().cu_stream())
                });
                device.expect(device.uploads().synchronize());
            }
            Ok(())
        }
    }
}

/// The buffers, in turn.
pub struct Pinned {
    stream: Arc<CudaStream>,
    buffers: Vec<Buffer>,
    next: usize,
    threads: usize,
}

struct Buffer {
    context: Arc<CudaContext>,
    memory: *mut u8,
    /// Behind the last copy from it.
    copied: sys::CUevent,
}

// SAFETY: memory of its own, and a handle of the driver's, which takes it from any thread.
unsafe impl Send for Buffer {}

impl Pinned {
    fn new(context: &Arc<CudaContext>, stream: &Arc<CudaStream>) -> Result<Pinned, KernelError> {
        let buffers: Result<_, DriverError> = (0..BUFFERS).map(|_| Buffer::new(context)).collect();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Pinned {
            stream: stream.clone(),
            buffers: buffers.map_err(|error| {
                KernelError::Device(format!("no pinned memory to load weights by: {error}"))
            })?,
            next: 0,
            threads: cores.min(MOST_THREADS),
        })
    }

    fn upload(
        &mut self,
        to: u64,
        [rows, row_bytes]: [usize; 2],
        fill: Fill<'_>,
    ) -> Result<(), KernelError> {
        let lost = |error: DriverError| KernelError::Device(error.to_string());
        let step = BUFFER_BYTES / row_bytes;
        assert!(step > 0, "a row of weights fits a buffer");
        for first in (0..rows).step_by(step) {
            let last = rows.min(first + step);
            let buffer = &self.buffers[self.next];
            self.next = (self.next + 1) % self.buffers.len();
            // SAFETY: made with the buffer. After this nothing reads the memory, all of which was zeroed once.
            let bytes = unsafe {
                result::event::synchronize(buffer.copied).map_err(lost)?;
                std::slice::from_raw_parts_mut(buffer.memory, (last - first) * row_bytes)
            };
            fill_by(self.threads, bytes, first, row_bytes, fill)?;
            let to = to + (first * row_bytes) as u64;
            // SAFETY: inside the memory that the caller has; the buffer is written again only after the event.
            unsafe {
                result::memcpy_htod_async(to, bytes, self.stream.cu_stream()).map_err(lost)?;
                result::event::record(buffer.copied, self.stream.cu_stream()).map_err(lost)?;
            }
        }
        Ok(())
    }

    /// Lets `stream` go on only once everything that was begun is there.
    fn before(&self, stream: sys::CUstream) -> Result<(), DriverError> {
        for buffer in &self.buffers {
            let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
            // SAFETY: made with the buffer. One that was not recorded yet is not waited for.
            unsafe { result::stream::wait_event(stream, buffer.copied, flags) }?;
        }
        Ok(())
    }
}

fn fill_by(
    threads: usize,
    bytes: &mut [u8],
    first: usize,
    row_bytes: usize,
    fill: Fill<'_>,
) -> Result<(), KernelError> {
    let rows = bytes.len() / row_bytes;
    let each = rows.div_ceil(threads).max(THREAD_BYTES.div_ceil(row_bytes));
    if each >= rows {
        return fill(first..first + rows, bytes);
    }
    std::thread::scope(|scope| {
        let parts = bytes.chunks_mut(each * row_bytes).enumerate();
        let threads: Vec<_> = parts
            .map(|(number, part)| {
                let first = first + number * each;
                let rows = first..first + part.len() / row_bytes;
                scope.spawn(move || fill(rows, part))
            })
            .collect();
        // The first failure by row, whichever thread was quicker.
        let joined = threads.into_iter().map(|thread| thread.join());
        let done: Vec<_> = joined.collect();
        done.into_iter()
            .try_for_each(|done| done.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

impl Buffer {
    fn new(context: &Arc<CudaContext>) -> Result<Buffer, DriverError> {
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        // SAFETY: plain allocations; the memory is zeroed before anyone sees it.
        unsafe {
            let mut buffer = Buffer {
                context: context.clone(),
                memory: std::ptr::null_mut(),
                copied: result::event::create(flags)?,
            };
            buffer.memory = result::malloc_host(BUFFER_BYTES, 0)?.cast();
            buffer.memory.write_bytes(0, BUFFER_BYTES);
            Ok(buffer)
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: made once, destroyed once, and after the last copy. At the end of a process the driver may be
            // gone already, and all of this with it.
            unsafe {
                let _ = result::event::synchronize(self.copied);
                let _ = result::event::destroy(self.copied);
                if !self.memory.is_null() {
                    let _ = result::free_host(self.memory.cast());
                }
            }
        }
    }
}
