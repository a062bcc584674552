//! Why a target's connection ended.

use std::io;

use crate::error::{DecodeError, Refusal};
use crate::stats::FailureKind;

#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    #[error("the peer closed it")]
    Closed,
    #[error("the peer was silent for too long between writes")]
    Idle,
    #[error("the peer stalled in the middle of a frame or page")]
    Stalled,
    #[error("the connection broke")]
    Lost(#[source] io::Error),
    #[error("malformed frame")]
    Malformed(#[from] DecodeError),
    #[error("a {0} frame came where none belongs")]
    OutOfTurn(&'static str),
    #[error("{bytes} bytes of data announced where at most {limit} can come")]
    DataOverrun { bytes: u32, limit: usize },
    #[error("refused")]
    Violation {
        seq: u64,
        #[source]
        refusal: Refusal,
    },
    #[error("the peer does not fit: {field} is {theirs} there and {ours} here")]
    Mismatch {
        field: String,
        ours: String,
        theirs: String,
    },
    #[error("the peer has a grant of another worker")]
    OtherIncarnation,
    #[error("the peer wants to write by NIXL, and that cannot be had: {0}")]
    NoNixl(String),
    #[error("a callback of a lease's owner has panicked")]
    Panicked,
}

impl End {
    /// What it is counted as; `None` for an ordinary end.
    pub fn failure(&self) -> Option<FailureKind> {
        match self {
            End::Closed | End::Idle => None,
            End::Stalled => Some(FailureKind::Stalled),
            End::Lost(_) | End::Panicked => Some(FailureKind::Lost),
            End::Malformed(_) | End::OutOfTurn(_) | End::DataOverrun { .. } => {
                Some(FailureKind::Malformed)
            }
            End::Violation { refusal, .. } => Some(refusal.kind()),
            End::NoNixl(_) => Some(FailureKind::Unavailable),
            End::Mismatch { .. } | End::OtherIncarnation => Some(FailureKind::Mismatch),
        }
    }
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> End {
        match error.kind() {
            io::ErrorKind::TimedOut => End::Stalled,
            _ => End::Lost(error),
        }
    }
}
