//! Pages of the KV cache: 64 tokens of *all* layers, contiguous.
//!
//! A page holds, layer by layer, one row a token. For latent attention a row is
//! `[c_kv | k_pe]` (512 + 64 values for DeepSeek-V2/V3); for grouped-query attention it is
//! `[k of all kv heads | v of all kv heads]`. One page is one contiguous run of bytes, so it is one
//! transfer descriptor whatever the number of layers.

use std::any::Any;
use std::sync::Arc;

pub use millrace_model::blocks::BLOCK_TOKENS as PAGE_TOKENS;

use crate::KernelError;

/// How cached values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KvDtype {
    F32,
    Bf16,
    /// Latent values as e4m3 with a float32 scale for every [`FP8_BLOCK`] of them, rotated values in
    /// bf16. For latent attention only.
    Fp8,
}

/// Latent values that share a scale.
pub const FP8_BLOCK: usize = 128;

impl KvDtype {
    /// The name that flags, metrics and peers know it by.
    pub fn as_str(self) -> &'static str {
        match self {
            KvDtype::F32 => "f32",
            KvDtype::Bf16 => "bf16",
            KvDtype::Fp8 => "fp8",
        }
    }
}

/// Where a layer's row of a token lies inside a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageLayout {
    /// Cached layers, MTP layers included.
    pub layers: usize,
    /// Values a token and layer (576 for DeepSeek-V2/V3: 1152 bytes in bf16).
    pub row_values: usize,
    /// Those of them, from the first on, that are latent (512 for DeepSeek-V2/V3); 0 for grouped-query
    /// attention.
    pub latent: usize,
    pub dtype: KvDtype,
}

impl PageLayout {
    pub fn row_bytes(&self) -> usize {
        match self.dtype {
            KvDtype::F32 => 4 * self.row_values,
            KvDtype::Bf16 => 2 * self.row_values,
            KvDtype::Fp8 => {
                let scales = self.latent.div_ceil(FP8_BLOCK);
                self.latent + 4 * scales + 2 * (self.row_values - self.latent)
            }
        }
    }

    pub fn layer_bytes(&self) -> usize {
        PAGE_TOKENS * self.row_bytes()
    }

    pub fn page_bytes(&self) -> usize {
        self.layers * self.layer_bytes()
    }
}

/// A worker's page memory: `pages * layout.page_bytes()` bytes, zeroed, at one address for as long as
/// anyone holds it (transfer registers it with peers). On the host it is 4096-aligned; on a device,
/// pointers are that device's and the host must not follow them.
///
/// Access is by raw pointer, because a peer's write and the engine's reads touch *different*
/// pages at the same time. Who may touch which page is decided by the engine's page manager and
/// its leases; see `engine::pages`.
pub struct PageMemory {
    base: *mut u8,
    layout: PageLayout,
    pages: usize,
    place: Place,
}

enum Place {
    Host,
    #[cfg(feature = "cuda")]
    Device {
        ordinal: u32,
        copier: Arc<dyn PageCopier>,
        /// Frees it.
        _owner: Box<dyn Any + Send + Sync>,
    },
}

/// Copies to, from and within a device's pages, and rings beside them that other processes' devices can write.
pub trait PageCopier: Send + Sync {
    /// Copies to the host. Done when it returns.
    ///
    /// # Safety
    /// `from` is valid, on the device, for reads of `to.len()` bytes.
    unsafe fn read(&self, from: *const u8, to: &mut [u8]);

    /// Copies from the host. Done when it returns.
    ///
    /// # Safety
    /// `to` is valid, on the device, for writes of `from.len()` bytes.
    unsafe fn write(&self, from: &[u8], to: *mut u8);

    /// Begins copies, in any order, and does not wait for them. What they write may be in another process's ring.
    ///
    /// # Errors
    /// The driver takes no copy.
    ///
    /// # Safety
    /// Until they are done or dropped, what is read is valid for that and what is written for that, and no copy
    /// writes what another reads or writes.
    unsafe fn begin_copies(&self, parts: &[CopyPart]) -> Result<Box<dyn PageCopy>, KernelError>;

    /// Makes a ring of at least `bytes` bytes, and the handle by which another process opens it.
    ///
    /// # Errors
    /// The device has no room for it, or its driver does not share memory.
    fn make_ring(&self, bytes: usize) -> Result<(RingMemory, Vec<u8>), KernelError>;

    /// Opens another process's ring of `bytes` bytes.
    ///
    /// # Errors
    /// The handle is none, is of this very process, is of memory that this device does not reach, or of less.
    fn open_ring(&self, handle: &[u8], bytes: usize) -> Result<RingMemory, KernelError>;
}

/// One of the copies that are begun together: addresses on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyPart {
    pub from: u64,
    pub to: u64,
    pub bytes: usize,
}

/// Copies that were begun together. Dropping them waits for them.
pub trait PageCopy: Send {
    /// Whether all are done.
    ///
    /// # Errors
    /// The device failed, or the one that it copies to.
    fn is_done(&mut self) -> Result<bool, KernelError>;

    /// Waits until all are done.
    ///
    /// # Errors
    /// As for [`is_done`](Self::is_done).
    fn wait(&mut self) -> Result<(), KernelError>;
}

/// Memory of a ring, of this process or another.
pub struct RingMemory {
    /// On the device of the copier that it is from.
    pub address: u64,
    /// Gives it back when dropped.
    pub owner: Box<dyn Any + Send>,
}

// SAFETY: the memory is plain bytes; exclusivity of a page is the page manager's promise, made by
// the callers of `page_ptr`'s unsafe users.
unsafe impl Send for PageMemory {}
// SAFETY: as above.
unsafe impl Sync for PageMemory {}

impl PageMemory {
    /// Reserves address space for `pages` pages; the system commits memory on first touch.
    pub fn allocate(layout: PageLayout, pages: usize) -> std::io::Result<Arc<PageMemory>> {
        let bytes = pages
            .checked_mul(layout.page_bytes())
            .filter(|bytes| *bytes > 0 && *bytes <= isize::MAX as usize)
            .ok_or(std::io::ErrorKind::InvalidInput)?;
        // SAFETY: an anonymous private mapping of a checked length; the result is checked below.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        Ok(Arc::new(PageMemory {
            base: base.cast(),
            layout,
            pages,
            place: Place::Host,
        }))
    }

    /// Memory of a device from `base` on, which `owner` keeps.
    #[cfg(feature = "cuda")]
    pub(crate) fn of_device(
        ordinal: u32,
        base: *mut u8,
        layout: PageLayout,
        pages: usize,
        copier: Arc<dyn PageCopier>,
        owner: impl Any + Send + Sync,
    ) -> Arc<PageMemory> {
        Arc::new(PageMemory {
            base,
            layout,
            pages,
            place: Place::Device {
                ordinal,
                copier,
                _owner: Box::new(owner),
            },
        })
    }

    /// The number of the device whose memory it is, and how to reach it; `None` for the host's.
    pub fn device(&self) -> Option<(u32, &Arc<dyn PageCopier>)> {
        match &self.place {
            Place::Host => None,
            #[cfg(feature = "cuda")]
            Place::Device {
                ordinal, copier, ..
            } => Some((*ordinal, copier)),
        }
    }

    pub fn layout(&self) -> PageLayout {
        self.layout
    }

    pub fn pages(&self) -> usize {
        self.pages
    }

    pub fn base(&self) -> *mut u8 {
        self.base
    }

    pub fn bytes(&self) -> usize {
        self.pages * self.layout.page_bytes()
    }

    /// Puts these bytes into every page.
    pub fn fill(&mut self, page: &[u8]) {
        assert_eq!(page.len(), self.layout.page_bytes());
        for number in 0..self.pages {
            let to = self.page_ptr(number);
            match self.device() {
                // SAFETY: the whole of a page of that device, which nobody else holds.
                Some((_, copier)) => unsafe { copier.write(page, to) },
                // SAFETY: as above, here.
                None => unsafe { to.copy_from_nonoverlapping(page.as_ptr(), page.len()) },
            }
        }
    }

    /// First byte of `page`. Panics when out of range: page numbers come from the page manager.
    pub fn page_ptr(&self, page: usize) -> *mut u8 {
        assert!(page < self.pages, "page {page} of {}", self.pages);
        // SAFETY: inside the mapping by the assertion.
        unsafe { self.base.add(page * self.layout.page_bytes()) }
    }

    /// First byte of the row of token `slot` (0..64) in `layer` of `page`.
    pub fn row_ptr(&self, page: usize, layer: usize, slot: usize) -> *mut u8 {
        assert!(layer < self.layout.layers && slot < PAGE_TOKENS);
        let offset = layer * self.layout.layer_bytes() + slot * self.layout.row_bytes();
        // SAFETY: inside the page by the assertion.
        unsafe { self.page_ptr(page).add(offset) }
    }
}

impl Drop for PageMemory {
    fn drop(&mut self) {
        if matches!(self.place, Place::Host) {
            // SAFETY: the mapping made by `allocate`, unmapped once.
            unsafe { libc::munmap(self.base.cast(), self.bytes()) };
        }
    }
}
