//! A rank's window, which the other ranks' devices write, and theirs as they are reached from here.
//!
//! A rank tells the others of its window by an [`Offer`]: where it is for a rank of the same process, and a handle
//! for those of other processes of this machine. Whoever was told may write there for as long as its process lives,
//! also when the group goes on without it: it may have been stopped with kernels still to launch. So a window is
//! left for a fresh one then, and freed once nobody who was told of it can write there any more.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use cudarc::driver::sys;

use super::device::Device;
use super::memory::Memory;
use super::params::Address;
use super::sharing;
use crate::KernelError;

/// What others need to reach a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Offer {
    pub process: ProcessId,
    /// UUID of the GPU.
    pub gpu: [u8; 16],
    address: Address,
    bytes: u64,
    handle: [u8; 64],
    /// The last turn that the rank took.
    pub turn: u64,
}

/// A process, for others that see the same processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct ProcessId {
    /// This boot of this machine.
    boot: [u8; 16],
    namespace: u64,
    /// When it started: numbers are used again.
    started: u64,
    number: u64,
}

/// This rank's own.
pub struct Window {
    /// `None` only while it is dropped.
    memory: Option<Memory>,
    handle: [u8; 64],
    /// Whoever was told of it, as far as it has said who it is.
    guests: Vec<Guest>,
    /// Somebody was told of it and has not said yet who it is.
    strangers: bool,
}

/// A process that may write a window.
struct Guest {
    id: ProcessId,
    /// Readable once it has ended; `None` for this process.
    end: Option<OwnedFd>,
}

/// Another rank's.
pub struct Opened {
    device: Arc<Device>,
    offer: Offer,
    address: Address,
    /// It is another process's.
    by_handle: bool,
}

impl ProcessId {
    pub fn own() -> io::Result<ProcessId> {
        let number = std::process::id();
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let digits: String = boot.chars().filter(char::is_ascii_hexdigit).collect();
        let boot = u128::from_str_radix(&digits, 16).map_err(io::Error::other)?;
        Ok(ProcessId {
            boot: boot.to_le_bytes(),
            namespace: std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(
                "/proc/self/ns/pid",
            )?),
            started: started(number.into())?,
            number: number.into(),
        })
    }

    /// Whether numbers of processes mean the same to both.
    pub fn sees(&self, other: &ProcessId) -> bool {
        (self.boot, self.namespace) == (other.boot, other.namespace)
    }
}

/// When a process started, in the kernel's clock ticks.
fn started(process: u64) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name, in brackets, may hold anything.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let started = fields.split_ascii_whitespace().nth(19);
    let started = started.and_then(|ticks| ticks.parse().ok());
    started.ok_or_else(|| io::Error::other("the kernel tells of a process in another way"))
}

impl Guest {
    fn of(id: ProcessId, own: &ProcessId) -> io::Result<Guest> {
        if id == *own {
            return Ok(Guest { id, end: None });
        }
        // SAFETY: no memory is involved; the result is checked.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, id.number as libc::pid_t, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor that was just made and that nobody else owns.
        let end = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        // The number may be another process's by now.
        if started(id.number)? != id.started {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Guest { id, end: Some(end) })
    }

    fn has_ended(&self) -> bool {
        let Some(end) = &self.end else {
            return false;
        };
        let mut poll = libc::pollfd {
            fd: end.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one local structure; does not wait.
        unsafe { libc::poll(&raw mut poll, 1, 0) > 0 }
    }
}

impl Window {
    pub fn new(device: &Arc<Device>, bytes: usize) -> Result<Window, KernelError> {
        let asked = bytes.next_multiple_of(sharing::OWN_ALLOCATION);
        let memory = Memory::new(device, asked, "the exchange of experts' rows")?;
        device.bind();
        let handle = sharing::handle_of(memory.address())?;
        // Zeroed before anyone writes there.
        device.wait();
        Ok(Window {
            memory: Some(memory),
            handle,
            guests: Vec::new(),
            strangers: false,
        })
    }

    fn memory(&self) -> &Memory {
        self.memory.as_ref().expect("taken only in `drop`")
    }

    pub fn address(&self) -> Address {
        self.memory().address()
    }

    /// For telling others of it.
    pub fn offer(&mut self, process: ProcessId, gpu: [u8; 16], turn: u64) -> Offer {
        self.strangers = true;
        Offer {
            process,
            gpu,
            address: self.address(),
            bytes: self.memory().bytes() as u64,
            handle: self.handle,
            turn,
        }
    }

    /// All who were told of it since the last call are these.
    pub fn admit(&mut self, guests: &[ProcessId], own: &ProcessId) -> Result<(), KernelError> {
        for id in guests {
            if self.guests.iter().all(|guest| guest.id != *id) {
                let guest = Guest::of(*id, own).map_err(|error| {
                    KernelError::Sharing(format!("a rank's process cannot be watched ({error})"))
                })?;
                self.guests.push(guest);
            }
        }
        self.strangers = false;
        Ok(())
    }

    pub fn guests(&self) -> Vec<ProcessId> {
        self.guests.iter().map(|guest| guest.id).collect()
    }

    /// These processes have let go of every window but the one they were told of last.
    pub fn dismiss(&mut self, guests: &[ProcessId]) {
        self.guests.retain(|guest| !guests.contains(&guest.id));
    }

    /// Whether somebody may still write there.
    pub fn is_shared(&self) -> bool {
        self.strangers || self.guests.iter().any(|guest| !guest.has_ended())
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // At the end of a rank: its memory is left to others who may still write it, and ends with the process.
        let abroad = |guest: &Guest| guest.end.is_some() && !guest.has_ended();
        if self.strangers || self.guests.iter().any(abroad) {
            std::mem::forget(self.memory.take());
        }
    }
}

impl Opened {
    /// The window that `offer` tells of, of a process that `own`, this one, sees.
    pub fn new(
        device: &Arc<Device>,
        offer: &Offer,
        own: &ProcessId,
        bytes: usize,
    ) -> Result<Opened, KernelError> {
        if (offer.bytes as usize) < bytes {
            return Err(KernelError::Sharing(format!(
                "it was to have {bytes} bytes and has {}",
                offer.bytes
            )));
        }
        let by_handle = offer.process != *own;
        Ok(Opened {
            device: device.clone(),
            offer: *offer,
            address: match by_handle {
                true => {
                    device.bind();
                    sharing::open(offer.handle)?
                }
                false => offer.address,
            },
            by_handle,
        })
    }

    pub fn address(&self) -> Address {
        self.address
    }

    /// Whether it is the window that `offer` tells of.
    pub fn is(&self, offer: &Offer) -> bool {
        // The same memory is told of again with every turn.
        let offer = Offer {
            turn: self.offer.turn,
            ..*offer
        };
        self.offer == offer
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if self.by_handle && self.device.context().bind_to_thread().is_ok() {
            // SAFETY: opened once, closed once. At the end of a process the driver may be gone already.
            let _: Result<_, _> = unsafe { sys::cuIpcCloseMemHandle(self.address) }.result();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_seen_to_end() {
        let own = ProcessId::own().unwrap();
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let number = u64::from(child.id());
        let id = ProcessId {
            number,
            started: started(number).unwrap(),
            ..own
        };
        let guest = Guest::of(id, &own).unwrap();
        assert!(!guest.has_ended());
        let later = ProcessId {
            started: id.started + 1,
            ..id
        };
        assert!(Guest::of(later, &own).is_err(), "another with its number");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(guest.has_ended());
        assert!(!Guest::of(own, &own).unwrap().has_ended());
    }
}
