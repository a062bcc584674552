//! Memory of weights: large mappings, handed out piece by piece.
//!
//! A decode step reads every weight once, so it runs at the speed of memory, and with 4 KiB pages
//! that speed is limited by address translation: one core of the machine this was written on reads
//! 22 GB/s from small pages and 33 GB/s from huge ones. Most matrices are smaller than a huge page;
//! hence mappings that many of them share.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use crate::KernelError;

/// Address space of a mapping; the system commits memory on first touch.
const MAPPING_BYTES: usize = 64 << 20;
const HUGE_PAGE: usize = 2 << 20;
/// A cache line, a register.
const ALIGN: usize = 64;

/// Hands out memory that is freed with the last piece of its mapping.
#[derive(Default)]
pub(super) struct Arena {
    /// The mapping in use, and how much of it is taken.
    current: Mutex<Option<(Arc<Mapping>, usize)>>,
}

/// Bytes of a mapping that nobody else has; zero at first.
pub(super) struct Bytes {
    mapping: Arc<Mapping>,
    offset: usize,
    len: usize,
}

/// Whole huge pages inside what the system gave.
struct Mapping {
    base: *mut u8,
    len: usize,
    given: *mut libc::c_void,
    given_len: usize,
}

// SAFETY: plain memory; who may touch which part of it is decided by the `Bytes`.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Arena {
    pub fn bytes(&self, len: usize) -> Result<Bytes, KernelError> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((mapping, taken)) = current.as_mut()
            && mapping.len - *taken >= len
        {
            let bytes = Bytes {
                mapping: mapping.clone(),
                offset: *taken,
                len,
            };
            *taken = (*taken + len).next_multiple_of(ALIGN).min(mapping.len);
            return Ok(bytes);
        }
        let mapping = Arc::new(Mapping::new(len.max(MAPPING_BYTES))?);
        let bytes = Bytes {
            mapping: mapping.clone(),
            offset: 0,
            len,
        };
        // What is left of the old one is too little for most pieces.
        *current = Some((mapping, len.next_multiple_of(ALIGN)));
        Ok(bytes)
    }

    /// A copy of `values`.
    pub fn copy(&self, values: &[u8]) -> Result<Bytes, KernelError> {
        let mut bytes = self.bytes(values.len())?;
        bytes.copy_from_slice(values);
        Ok(bytes)
    }
}

impl Mapping {
    fn new(len: usize) -> Result<Mapping, KernelError> {
        let failed = |source| KernelError::WeightMemory { bytes: len, source };
        // A huge page more than asked for, to begin at a multiple of one.
        let len = len.checked_next_multiple_of(HUGE_PAGE);
        let (len, given_len) = len
            .and_then(|len| Some((len, len.checked_add(HUGE_PAGE)?)))
            .ok_or_else(|| failed(std::io::ErrorKind::InvalidInput.into()))?;
        // SAFETY: a new private mapping; the result is checked below.
        let given = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                given_len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if given == libc::MAP_FAILED {
            return Err(failed(std::io::Error::last_os_error()));
        }
        let base: *mut u8 = given.cast();
        // SAFETY: less than a huge page further, which is still inside.
        let base = unsafe { base.add(base.addr().next_multiple_of(HUGE_PAGE) - base.addr()) };
        #[cfg(target_os = "linux")]
        // SAFETY: part of the mapping made above. A refusal costs speed only.
        unsafe {
            libc::madvise(base.cast(), len, libc::MADV_HUGEPAGE)
        };
        Ok(Mapping {
            base,
            len,
            given,
            given_len,
        })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping made by `new`, unmapped once; no piece of it is left.
        unsafe { libc::munmap(self.given, self.given_len) };
    }
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: inside the mapping, which lives as long as this piece; nobody else has these bytes.
        unsafe { std::slice::from_raw_parts(self.mapping.base.add(self.offset), self.len) }
    }
}

impl DerefMut for Bytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.mapping.base.add(self.offset), self.len) }
    }
}
