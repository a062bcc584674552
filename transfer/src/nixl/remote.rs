//! The initiator's end of a ring in another machine's memory.

use std::collections::VecDeque;
use std::sync::Arc;

use super::NixlError;
use super::agent::{Agent, Remote, Write};
use crate::frame::Frame;
use crate::memory::Source;

/// Writes payload into a target's ring, and keeps the frames that tell of it until it is there.
pub(crate) struct RemoteRing {
    /// Before the way to the peer: what is dropped unfinished is cancelled while that still exists.
    pending: VecDeque<Pending>,
    remote: Remote,
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
        write: Write,
    },
    /// A piece that does not end its `Data`: the ring's end came in between.
    Piece { seq: u64, write: Write },
    /// To be sent once everything before it is done.
    Frames(Vec<u8>),
}

impl RemoteRing {
    /// `metadata` and `base` are the target's.
    pub(crate) fn open(
        agent: &Arc<Agent>,
        metadata: &[u8],
        base: u64,
        bytes: u64,
    ) -> Result<RemoteRing, NixlError> {
        let bytes = usize::try_from(bytes).ok().filter(|bytes| *bytes > 0);
        let bytes = bytes.ok_or(NixlError::Failed {
            what: "use the target's ring",
            cause: "no process could have one of that size".into(),
        })?;
        Ok(RemoteRing {
            pending: VecDeque::new(),
            remote: agent.connect(metadata)?,
            base,
            bytes,
            position: 0,
            room: bytes,
        })
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
    ) -> Result<(), NixlError> {
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
    pub(crate) fn settle(&mut self, out: &mut Vec<u8>) -> Result<bool, NixlError> {
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
    pub(crate) fn stray(&self, source: &Source, bytes: usize, to: u64) -> Result<Write, NixlError> {
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
