//! One connection with one life of a rank.

mod inbox;
mod incoming;
mod reader;
#[cfg(test)]
mod tests;

use std::io::{self, IoSlice};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use millrace_engine::exchange::Work;
use millrace_experts::{RankId, group::Start};
use parking_lot::Mutex;

pub(crate) use inbox::{Frame, Taken};
pub(crate) use incoming::Incoming;
pub(crate) use reader::read_frames;

use crate::LinkError;
use crate::socket::{self, WRITABLE};
use crate::stats::Counters;
use crate::wire::{HEADER, Header, Key, Kind};
use inbox::Inbox;

/// How soon a full socket's writer notices that the link was given up.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

pub(crate) struct Link {
    pub(crate) peer: RankId,
    pub(crate) counters: Arc<Counters>,
    /// Written to by whoever has `outgoing`; read by the reader thread alone.
    stream: TcpStream,
    outgoing: Mutex<Outgoing>,
    inbox: Inbox,
    broken: AtomicBool,
    /// Bytes that came, also of frames that are not complete yet.
    heard: Arc<AtomicU64>,
    /// The keeper's: `heard` when it last looked.
    heard_before: AtomicU64,
    /// The keeper's: for how many microseconds nothing came.
    quiet: AtomicU64,
}

struct Outgoing {
    /// The end of a heartbeat that did not fit: it must leave before anything else does.
    tail: Vec<u8>,
}

impl Link {
    pub(crate) fn new(
        peer: RankId,
        incoming: &Incoming,
        counters: Arc<Counters>,
    ) -> io::Result<Link> {
        Ok(Link {
            peer,
            counters,
            stream: incoming.stream().try_clone()?,
            outgoing: Mutex::new(Outgoing {
                tail: Vec::with_capacity(HEADER),
            }),
            inbox: Inbox::new(),
            broken: AtomicBool::new(false),
            heard: incoming.heard(),
            heard_before: AtomicU64::new(0),
            quiet: AtomicU64::new(0),
        })
    }

    pub(crate) fn send_start(&self, start: &Start) -> Result<(), LinkError> {
        self.send(&Header::start(start), &[], &[])
    }

    pub(crate) fn send(
        &self,
        header: &Header,
        work: &[Work],
        values: &[f32],
    ) -> Result<(), LinkError> {
        let parts = [bytemuck::cast_slice(work), bytemuck::cast_slice(values)];
        self.send_parts(header, parts)
    }

    pub(crate) fn send_bytes(&self, header: &Header, bytes: &[u8]) -> Result<(), LinkError> {
        self.send_parts(header, [bytes, &[]])
    }

    /// Sends a frame. Waits only for room in the socket, which the peer's reader makes whatever its
    /// engine does. What was begun is finished, or the link is lost: half a frame would make
    /// nonsense of all that follows.
    fn send_parts(&self, header: &Header, body: [&[u8]; 2]) -> Result<(), LinkError> {
        let mut outgoing = self.outgoing.lock();
        let tail = &mut outgoing.tail;
        let header = header.encode();
        let mut parts = [tail.as_slice(), &header, body[0], body[1]].map(IoSlice::new);
        let mut left = parts.as_mut_slice();
        // Drops leading empty parts, so that `left` is empty exactly when all was sent.
        IoSlice::advance_slices(&mut left, 0);
        while !left.is_empty() {
            match socket::send_now(&self.stream, left) {
                Ok(count) => IoSlice::advance_slices(&mut left, count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.is_broken() {
                        return Err(LinkError::Closed);
                    }
                    socket::wait(self.stream.as_raw_fd(), WRITABLE, LOOK_AGAIN);
                }
                Err(error) => return Err(LinkError::Io(error.kind())),
            }
        }
        tail.clear();
        self.counters.sent(HEADER + body[0].len() + body[1].len());
        Ok(())
    }

    /// Says that this process lives, without ever waiting: a frame on its way, or a full socket, says
    /// as much.
    pub(crate) fn beat(&self) -> Result<(), LinkError> {
        let Some(mut outgoing) = self.outgoing.try_lock() else {
            return Ok(());
        };
        let tail = &mut outgoing.tail;
        if tail.is_empty() {
            tail.extend(Header::bare(Kind::Heartbeat).encode());
        }
        match socket::send_now(&self.stream, &[IoSlice::new(tail)]) {
            Ok(count) => {
                tail.drain(..count);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // Nothing of it left, so nothing of it must.
                if tail.len() == HEADER {
                    tail.clear();
                }
                Ok(())
            }
            Err(error) => Err(LinkError::Io(error.kind())),
        }
    }

    /// For how long nothing has come, as the keeper calls this every `elapsed`.
    pub(crate) fn silence(&self, elapsed: Duration) -> Duration {
        let heard = self.heard.load(Relaxed);
        let quiet = if self.heard_before.swap(heard, Relaxed) == heard {
            self.quiet.load(Relaxed) + elapsed.as_micros() as u64
        } else {
            0
        };
        self.quiet.store(quiet, Relaxed);
        Duration::from_micros(quiet)
    }

    /// Waits for the frame of `key`. The time goes to the peer's account.
    pub(crate) fn take(&self, key: Key, is_over: impl Fn() -> bool) -> Taken {
        let (taken, waited) = self.inbox.take(key, is_over);
        self.counters.waited(waited);
        taken
    }

    pub(crate) fn recycle(&self, frame: Frame) {
        self.inbox.recycle(frame);
    }

    pub(crate) fn take_starts(&self, out: &mut Vec<(RankId, Start)>) {
        self.inbox.take_starts(|start| out.push((self.peer, start)));
    }

    /// Makes whoever waits in [`take`](Self::take) look whether its step is over.
    pub(crate) fn look(&self) {
        self.inbox.look();
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Relaxed)
    }

    /// True for the one that breaks it.
    pub(crate) fn mark_broken(&self) -> bool {
        !self.broken.swap(true, Relaxed)
    }

    /// Ends the connection, and with it its reader and all waiting. What has arrived is forgotten.
    pub(crate) fn close(&self) {
        self.inbox.close();
        // Fails only where the connection has ended already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}
