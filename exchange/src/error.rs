//! What can go wrong, each with what to do about it.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use millrace_experts::RankId;
use serde::{Deserialize, Serialize};

/// Why [`crate::Mesh::bind`] failed.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    #[error("cannot listen on {address} for the other ranks of the group; choose a free port")]
    Listen {
        address: SocketAddr,
        source: io::Error,
    },
    #[error(
        "a link that is lost after {silence:?} needs a heartbeat at least twice as often, not every {heartbeat:?}"
    )]
    Heartbeat {
        heartbeat: Duration,
        silence: Duration,
    },
    #[error(
        "a parcel could have {largest} bytes, and a frame counts up to {}; compute fewer rows a step",
        u32::MAX
    )]
    FrameSize { largest: usize },
    #[error(
        "the layout takes {bytes} bytes of a greeting, and {limit} are allowed; shorten its values"
    )]
    Layout { bytes: usize, limit: usize },
    #[error("cannot start the thread that keeps the links")]
    Thread(#[source] io::Error),
}

/// Why there is no link with a rank (any more).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    #[error("cannot connect to {address}: {reason}")]
    Connect { address: String, reason: String },
    #[error("the connection failed: {0}")]
    Io(io::ErrorKind),
    #[error("the rank closed the connection; its process ended or gave the link up")]
    Ended,
    #[error("nothing came for {0:?}: the process is stopped or the network cut")]
    Silent(Duration),
    #[error("refused: {0}")]
    Refused(#[from] Refusal),
    #[error("not understood: {0}")]
    Frame(#[from] FrameError),
    #[error("the rank sent {sent} where {awaited} was due: it is not in lockstep")]
    OutOfStep { awaited: String, sent: String },
    #[error("more than {0} frames wait: the rank is not in lockstep")]
    Overflow(usize),
    #[error("the rank connected anew")]
    Replaced,
    #[error("the rank is no longer listed as one of the group")]
    Unlisted,
    #[error("this rank is leaving")]
    Closed,
}

/// Why the rank that listens turned the one that dials away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Refusal {
    #[error(
        "{field} is {listener:?} at the rank that listens and {dialer:?} at the one that dials; \
         start every rank of a group alike"
    )]
    Differs {
        field: String,
        listener: String,
        dialer: String,
    },
    #[error(
        "rank {}-{:x} was looked for, and {}-{:x} answered: the process was restarted",
        asked.rank, asked.incarnation, here.rank, here.incarnation
    )]
    OtherLife { asked: RankId, here: RankId },
    #[error("the rank that listens has not been told of this one yet")]
    NotListed,
    #[error("of two ranks the one with the lower number dials")]
    Direction,
}

/// Bytes that are no frame of this protocol, or one that cannot be meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("wrong first bytes")]
    Magic,
    #[error("version {theirs}, and this side speaks {ours}; run the same release on all ranks")]
    Version { ours: u8, theirs: u8 },
    #[error("unknown frame kind {0}")]
    UnknownKind(u8),
    #[error("a {kind} frame came at the wrong time")]
    Unexpected { kind: &'static str },
    #[error("a field that a {kind} frame does not have is set")]
    Stray { kind: &'static str },
    #[error("{count} {what} exceed the limit of {limit}")]
    TooMany {
        what: &'static str,
        count: usize,
        limit: usize,
    },
    #[error("a body of {actual} bytes where the counts say {expected}")]
    Length { expected: usize, actual: usize },
    #[error("work for row {row} of {rows} in slot {slot} of {slots}")]
    Work {
        row: u32,
        rows: usize,
        slot: u32,
        slots: usize,
    },
    #[error("{results} results for {work} pieces of work")]
    Results { results: usize, work: usize },
    #[error("not a greeting: {0}")]
    Greeting(String),
}
