//! What can go wrong, each with what to do about it.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crate::nixl::NixlError;
use crate::stats::FailureKind;

/// Bytes that are not a grant or a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("cut short")]
    Truncated,
    #[error("{0} bytes too many")]
    Trailing(usize),
    #[error("not this protocol (wrong first bytes)")]
    Magic,
    #[error("version {theirs}, and this side speaks {ours}; run the same release on both sides")]
    Version { ours: u16, theirs: u16 },
    #[error("unknown frame kind {0}")]
    UnknownKind(u8),
    #[error("{what} of {length} exceeds the limit of {limit}")]
    TooLong {
        what: &'static str,
        length: usize,
        limit: usize,
    },
    #[error("{what} is not UTF-8")]
    NotText { what: &'static str },
    #[error("{what} cannot be {value}")]
    BadValue { what: &'static str, value: u64 },
}

/// Why [`crate::Target::bind`] failed.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("cannot listen on {address}")]
    Listen {
        address: SocketAddr,
        source: io::Error,
    },
    #[error("cannot listen for peers of this machine (set `shm` to false to do without)")]
    ListenLocal { source: io::Error },
    #[error("{address} is not an address that peers can connect to; set `advertise`")]
    Unspecified { address: SocketAddr },
    #[error("at most {limit} advertised addresses, not {count}")]
    TooManyAddresses { count: usize, limit: usize },
    #[error("the region's pages have {region} bytes and the layout's {layout}")]
    PageBytes { region: usize, layout: usize },
    #[error(transparent)]
    Nixl(#[from] NixlError),
    #[error("cannot set up the transfer threads")]
    System { source: io::Error },
}

/// Why pages could not be put under a lease.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    #[error("a grant needs at least one page")]
    NoPages,
    #[error("at most {limit} pages a grant, not {count}")]
    TooManyPages { count: usize, limit: usize },
    #[error("page {page} is outside the region's {pages} pages")]
    OutOfRange { page: u32, pages: usize },
    #[error("page {page} is already under a lease; free it only against its WritesEnded")]
    AlreadyLeased { page: u32 },
    #[error("the system gave no random key: {0}")]
    NoKey(io::ErrorKind),
}

/// Why a target took no write (or announcement).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The owner completed or revoked the lease. The only refusal that happens between correct
    /// peers (a request was cancelled); the connection lives on.
    #[error("lease {lease} has ended: its request was completed or given up there")]
    LeaseEnded { lease: u64 },
    #[error("lease {lease} was never granted by this target")]
    UnknownLease { lease: u64 },
    #[error("wrong key for lease {lease}")]
    WrongKey { lease: u64 },
    #[error("page index {index} is outside the {pages} pages of lease {lease}")]
    IndexOutOfRange {
        lease: u64,
        index: u32,
        pages: usize,
    },
    #[error("a write of {bytes} bytes into pages of {page_bytes}")]
    WrongLength { bytes: u64, page_bytes: usize },
    #[error("page index {index} of lease {lease} was written, or is being written, already")]
    WrittenTwice { lease: u64, index: u32 },
    #[error(
        "page index {index} of lease {lease} arrived with another checksum than it was sent with"
    )]
    Checksum { lease: u64, index: u32 },
    #[error("lease {lease} was announced before")]
    AnnouncedTwice { lease: u64 },
    #[error("lease {lease} was announced with {landed} of {pages} pages written")]
    Incomplete {
        lease: u64,
        landed: usize,
        pages: usize,
    },
}

impl Refusal {
    pub fn kind(&self) -> FailureKind {
        match self {
            Refusal::LeaseEnded { .. } => FailureKind::LeaseEnded,
            Refusal::UnknownLease { .. } => FailureKind::UnknownLease,
            Refusal::WrongKey { .. } => FailureKind::WrongKey,
            Refusal::IndexOutOfRange { .. } => FailureKind::IndexOutOfRange,
            Refusal::WrongLength { .. } => FailureKind::WrongLength,
            Refusal::WrittenTwice { .. } | Refusal::AnnouncedTwice { .. } => {
                FailureKind::WrittenTwice
            }
            Refusal::Checksum { .. } => FailureKind::Checksum,
            Refusal::Incomplete { .. } => FailureKind::Incomplete,
        }
    }

    /// Whether only a broken or hostile peer can cause this; such a connection is closed.
    pub(crate) fn is_violation(&self) -> bool {
        !matches!(self, Refusal::LeaseEnded { .. })
    }
}

/// Why no connection to a target could be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error("the target refuses this peer: {field} is {theirs} there and {ours} here")]
    Mismatch {
        field: String,
        ours: String,
        theirs: String,
    },
    #[error(
        "the grant's worker has restarted or is gone, and another listens there; ask for a new grant"
    )]
    OtherIncarnation,
    #[error("the target has all the connections it takes; retry elsewhere")]
    Busy,
    /// One side wants to, and cannot now. With [`crate::Transport::Auto`] another way is taken.
    #[error("the target cannot be written by {transport}: {cause}")]
    Unavailable {
        transport: &'static str,
        cause: String,
    },
    #[error("the target offers no way for transport {0}")]
    NoAddress(&'static str),
    #[error("shared memory asked for, but the target is on another machine")]
    OtherMachine,
    #[error("cannot connect to {address}: {cause}")]
    Connect { address: String, cause: String },
    #[error("{address} did not complete the handshake within {patience:?}")]
    HandshakeTimeout { address: String, patience: Duration },
    #[error("the handshake with {address} failed: {cause}")]
    Handshake { address: String, cause: String },
    #[error("cannot set up a transfer thread: {0}")]
    System(String),
}

/// Why pages of a grant could not be delivered. A new grant may always be tried; nothing of the old
/// one is in flight any more at the sender.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    #[error("page index {index} is outside the grant's {pages} pages")]
    IndexOutOfRange { index: usize, pages: usize },
    #[error("page index {index} was given twice")]
    WrittenTwice { index: usize },
    #[error("a page of {bytes} bytes for a grant of {page_bytes}-byte pages")]
    WrongLength { bytes: usize, page_bytes: usize },
    #[error("{missing} of the grant's {pages} pages were never given to write")]
    MissingPages { missing: usize, pages: usize },
    #[error("a message of {bytes} bytes exceeds the limit of {limit}")]
    MessageTooLong { bytes: usize, limit: usize },
    #[error("the queue of this connection stayed full for {0:?}")]
    QueueFull(Duration),
    #[error("the target has completed or revoked the lease")]
    LeaseEnded,
    #[error("the target refused the write ({}): {detail}", kind.as_str())]
    Refused { kind: FailureKind, detail: String },
    #[error("the target took no byte and acknowledged nothing for {0:?}")]
    Stalled(Duration),
    #[error("the connection to the target was lost: {0}")]
    Lost(String),
    #[error("the target broke the protocol: {0}")]
    Protocol(String),
    #[error("this initiator has been closed")]
    Closed,
    #[error("the writer was dropped before it had finished")]
    Abandoned,
}

impl WriteError {
    /// What a failed connection is counted as; `None` where nothing went wrong.
    pub(crate) fn connection_failure(&self) -> Option<FailureKind> {
        match self {
            WriteError::Lost(_) => Some(FailureKind::Lost),
            WriteError::Stalled(_) => Some(FailureKind::Stalled),
            WriteError::Protocol(_) => Some(FailureKind::Malformed),
            _ => None,
        }
    }
}

/// Why [`crate::PageWriter::try_write`] took no page.
#[derive(Debug, thiserror::Error)]
pub enum TryWriteError {
    #[error("the queue is full; try again when a page has been acknowledged")]
    Full(crate::Source),
    #[error(transparent)]
    Failed(#[from] WriteError),
}
