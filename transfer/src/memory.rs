//! Memory that pages move from and into.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use crate::device::DeviceAccess;

/// Where a region's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MemoryKind {
    Host,
    /// Memory of the accelerator with this ordinal. It is moved with the [`DeviceAccess`] that the region
    /// came with: straight to another device of the same machine where they reach each other, by way of the
    /// host otherwise.
    Device(u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RegionError {
    #[error("a region needs a base address, at least one page, and pages of at least one byte")]
    Empty,
    #[error("{pages} pages of {page_bytes} bytes exceed the address space")]
    TooLarge { page_bytes: usize, pages: usize },
    #[error("page {page} is outside the region's {pages} pages")]
    OutOfRange { page: u32, pages: usize },
}

/// A run of equal pages at one address: a worker's page pool, registered for transfer.
///
/// Cheap to clone; all clones name the same memory and keep it alive.
#[derive(Clone)]
pub struct MemoryRegion {
    inner: Arc<Inner>,
}

struct Inner {
    base: *mut u8,
    page_bytes: usize,
    pages: usize,
    place: Place,
    /// Owner of the memory, dropped with the last clone.
    _owner: Box<dyn Any + Send + Sync>,
}

#[derive(Clone)]
enum Place {
    Host,
    Device {
        ordinal: u32,
        access: Arc<dyn DeviceAccess>,
    },
}

// SAFETY: the pointer is only followed for pages whose exclusivity the contract of
// `MemoryRegion::new` promises.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

impl MemoryRegion {
    /// Registers `pages` pages of `page_bytes` bytes of host memory from `base`; `owner` is whatever
    /// keeps the memory allocated and is dropped with the last clone of the region.
    ///
    /// # Safety
    /// Until `owner` is dropped:
    /// - `base` is valid for reads and writes of `pages * page_bytes` bytes.
    /// - A page under a lease ([`crate::PageTarget::grant`]) is not read or written by anyone else
    ///   until its [`crate::WritesEnded`] exists, except that a page whose lease has announced its
    ///   pages may be read.
    /// - A page behind a [`Source`] is not written by anyone while that `Source` lives.
    pub unsafe fn new(
        base: *mut u8,
        page_bytes: usize,
        pages: usize,
        owner: impl Any + Send + Sync,
    ) -> Result<MemoryRegion, RegionError> {
        // SAFETY: the caller's promise.
        unsafe { MemoryRegion::at(base, page_bytes, pages, Place::Host, owner) }
    }

    /// The same for memory of device `ordinal`, which `access` copies from and to.
    ///
    /// # Safety
    /// As for [`new`](Self::new), on the device.
    pub unsafe fn of_device(
        base: *mut u8,
        page_bytes: usize,
        pages: usize,
        ordinal: u32,
        access: Arc<dyn DeviceAccess>,
        owner: impl Any + Send + Sync,
    ) -> Result<MemoryRegion, RegionError> {
        let place = Place::Device { ordinal, access };
        // SAFETY: the caller's promise.
        unsafe { MemoryRegion::at(base, page_bytes, pages, place, owner) }
    }

    /// # Safety
    /// As for [`new`](Self::new).
    unsafe fn at(
        base: *mut u8,
        page_bytes: usize,
        pages: usize,
        place: Place,
        owner: impl Any + Send + Sync,
    ) -> Result<MemoryRegion, RegionError> {
        if base.is_null() || page_bytes == 0 || pages == 0 {
            return Err(RegionError::Empty);
        }
        page_bytes
            .checked_mul(pages)
            .filter(|bytes| *bytes <= isize::MAX as usize && pages <= u32::MAX as usize)
            .ok_or(RegionError::TooLarge { page_bytes, pages })?;
        let inner = Inner {
            base,
            page_bytes,
            pages,
            place,
            _owner: Box::new(owner),
        };
        Ok(MemoryRegion {
            inner: Arc::new(inner),
        })
    }

    pub fn page_bytes(&self) -> usize {
        self.inner.page_bytes
    }

    pub fn pages(&self) -> usize {
        self.inner.pages
    }

    pub fn kind(&self) -> MemoryKind {
        match self.inner.place {
            Place::Host => MemoryKind::Host,
            Place::Device { ordinal, .. } => MemoryKind::Device(ordinal),
        }
    }

    /// How the host reaches its bytes, if it cannot follow pointers into it.
    pub(crate) fn access(&self) -> Option<&dyn DeviceAccess> {
        match &self.inner.place {
            Place::Host => None,
            Place::Device { access, .. } => Some(&**access),
        }
    }

    /// All of its pages.
    pub fn bytes(&self) -> usize {
        self.inner.page_bytes * self.inner.pages
    }

    /// Whether both name the same registration.
    pub fn is_same(&self, other: &MemoryRegion) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// `page` as something to send. `hold` keeps the page from being reused (a guard of the page
    /// pool, say) and is dropped, on a transfer thread, once the write has been acknowledged or has
    /// failed.
    pub fn source(&self, page: u32, hold: impl Send + 'static) -> Result<Source, RegionError> {
        if page as usize >= self.inner.pages {
            return Err(RegionError::OutOfRange {
                page,
                pages: self.inner.pages,
            });
        }
        Ok(Source(Kind::Page {
            region: self.clone(),
            page,
            _hold: Box::new(hold),
        }))
    }

    /// First byte of `page`, which must be in range.
    pub(crate) fn page_ptr(&self, page: u32) -> *mut u8 {
        debug_assert!((page as usize) < self.inner.pages);
        // SAFETY: inside the region, whose extent `new` has checked.
        unsafe { self.inner.base.add(page as usize * self.inner.page_bytes) }
    }
}

impl fmt::Debug for MemoryRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner {
            page_bytes, pages, ..
        } = &*self.inner;
        let kind = self.kind();
        write!(
            f,
            "MemoryRegion({pages} pages of {page_bytes} bytes, {kind:?})"
        )
    }
}

/// One page to send: bytes that stay where they are and as they are while this value lives.
pub struct Source(Kind);

enum Kind {
    Page {
        region: MemoryRegion,
        page: u32,
        _hold: Box<dyn Send>,
    },
    Bytes(Box<dyn HostBytes>),
}

/// `AsRef<[u8]> + Send` as one object-safe trait.
trait HostBytes: Send {
    fn bytes(&self) -> &[u8];
}

/// A device's page, and what keeps it from being reused.
struct Copied {
    bytes: Vec<u8>,
    _hold: Box<dyn Send>,
}

impl AsRef<[u8]> for Copied {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl<T: AsRef<[u8]> + Send> HostBytes for T {
    fn bytes(&self) -> &[u8] {
        self.as_ref()
    }
}

impl Source {
    /// Bytes outside any registered region. A transport that needs registered memory copies them
    /// once more, so send pool pages with [`MemoryRegion::source`].
    pub fn from_bytes(bytes: impl AsRef<[u8]> + Send + 'static) -> Source {
        Source(Kind::Bytes(Box::new(bytes)))
    }

    /// The same with bytes that the host can read: a page of a device is copied, and what it held goes on
    /// being held.
    pub(crate) fn on_host(self) -> Source {
        let Kind::Page {
            region,
            page,
            _hold: hold,
        } = self.0
        else {
            return self;
        };
        let Some(access) = region.access() else {
            return Source(Kind::Page {
                region,
                page,
                _hold: hold,
            });
        };
        let mut bytes = vec![0; region.page_bytes()];
        // SAFETY: a page in range of a live region, which nobody writes while this `Source` lives.
        unsafe { access.read(region.page_ptr(page), &mut bytes) };
        Source(Kind::Bytes(Box::new(Copied { bytes, _hold: hold })))
    }

    /// The registered region that it is a page of, if it is one.
    pub(crate) fn region(&self) -> Option<(&MemoryRegion, u32)> {
        match &self.0 {
            Kind::Page { region, page, .. } => Some((region, *page)),
            Kind::Bytes(_) => None,
        }
    }

    /// Whether the host can read its bytes.
    pub(crate) fn is_on_host(&self) -> bool {
        match &self.0 {
            Kind::Page { region, .. } => region.access().is_none(),
            Kind::Bytes(_) => true,
        }
    }

    pub(crate) fn len(&self) -> usize {
        match &self.0 {
            Kind::Page { region, .. } => region.page_bytes(),
            Kind::Bytes(bytes) => bytes.bytes().len(),
        }
    }

    /// The bytes of a source in host memory; empty for device memory, which a host cannot follow.
    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.0 {
            Kind::Bytes(bytes) => bytes.bytes(),
            Kind::Page { region, page, .. } if region.kind() == MemoryKind::Host => {
                // SAFETY: a page in range of a live host region, which nobody writes while this
                // `Source` lives (contract of `MemoryRegion::new`).
                unsafe { std::slice::from_raw_parts(region.page_ptr(*page), region.page_bytes()) }
            }
            Kind::Page { .. } => &[],
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Page { page, .. } => write!(f, "Source(page {page})"),
            Kind::Bytes(bytes) => write!(f, "Source({} bytes)", bytes.bytes().len()),
        }
    }
}
