//! The header that every frame begins with.
//!
//! ```text
//! magic 3 | version 1 | kind 1 | zero 3 | layer 4 | rows 4 | work 4 | length 4 | epoch 8 | step 8 | ready_for 8
//! ```
//!
//! Numbers are little-endian. A field that a kind does not have is zero, and anything else closes the
//! link: bytes that are no header are noticed at once, wherever a stream went wrong.

use std::fmt;

use millrace_engine::exchange::Work;
use millrace_experts::group::Start;

use crate::wire::MAX_GREETING;
use crate::{FrameError, FrameLimits};

pub(crate) const HEADER: usize = 48;
/// One piece of work: row and slot, four bytes each.
pub(crate) const WORK_BYTES: usize = size_of::<Work>();
const MAGIC: [u8; 3] = *b"MRX";
const VERSION: u8 = 2;
/// Bytes that are shared at a time, at most.
pub(crate) const MOST_SHARED: usize = millrace_kernels::MOST_OFFER;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Who dials whom, as JSON.
    Hello = 1,
    Welcome = 2,
    /// Why not, as JSON.
    Refused = 3,
    Heartbeat = 4,
    Start = 5,
    /// The work as pairs of row and slot, then the rows.
    Dispatch = 6,
    /// The results, one row a piece of work.
    Respond = 7,
    /// What all ranks are to know of each other, as bytes; the layer is the round.
    Share = 8,
}

impl Kind {
    fn from_code(code: u8) -> Result<Kind, FrameError> {
        Ok(match code {
            1 => Kind::Hello,
            2 => Kind::Welcome,
            3 => Kind::Refused,
            4 => Kind::Heartbeat,
            5 => Kind::Start,
            6 => Kind::Dispatch,
            7 => Kind::Respond,
            8 => Kind::Share,
            other => return Err(FrameError::UnknownKind(other)),
        })
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Hello => "hello",
            Kind::Welcome => "welcome",
            Kind::Refused => "refused",
            Kind::Heartbeat => "heartbeat",
            Kind::Start => "start",
            Kind::Dispatch => "dispatch",
            Kind::Respond => "respond",
            Kind::Share => "share",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) layer: u32,
    pub(crate) rows: u32,
    pub(crate) work: u32,
    /// Bytes of the body.
    pub(crate) length: u32,
    pub(crate) epoch: u64,
    pub(crate) step: u64,
    pub(crate) ready_for: u64,
}

/// The half of an exchange a frame belongs to, or what comes before the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Share,
    Dispatch,
    Respond,
}

/// The place of a parcel in the work of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) epoch: u64,
    pub(crate) step: u64,
    pub(crate) layer: u32,
    pub(crate) phase: Phase,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Key {
            epoch,
            step,
            layer,
            phase,
        } = self;
        let phase = match phase {
            Phase::Share => return write!(f, "round {layer} before step {epoch}.{step}"),
            Phase::Dispatch => "dispatch",
            Phase::Respond => "respond",
        };
        write!(f, "{phase} of layer {layer} in step {epoch}.{step}")
    }
}

impl Header {
    /// A frame of nothing but its kind.
    pub(crate) fn bare(kind: Kind) -> Header {
        Header {
            kind,
            layer: 0,
            rows: 0,
            work: 0,
            length: 0,
            epoch: 0,
            step: 0,
            ready_for: 0,
        }
    }

    pub(crate) fn greeting(kind: Kind, length: usize) -> Header {
        Header {
            length: length as u32,
            ..Header::bare(kind)
        }
    }

    pub(crate) fn start(start: &Start) -> Header {
        Header {
            rows: start.rows as u32,
            epoch: start.epoch,
            step: start.step,
            ready_for: start.ready_for,
            ..Header::bare(Kind::Start)
        }
    }

    /// Of `rows` rows of `hidden` values, and `work` pieces of work.
    pub(crate) fn parcel(key: Key, rows: usize, work: usize, hidden: usize) -> Header {
        Header {
            rows: rows as u32,
            work: work as u32,
            ..Header::bytes(key, work * WORK_BYTES + rows * hidden * size_of::<f32>())
        }
    }

    /// With a body of so many bytes.
    pub(crate) fn bytes(key: Key, length: usize) -> Header {
        let kind = match key.phase {
            Phase::Share => Kind::Share,
            Phase::Dispatch => Kind::Dispatch,
            Phase::Respond => Kind::Respond,
        };
        Header {
            layer: key.layer,
            length: length as u32,
            epoch: key.epoch,
            step: key.step,
            ..Header::bare(kind)
        }
    }

    /// The place of a `Share`, `Dispatch` or `Respond` frame.
    pub(crate) fn key(&self, phase: Phase) -> Key {
        Key {
            epoch: self.epoch,
            step: self.step,
            layer: self.layer,
            phase,
        }
    }

    pub(crate) fn to_start(self) -> Start {
        Start {
            epoch: self.epoch,
            step: self.step,
            ready_for: self.ready_for,
            rows: self.rows as usize,
        }
    }

    pub(crate) fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..3].copy_from_slice(&MAGIC);
        bytes[3] = VERSION;
        bytes[4] = self.kind as u8;
        for (at, value) in [self.layer, self.rows, self.work, self.length]
            .into_iter()
            .enumerate()
        {
            bytes[8 + 4 * at..][..4].copy_from_slice(&value.to_le_bytes());
        }
        for (at, value) in [self.epoch, self.step, self.ready_for]
            .into_iter()
            .enumerate()
        {
            bytes[24 + 8 * at..][..8].copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    /// # Errors
    /// Not a header, or one whose body must not be read: nothing is allocated for it.
    pub(crate) fn decode(bytes: &[u8; HEADER], limits: &FrameLimits) -> Result<Header, FrameError> {
        let short = |at: usize| {
            let value = bytes[8 + 4 * at..].first_chunk().expect("within a header");
            u32::from_le_bytes(*value)
        };
        let long = |at: usize| {
            let value = bytes[24 + 8 * at..].first_chunk().expect("within a header");
            u64::from_le_bytes(*value)
        };
        if bytes[..3] != MAGIC {
            return Err(FrameError::Magic);
        }
        if bytes[3] != VERSION {
            return Err(FrameError::Version {
                ours: VERSION,
                theirs: bytes[3],
            });
        }
        let header = Header {
            kind: Kind::from_code(bytes[4])?,
            layer: short(0),
            rows: short(1),
            work: short(2),
            length: short(3),
            epoch: long(0),
            step: long(1),
            ready_for: long(2),
        };
        if bytes[5..8] != [0; 3] || header != header.without_strays() {
            return Err(FrameError::Stray {
                kind: header.kind.name(),
            });
        }
        header.check(limits)?;
        Ok(header)
    }

    /// With only those fields that its kind has.
    fn without_strays(&self) -> Header {
        match self.kind {
            Kind::Welcome | Kind::Heartbeat => Header::bare(self.kind),
            Kind::Hello | Kind::Refused => Header {
                length: self.length,
                ..Header::bare(self.kind)
            },
            Kind::Start => Header {
                layer: 0,
                work: 0,
                length: 0,
                ..*self
            },
            Kind::Share => Header {
                rows: 0,
                work: 0,
                ready_for: 0,
                ..*self
            },
            Kind::Dispatch => Header {
                ready_for: 0,
                ..*self
            },
            Kind::Respond => Header {
                work: 0,
                ready_for: 0,
                ..*self
            },
        }
    }

    fn check(&self, limits: &FrameLimits) -> Result<(), FrameError> {
        let at_most = |what, count: u32, limit| {
            let count = count as usize;
            if count > limit {
                Err(FrameError::TooMany { what, count, limit })
            } else {
                Ok(())
            }
        };
        let (rows, work, actual) = (self.rows as usize, self.work as usize, self.length as usize);
        match self.kind {
            Kind::Hello | Kind::Refused => {
                return at_most("bytes of a greeting", self.length, MAX_GREETING);
            }
            Kind::Share => return at_most("shared bytes", self.length, MOST_SHARED),
            Kind::Dispatch => {
                at_most("rows", self.rows, limits.rows)?;
                at_most("pieces of work", self.work, limits.work)?;
            }
            Kind::Respond => at_most("results", self.rows, limits.work)?,
            Kind::Welcome | Kind::Heartbeat | Kind::Start => return Ok(()),
        }
        // Cannot overflow: both counts are within limits whose product was checked at the start.
        let expected = work * WORK_BYTES + rows * limits.hidden * size_of::<f32>();
        if actual != expected {
            return Err(FrameError::Length { expected, actual });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
