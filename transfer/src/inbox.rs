//! Bytes that have arrived on a socket and are not used yet, as frames or as payload.

use std::io;

use crate::error::DecodeError;
use crate::frame::{Frame, HEADER, MAX_BODY};
use crate::socket::Socket;

/// Bytes asked of the socket at once while frames are expected: many frames fit, and little of a
/// page's payload is copied through here.
const GULP: usize = 4 << 10;

pub(crate) struct Inbox {
    buffer: Vec<u8>,
    start: usize,
}

impl Inbox {
    pub(crate) fn new() -> Inbox {
        Inbox {
            buffer: Vec::with_capacity(2 * GULP),
            start: 0,
        }
    }

    fn unread(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.unread().is_empty()
    }

    /// The next frame, if all of it is here.
    pub(crate) fn frame(&mut self) -> Result<Option<Frame>, DecodeError> {
        let decoded = Frame::decode(self.unread())?;
        Ok(decoded.map(|(frame, length)| {
            self.start += length;
            frame
        }))
    }

    /// Up to `limit` bytes of payload that came along with frames.
    pub(crate) fn payload(&mut self, limit: usize) -> &[u8] {
        let start = self.start;
        let end = self.buffer.len().min(start + limit);
        self.start = end;
        &self.buffer[start..end]
    }

    /// Takes what has arrived. 0 is the peer's end, `WouldBlock` is nothing.
    pub(crate) fn fill(&mut self, socket: &Socket) -> io::Result<usize> {
        self.gulp(|room| socket.recv(room))
    }

    /// Runs `recv` on fresh room at the buffer's end.
    pub(crate) fn gulp(
        &mut self,
        recv: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        self.buffer.drain(..self.start);
        self.start = 0;
        let have = self.buffer.len();
        debug_assert!(
            have < HEADER + MAX_BODY,
            "a whole frame is waiting to be read"
        );
        self.buffer.resize(have + GULP, 0);
        let result = recv(&mut self.buffer[have..]);
        self.buffer.truncate(have + *result.as_ref().unwrap_or(&0));
        result
    }
}
