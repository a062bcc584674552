//! The initiator's end of a ring in memory that it cannot map: another machine's, or a device's.

use std::collections::VecDeque;
use std::time::Duration;

use crate::device::DeviceError;
use crate::frame::Frame;
use crate::memory::Source;
use crate::nixl::NixlError;

/// How soon writes are asked about again, at first and in the end: there is nothing that could be waited for.
const POLL: Duration = Duration::from_micros(20);
const SLOW_POLL: Duration = Duration::from_micros(500);

/// A way to write into a ring's memory.
pub(crate) trait RemoteMemory: Send {
    /// Whether it writes `source` from where that is; otherwise the bytes have to be on the host.
    fn reaches(&self, source: &Source) -> bool;

    /// Begins to write `bytes` bytes of `source`, from `offset` on, to address `to`. `source` has to stay until
    /// the write is done, or dropped.
    fn write(
        &self,
        source: &Source,
        offset: usize,
        bytes: usize,
        to: u64,
    ) -> Result<Box<dyn RemoteWrite>, RemoteError>;

    /// For how long after something has moved it pays to ask, and to wait for answers, without a pause.
    fn spin(&self) -> Duration;
}

/// A write on its way. Dropped unfinished, it reads its source no more.
pub(crate) trait RemoteWrite: Send {
    /// Whether every byte is there.
    fn is_done(&mut self) -> Result<bool, RemoteError>;
}

/// Why a ring cannot be written (any more).
#[derive(Debug, thiserror::Error)]
pub(crate) enum RemoteError {
    #[error(transparent)]
    Nixl(#[from] NixlError),
    #[error("copies between devices failed: {0}")]
    Device(#[from] DeviceError),
    #[error("the target's ring is said to have {0} bytes, which none can have")]
    Size(u64),
}

/// Writes payload into a target's ring, and keeps the frames that tell of it until it is there.
pub(crate) struct RemoteRing {
    /// Before the way to the peer: what is dropped unfinished is ended while that still exists.
    pending: VecDeque<Pending>,
    remote: Box<dyn RemoteMemory>,
    base: u64,
    bytes: usize,
    position: usize,
    room: usize,
}

/// What is to happen next, in order.
enum Pending {
    Write {
        seq: u64,
        bytes: usize,
        write: Box<dyn RemoteWrite>,
    },
    /// A piece that does not end its `Data`: the ring's end came in between.
    Piece {
        seq: u64,
        write: Box<dyn RemoteWrite>,
    },
    /// To be sent once everything before it is done.
    Frames(Vec<u8>),
}

impl RemoteRing {
    /// `base` is where `remote` knows the ring to begin.
    pub(crate) fn new(
        remote: Box<dyn RemoteMemory>,
        base: u64,
        bytes: u64,
    ) -> Result<RemoteRing, RemoteError> {
        let size = usize::try_from(bytes).ok().filter(|bytes| *bytes > 0);
        let size = size.ok_or(RemoteError::Size(bytes))?;
        Ok(RemoteRing {
            pending: VecDeque::new(),
            remote,
            base,
            bytes: size,
            position: 0,
            room: size,
        })
    }

    pub(crate) fn reaches(&self, source: &Source) -> bool {
        self.remote.reaches(source)
    }

    /// How long to wait before asking again, `quiet` after something has moved; `None` until it is told of by a
    /// descriptor. `unanswered`: the target owes answers.
    pub(crate) fn pause(&self, quiet: Duration, unanswered: bool) -> Option<Duration> {
        if quiet < self.remote.spin() && (self.is_writing() || unanswered) {
            return Some(Duration::ZERO);
        }
        // Slower the longer nothing happens, but never idle for as long as something could.
        self.is_writing()
            .then(|| (quiet / 8).clamp(POLL, SLOW_POLL))
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn room(&self) -> usize {
        self.room
    }

    /// Begins to write `count` bytes of `source`, which must fit into the room. `source` has to stay
    /// until [`RemoteRing::settle`] has told of them or this ring is gone. `seq` is the page's.
    pub(crate) fn put(
        &mut self,
        seq: u64,
        source: &Source,
        offset: usize,
        count: usize,
    ) -> Result<(), RemoteError> {
        assert!(count <= self.room);
        let first = count.min(self.bytes - self.position);
        let begin = |from, length, at: usize| {
            self.remote
                .write(source, from, length, self.base + at as u64)
        };
        let write = begin(offset, first, self.position)?;
        if first < count {
            let rest = begin(offset + first, count - first, 0)?;
            self.pending.push_back(Pending::Piece { seq, write });
            self.pending.push_back(Pending::Write {
                seq,
                bytes: count,
                write: rest,
            });
        } else {
            self.pending.push_back(Pending::Write {
                seq,
                bytes: count,
                write,
            });
        }
        self.room -= count;
        self.position = (self.position + count) % self.bytes;
        Ok(())
    }

    /// Where frames have to go that may only be sent after what was put; `None` if they may at once.
    pub(crate) fn frames(&mut self) -> Option<&mut Vec<u8>> {
        match self.pending.back() {
            None => return None,
            Some(Pending::Frames(_)) => {}
            Some(_) => self.pending.push_back(Pending::Frames(Vec::new())),
        }
        match self.pending.back_mut() {
            Some(Pending::Frames(frames)) => Some(frames),
            _ => unreachable!("just seen to"),
        }
    }

    /// Appends to `out` what may be sent by now; false if nothing new.
    pub(crate) fn settle(&mut self, out: &mut Vec<u8>) -> Result<bool, RemoteError> {
        let mut moved = false;
        while let Some(next) = self.pending.front_mut() {
            let done = match next {
                Pending::Write { write, .. } | Pending::Piece { write, .. } => write.is_done()?,
                Pending::Frames(_) => true,
            };
            if !done {
                break;
            }
            match self.pending.pop_front() {
                Some(Pending::Write { bytes, .. }) => Frame::Data {
                    bytes: bytes as u32,
                }
                .encode(out),
                Some(Pending::Frames(mut frames)) => out.append(&mut frames),
                Some(Pending::Piece { .. }) | None => {}
            }
            moved = true;
        }
        Ok(moved)
    }

    /// Whether a write is on its way.
    pub(crate) fn is_writing(&self) -> bool {
        // Frames are never first: nothing would be left for them to wait for.
        !self.pending.is_empty()
    }

    /// Whether something of page `seq`, or of one before it, is on its way.
    pub(crate) fn is_writing_page(&self, page: u64) -> bool {
        self.pending.iter().any(|pending| match pending {
            Pending::Write { seq, .. } | Pending::Piece { seq, .. } => *seq <= page,
            Pending::Frames(_) => false,
        })
    }

    /// Writes where no correct peer would.
    #[cfg(all(test, feature = "nixl"))]
    pub(crate) fn stray(
        &self,
        source: &Source,
        bytes: usize,
        to: u64,
    ) -> Result<Box<dyn RemoteWrite>, RemoteError> {
        self.remote.write(source, 0, bytes, to)
    }

    #[cfg(all(test, feature = "nixl"))]
    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    /// The target has taken `bytes`; false if it never got that many.
    pub(crate) fn credit(&mut self, bytes: u64) -> bool {
        let used = self.bytes - self.room;
        match usize::try_from(bytes).ok().filter(|bytes| *bytes <= used) {
            Some(bytes) => self.room += bytes,
            None => return false,
        }
        true
    }
}
