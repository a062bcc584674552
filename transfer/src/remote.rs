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

    /// Adds `bytes` bytes of `source`, from `offset` on, to what is to be written to address `to`. `source` has to
    /// stay until that is done, or dropped.
    fn add(
        &mut self,
        source: &Source,
        offset: usize,
        bytes: usize,
        to: u64,
    ) -> Result<(), RemoteError>;

    /// Begins to write what was added.
    fn begin(&mut self) -> Result<Box<dyn RemoteWrite>, RemoteError>;

    /// How much of a ring of so many bytes is written at once, if there is as much to write.
    fn at_once(&self, ring_bytes: usize) -> usize;

    /// For how long after something has moved it pays to ask, and to wait for answers, without a pause.
    fn spin(&self) -> Duration;
}

/// What was begun together and is on its way. Dropped unfinished, it reads its source no more.
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
///
/// What is put is begun in groups: devices lose some microseconds between one copy and the next.
pub(crate) struct RemoteRing {
    /// Before the way to the peer: what is dropped unfinished is ended while that still exists.
    groups: VecDeque<Group>,
    remote: Box<dyn RemoteMemory>,
    base: u64,
    bytes: usize,
    position: usize,
    room: usize,
}

/// Writes that are begun together.
struct Group {
    /// Of the first page in it.
    seq: u64,
    bytes: usize,
    /// Absent in the last one while more may be added.
    write: Option<Box<dyn RemoteWrite>>,
    /// What tells of them, and of whatever comes after them and before the next group.
    frames: Vec<u8>,
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
            groups: VecDeque::new(),
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

    /// Adds `count` bytes of `source`, which must fit into the room, to what is written next. `source` has to stay
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
        let to = self.base + self.position as u64;
        self.remote.add(source, offset, first, to)?;
        if first < count {
            let rest = count - first;
            self.remote.add(source, offset + first, rest, self.base)?;
        }
        if self.groups.back().is_none_or(|group| group.write.is_some()) {
            self.groups.push_back(Group {
                seq,
                bytes: 0,
                write: None,
                frames: Vec::new(),
            });
        }
        let group = self.groups.back_mut().expect("just seen to");
        group.bytes += count;
        Frame::Data {
            bytes: count as u32,
        }
        .encode(&mut group.frames);
        self.room -= count;
        self.position = (self.position + count) % self.bytes;
        // One more like this would be too much.
        if group.bytes + count > self.remote.at_once(self.bytes) {
            self.begin()?;
        }
        Ok(())
    }

    /// Begins what was put and not begun. `more`: the next waits for room alone, and while something is on its way,
    /// so does this.
    pub(crate) fn begin_rest(&mut self, more: bool) -> Result<(), RemoteError> {
        if more && self.groups.len() > 1 {
            return Ok(());
        }
        self.begin()
    }

    fn begin(&mut self) -> Result<(), RemoteError> {
        if let Some(group) = self.groups.back_mut().filter(|group| group.write.is_none()) {
            group.write = Some(self.remote.begin()?);
        }
        Ok(())
    }

    /// Where frames have to go that may only be sent after what was put; `None` if they may at once.
    pub(crate) fn frames(&mut self) -> Option<&mut Vec<u8>> {
        self.groups.back_mut().map(|group| &mut group.frames)
    }

    /// Appends to `out` what may be sent by now; false if nothing new.
    pub(crate) fn settle(&mut self, out: &mut Vec<u8>) -> Result<bool, RemoteError> {
        let mut moved = false;
        while let Some(group) = self.groups.front_mut()
            && let Some(write) = &mut group.write
            && write.is_done()?
        {
            out.append(&mut group.frames);
            self.groups.pop_front();
            moved = true;
        }
        Ok(moved)
    }

    /// Whether a write is on its way.
    pub(crate) fn is_writing(&self) -> bool {
        !self.groups.is_empty()
    }

    /// Whether something of page `page`, or of one before it, is on its way.
    pub(crate) fn is_writing_page(&self, page: u64) -> bool {
        self.groups.iter().any(|group| group.seq <= page)
    }

    /// Writes where no correct peer would.
    #[cfg(all(test, feature = "nixl"))]
    pub(crate) fn stray(
        &mut self,
        source: &Source,
        bytes: usize,
        to: u64,
    ) -> Result<Box<dyn RemoteWrite>, RemoteError> {
        self.remote.add(source, 0, bytes, to)?;
        self.remote.begin()
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
