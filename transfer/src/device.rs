//! What transfer asks of a device's driver. This crate knows none; whoever registers a region of device
//! memory brings one along.

use std::any::Any;

/// Copies to, from and within memory of a device, which the host cannot follow pointers into, and rings there
/// that another process can write.
pub trait DeviceAccess: Send + Sync {
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

    /// Begins copies, in any order, and does not wait for them. What they write may be in a ring from
    /// [`open_ring`](Self::open_ring).
    ///
    /// # Errors
    /// The device takes no copy: it, or the one whose ring it is, has failed.
    ///
    /// # Safety
    /// Until they are done or dropped, what is read is valid for that and what is written for that, and no copy
    /// writes what another reads or writes.
    unsafe fn begin_copies(&self, parts: &[DevicePart])
    -> Result<Box<dyn DeviceCopy>, DeviceError>;

    /// Makes a ring of at least `bytes` bytes, an allocation of its own, and the handle by which another process
    /// of this machine opens it.
    ///
    /// # Errors
    /// The device has no room for it, or does not share memory.
    fn make_ring(&self, bytes: usize) -> Result<(DeviceMemory, Vec<u8>), DeviceError>;

    /// Opens the ring of another process, which has to have `bytes` bytes.
    ///
    /// # Errors
    /// It cannot be reached from this device or process, or is smaller.
    fn open_ring(&self, handle: &[u8], bytes: usize) -> Result<DeviceMemory, DeviceError>;
}

/// One of the copies that are begun together: addresses on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DevicePart {
    pub from: u64,
    pub to: u64,
    pub bytes: usize,
}

/// Copies that were begun together. Dropping them waits until nothing is read or written any more: a device ends what it
/// has begun, soon, whatever any peer does.
pub trait DeviceCopy: Send {
    /// Whether every byte is there.
    ///
    /// # Errors
    /// It was not copied, and never will be.
    fn is_done(&mut self) -> Result<bool, DeviceError>;

    /// Waits until every byte is there.
    ///
    /// # Errors
    /// As for [`is_done`](Self::is_done).
    fn wait(&mut self) -> Result<(), DeviceError>;
}

/// Memory of a device, made or opened.
pub struct DeviceMemory {
    /// Where it is, for the device.
    pub address: u64,
    /// Gives it back when dropped.
    pub owner: Box<dyn Any + Send>,
}

/// What a device could not do, and why, in the words of its driver.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DeviceError(pub String);
