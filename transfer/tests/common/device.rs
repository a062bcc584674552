//! A device without hardware: the host must not follow its addresses, its copies end when the test lets them,
//! and other processes open its rings by their descriptors.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use millrace_transfer::{DeviceAccess, DeviceCopy, DeviceError, DeviceMemory, DevicePart};

/// Cheap to clone; all clones are one device.
#[derive(Clone)]
pub struct Device(Arc<State>);

struct State {
    forbidden: usize,
    base: usize,
    bytes: usize,
    refuses: AtomicBool,
    /// Copies that may still end.
    allowed: AtomicUsize,
    staged: AtomicUsize,
    begun: AtomicUsize,
    rings: AtomicUsize,
}

impl Device {
    /// With `bytes` bytes of memory.
    pub fn new(bytes: usize) -> Device {
        let bytes = bytes.next_multiple_of(4096);
        Device(Arc::new(State {
            forbidden: map(bytes, libc::PROT_NONE, None),
            base: map(bytes, libc::PROT_READ | libc::PROT_WRITE, None),
            bytes,
            refuses: AtomicBool::new(false),
            allowed: AtomicUsize::new(usize::MAX),
            staged: AtomicUsize::new(0),
            begun: AtomicUsize::new(0),
            rings: AtomicUsize::new(0),
        }))
    }

    /// Where its memory begins, for itself.
    pub fn address(&self) -> *mut u8 {
        self.0.forbidden as *mut u8
    }

    /// The same for the host.
    pub fn base(&self) -> usize {
        self.0.base
    }

    /// Lets `copies` copies end, and no more than these.
    pub fn allow(&self, copies: usize) {
        self.0.allowed.store(copies, SeqCst);
    }

    /// Opens no more rings.
    pub fn refuse(&self) {
        self.0.refuses.store(true, SeqCst);
    }

    /// Copies to or from the host.
    pub fn staged(&self) -> usize {
        self.0.staged.load(SeqCst)
    }

    /// Copies begun so far.
    pub fn begun(&self) -> usize {
        self.0.begun.load(SeqCst)
    }

    /// Rings that it has made and not freed.
    pub fn rings(&self) -> usize {
        self.0.rings.load(SeqCst)
    }
}

impl State {
    /// Rings are at addresses that the host may follow, too.
    fn host(&self, address: usize) -> usize {
        match address.checked_sub(self.forbidden) {
            Some(offset) if offset < self.bytes => self.base + offset,
            _ => address,
        }
    }

    fn take(&self) -> bool {
        let take = |allowed: usize| match allowed {
            usize::MAX => Some(usize::MAX),
            allowed => allowed.checked_sub(1),
        };
        self.allowed.fetch_update(SeqCst, SeqCst, take).is_ok()
    }
}

impl DeviceAccess for Device {
    unsafe fn read(&self, from: *const u8, to: &mut [u8]) {
        self.0.staged.fetch_add(1, SeqCst);
        let from = self.0.host(from as usize) as *const u8;
        // SAFETY: where that address's bytes are; valid by the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) }
    }

    unsafe fn write(&self, from: &[u8], to: *mut u8) {
        self.0.staged.fetch_add(1, SeqCst);
        let to = self.0.host(to as usize) as *mut u8;
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) }
    }

    unsafe fn begin_copies(
        &self,
        parts: &[DevicePart],
    ) -> Result<Box<dyn DeviceCopy>, DeviceError> {
        self.0.begun.fetch_add(1, SeqCst);
        let on_host = |part: &DevicePart| DevicePart {
            from: self.0.host(part.from as usize) as u64,
            to: self.0.host(part.to as usize) as u64,
            bytes: part.bytes,
        };
        Ok(Box::new(Copy {
            device: self.0.clone(),
            parts: parts.iter().map(on_host).collect(),
            queries: 0,
            done: false,
        }))
    }

    fn make_ring(&self, bytes: usize) -> Result<(DeviceMemory, Vec<u8>), DeviceError> {
        // SAFETY: a C string literal; the result is checked.
        let fd = unsafe { libc::memfd_create(c"millrace-device-ring".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(fd >= 0);
        // SAFETY: a descriptor that was just made and that nobody else owns.
        let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        file.set_len(bytes as u64).unwrap();
        let handle = format!("/proc/{}/fd/{fd}", std::process::id());
        self.0.rings.fetch_add(1, SeqCst);
        let memory = Ring::map(file, bytes, Some(self.0.clone()));
        Ok((memory, handle.into_bytes()))
    }

    fn open_ring(&self, handle: &[u8], bytes: usize) -> Result<DeviceMemory, DeviceError> {
        if self.0.refuses.load(SeqCst) {
            return Err(DeviceError("it is out of reach".into()));
        }
        let path = std::str::from_utf8(handle).unwrap();
        let file = File::options().read(true).write(true).open(path);
        let file = file.map_err(|error| DeviceError(error.to_string()))?;
        if file.metadata().unwrap().len() < bytes as u64 {
            return Err(DeviceError("it is smaller".into()));
        }
        Ok(Ring::map(file, bytes, None))
    }
}

/// Ends at the third query, if copies may end.
struct Copy {
    device: Arc<State>,
    parts: Vec<DevicePart>,
    queries: usize,
    done: bool,
}

impl Copy {
    fn run(&mut self) {
        // The last first: none may rely on another.
        for part in self.parts.iter().rev() {
            let (from, to) = (part.from as *const u8, part.to as *mut u8);
            // SAFETY: valid by the promise of who began it; nobody else touches these bytes meanwhile.
            unsafe { std::ptr::copy_nonoverlapping(from, to, part.bytes) };
        }
        self.done = true;
    }
}

impl DeviceCopy for Copy {
    fn is_done(&mut self) -> Result<bool, DeviceError> {
        self.queries += 1;
        if !self.done && self.queries > 2 && self.device.take() {
            self.run();
        }
        Ok(self.done)
    }

    fn wait(&mut self) -> Result<(), DeviceError> {
        while !self.is_done()? {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        self.wait().expect("it always ends");
    }
}

/// A mapping of a ring, and its descriptor.
struct Ring {
    base: usize,
    bytes: usize,
    _file: File,
    /// The device that has made it.
    maker: Option<Arc<State>>,
}

impl Ring {
    fn map(file: File, bytes: usize, maker: Option<Arc<State>>) -> DeviceMemory {
        let base = map(bytes, libc::PROT_READ | libc::PROT_WRITE, Some(&file));
        let ring = Ring {
            base,
            bytes,
            _file: file,
            maker,
        };
        DeviceMemory {
            address: base as u64,
            owner: Box::new(ring),
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping made by `map`, unmapped once.
        unsafe { libc::munmap(self.base as *mut libc::c_void, self.bytes) };
        if let Some(maker) = &self.maker {
            maker.rings.fetch_sub(1, SeqCst);
        }
    }
}

fn map(bytes: usize, protection: i32, file: Option<&File>) -> usize {
    let (flags, fd) = match file {
        None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
        Some(file) => (libc::MAP_SHARED, file.as_raw_fd()),
    };
    // SAFETY: a new mapping at an address of the kernel's choice.
    let base = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, fd, 0) };
    assert_ne!(base, libc::MAP_FAILED);
    base as usize
}
