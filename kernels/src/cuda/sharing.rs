//! Memory of a device shared with other processes of its machine (CUDA IPC). The device is the calling thread's.

use cudarc::driver::{DriverError, sys};

use super::params::Address;
use crate::KernelError;

/// The driver cuts smaller allocations out of larger ones, and a handle names the whole. From this size on an
/// allocation is its own.
pub const OWN_ALLOCATION: usize = 2 << 20;

/// By which another process opens the allocation that begins at `address`.
pub fn handle_of(address: Address) -> Result<[u8; 64], KernelError> {
    let mut handle = sys::CUipcMemHandle { reserved: [0; 64] };
    // SAFETY: a local, and the start of an allocation.
    let shared = unsafe { sys::cuIpcGetMemHandle(&raw mut handle, address) };
    shared.result().map_err(|error| {
        KernelError::Sharing(format!("the driver gives no handle of it ({error})"))
    })?;
    Ok(handle.reserved.map(|byte| byte as u8))
}

/// Where another process's allocation is here.
pub fn open(handle: [u8; 64]) -> Result<Address, KernelError> {
    let handle = sys::CUipcMemHandle {
        reserved: handle.map(|byte| byte as std::ffi::c_char),
    };
    let lazily = sys::CUipcMem_flags::CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS as u32;
    let mut address = 0;
    // SAFETY: a local, and a handle of the right size, which the driver checks.
    let opened = unsafe { sys::cuIpcOpenMemHandle_v2(&raw mut address, handle, lazily) };
    opened.result().map_err(|error: DriverError| {
        KernelError::Sharing(format!("the driver does not open it here ({error})"))
    })?;
    Ok(address)
}
