//! Memory of weights: large mappings, handed out piece by piece.
//!
//! A decode step reads every weight once, so it runs at the speed of memory, and with 4 KiB pages
//! that speed is limited by address translation: one core of the machine this was written on reads
//! 22 GB/s from small pages and 33 GB/s from huge ones. Most matrices are smaller than a huge page;
//! hence mappings that many of them share.
//!
//! A piece that is let go of is handed out again to who asks for one of its length. Experts of a
//! model are all of one size, and a rank takes in some and drops others for as long as it lives:
//! without that, each would keep a mapping for the sake of what else lies there.

use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::KernelError;

/// Address space of a mapping; the system commits memory on first touch.
const MAPPING_BYTES: usize = 64 << 20;
const HUGE_PAGE: usize = 2 << 20;
/// A cache line, a register.
const ALIGN: usize = 64;

/// Hands out memory that is freed with the arena and the last piece of its mapping.
#[derive(Default)]
pub(super) struct Arena {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// The mapping in use, and how much of it is taken.
    current: Option<(Arc<Mapping>, usize)>,
    /// Pieces that came back, by length: mapping and offset.
    free: HashMap<usize, Vec<(Arc<Mapping>, usize)>>,
}

/// Bytes of a mapping that nobody else has; zero at first.
pub(super) struct Bytes {
    mapping: Arc<Mapping>,
    offset: usize,
    len: usize,
    home: Weak<Mutex<State>>,
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
        let mut state = lock(&self.state);
        let used = state.free.get_mut(&len).and_then(Vec::pop);
        let is_used = used.is_some();
        let (mapping, offset) = match used {
            Some(piece) => piece,
            None => state.fresh(len)?,
        };
        drop(state);
        let mut bytes = Bytes {
            mapping,
            offset,
            len,
            home: Arc::downgrade(&self.state),
        };
        if is_used {
            bytes.fill(0);
        }
        Ok(bytes)
    }

    /// A copy of `values`.
    pub fn copy(&self, values: &[u8]) -> Result<Bytes, KernelError> {
        let mut bytes = self.bytes(values.len())?;
        bytes.copy_from_slice(values);
        Ok(bytes)
    }
}

impl State {
    /// Mapping and offset of `len` bytes that nobody had before.
    fn fresh(&mut self, len: usize) -> Result<(Arc<Mapping>, usize), KernelError> {
        if let Some((mapping, taken)) = &mut self.current
            && mapping.len - *taken >= len
        {
            let piece = (mapping.clone(), *taken);
            *taken = (*taken + len).next_multiple_of(ALIGN).min(mapping.len);
            return Ok(piece);
        }
        let mapping = Arc::new(Mapping::new(len.max(MAPPING_BYTES))?);
        // What is left of the old one is too little for most pieces.
        self.current = Some((mapping.clone(), len.next_multiple_of(ALIGN)));
        Ok((mapping, 0))
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // No code panics while it holds the lock half-way through a change.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Bytes {
    fn drop(&mut self) {
        if self.len > 0
            && let Some(home) = self.home.upgrade()
        {
            let piece = (self.mapping.clone(), self.offset);
            lock(&home).free.entry(self.len).or_default().push(piece);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_back_is_handed_out_again_and_zero() {
        let arena = Arena::default();
        let mut first = arena.bytes(1000).unwrap();
        let other = arena.copy(&[7; 1000]).unwrap();
        first.fill(9);
        let place = first.as_ptr();
        drop(first);
        let shorter = arena.bytes(999).unwrap();
        assert_ne!(shorter.as_ptr(), place, "only for the same length");
        let again = arena.bytes(1000).unwrap();
        assert_eq!(again.as_ptr(), place);
        assert!(again.iter().all(|byte| *byte == 0));
        drop(arena);
        assert!(other.iter().all(|byte| *byte == 7), "a piece outlives it");
    }
}
