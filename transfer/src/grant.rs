//! A grant: all that a peer needs to write into leased pages, as bytes for an RPC field.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::codec::{Reader, Writer};
use crate::error::DecodeError;
use crate::memory::MemoryKind;

const MAGIC: u32 = u32::from_le_bytes(*b"MLRG");
const VERSION: u16 = 2;
/// Most pages one grant names (a 64-token page each: far beyond any context length).
pub(crate) const MAX_PAGES: usize = 1 << 16;
pub(crate) const MAX_ADDRESSES: usize = 16;

/// The right to write certain pages of a target, once each, until the lease ends.
///
/// Whoever holds its bytes can write those pages, so treat it like a password: its `Debug` form
/// hides the key.
#[derive(Clone, PartialEq, Eq)]
pub struct Grant {
    pub(crate) incarnation: u128,
    pub(crate) machine: u128,
    pub(crate) addresses: Vec<SocketAddr>,
    /// Abstract name of the target's local socket; absent where it offers no shared memory.
    pub(crate) local: Option<String>,
    /// Whether the target can be written by NIXL.
    pub(crate) nixl: bool,
    pub(crate) memory: MemoryKind,
    pub(crate) lease: u64,
    pub(crate) key: u128,
    pub(crate) page_bytes: usize,
    pub(crate) pages: Vec<u32>,
}

impl Grant {
    /// Number of the lease, for logs. Unique within one run of the target.
    pub fn lease(&self) -> u64 {
        self.lease
    }

    /// Page numbers in the target's memory, in the order in which writes index them.
    pub fn pages(&self) -> &[u32] {
        &self.pages
    }

    pub fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    pub fn memory(&self) -> MemoryKind {
        self.memory
    }

    /// One run of one target: differs after a restart, also on the same address.
    pub fn incarnation(&self) -> u128 {
        self.incarnation
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(128 + 4 * self.pages.len());
        let mut out = Writer::new(&mut bytes);
        out.u32(MAGIC)
            .u16(VERSION)
            .u128(self.incarnation)
            .u128(self.machine);
        out.u32(self.addresses.len() as u32);
        for address in &self.addresses {
            match address.ip() {
                IpAddr::V4(ip) => out.u8(4).bytes(&ip.octets()),
                IpAddr::V6(ip) => out.u8(6).bytes(&ip.octets()),
            };
            out.u16(address.port());
        }
        out.u8(self.local.is_some().into())
            .text(self.local.as_deref().unwrap_or(""))
            .u8(self.nixl.into());
        match self.memory {
            MemoryKind::Host => out.u8(0).u32(0),
            MemoryKind::Device(device) => out.u8(1).u32(device),
        };
        out.u64(self.lease)
            .u128(self.key)
            .u64(self.page_bytes as u64);
        out.u32(self.pages.len() as u32);
        for page in &self.pages {
            out.u32(*page);
        }
        bytes
    }

    /// Strict: every byte must be accounted for and every value one that `to_bytes` writes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Grant, DecodeError> {
        let mut from = Reader::new(bytes);
        if from.u32()? != MAGIC {
            return Err(DecodeError::Magic);
        }
        let theirs = from.u16()?;
        if theirs != VERSION {
            return Err(DecodeError::Version {
                ours: VERSION,
                theirs,
            });
        }
        let (incarnation, machine) = (from.u128()?, from.u128()?);
        let count = from.count("address list", MAX_ADDRESSES)?;
        let addresses = (0..count)
            .map(|_| address(&mut from))
            .collect::<Result<_, _>>()?;
        let has_local = from.flag("local socket flag")?;
        let local = from.text("local socket name")?;
        if !has_local && !local.is_empty() {
            return Err(DecodeError::BadValue {
                what: "local socket flag",
                value: 0,
            });
        }
        let nixl = from.flag("NIXL flag")?;
        let memory = memory(&mut from)?;
        let (lease, key, page_bytes) = (from.u64()?, from.u128()?, from.u64()?);
        let page_bytes = usize::try_from(page_bytes)
            .ok()
            .filter(|bytes| *bytes > 0)
            .ok_or(DecodeError::BadValue {
                what: "page size",
                value: page_bytes,
            })?;
        let count = from.count("page list", MAX_PAGES)?;
        if count == 0 {
            return Err(DecodeError::BadValue {
                what: "page count",
                value: 0,
            });
        }
        let pages = (0..count).map(|_| from.u32()).collect::<Result<_, _>>()?;
        from.end()?;
        let local = has_local.then_some(local);
        Ok(Grant {
            incarnation,
            machine,
            addresses,
            local,
            nixl,
            memory,
            lease,
            key,
            page_bytes,
            pages,
        })
    }
}

fn address(from: &mut Reader<'_>) -> Result<SocketAddr, DecodeError> {
    let ip = match from.u8()? {
        4 => IpAddr::V4(Ipv4Addr::from(from.array::<4>()?)),
        6 => IpAddr::V6(Ipv6Addr::from(from.array::<16>()?)),
        other => {
            return Err(DecodeError::BadValue {
                what: "address family",
                value: other.into(),
            });
        }
    };
    Ok(SocketAddr::new(ip, from.u16()?))
}

fn memory(from: &mut Reader<'_>) -> Result<MemoryKind, DecodeError> {
    match (from.u8()?, from.u32()?) {
        (0, 0) => Ok(MemoryKind::Host),
        (0, value) => Err(DecodeError::BadValue {
            what: "host memory ordinal",
            value: value.into(),
        }),
        (1, device) => Ok(MemoryKind::Device(device)),
        (other, _) => Err(DecodeError::BadValue {
            what: "memory kind",
            value: other.into(),
        }),
    }
}

impl fmt::Debug for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grant")
            .field("lease", &self.lease)
            .field("pages", &self.pages)
            .field("page_bytes", &self.page_bytes)
            .field("memory", &self.memory)
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}
