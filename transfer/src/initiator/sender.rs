//! One connection's thread at the initiator: jobs in, frames and payload out, answers in.
//!
//! It never blocks but in one `poll`, and never sends anything between a page's `Write` frame and
//! the end of that page, which is what lets payload follow frames without being framed itself.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use xxhash_rust::xxh3::xxh3_64;

use super::connect::{Connection, Way};
use super::delivery::Delivery;
use super::peer::{Job, Peer};
use crate::config::InitiatorConfig;
use crate::deadline::after;
use crate::error::WriteError;
use crate::frame::Frame;
use crate::memory::Source;
use crate::remote::RemoteError;
use crate::socket::{READABLE, WRITABLE, poll_fd, wait, wait_briefly};
use crate::stats::{Counters, FailureKind, add, sub};

/// Most bytes put into the ring, or offered to the socket, at once: small enough for both sides to
/// copy at the same time, large enough for signalling not to matter.
const CHUNK: usize = 256 << 10;

pub(super) struct Sender {
    pub(super) connection: Connection,
    pub(super) peer: Arc<Peer>,
    pub(super) counters: Arc<Counters>,
    stall: Duration,
    /// Frames to send, from `sent` on.
    out: Vec<u8>,
    sent: usize,
    /// Ring bytes that the frames in `out` tell of.
    untold: usize,
    /// Bytes sent of the page of the last entry in `unanswered`, while it is not complete.
    pub(super) page: Option<usize>,
    /// What has been sent (or, the last, begun) and not answered, in order.
    pub(super) unanswered: VecDeque<Unanswered>,
    next_seq: u64,
    /// When bytes last moved in either direction.
    pub(super) moved: Instant,
}

pub(super) struct Unanswered {
    pub(super) seq: u64,
    pub(super) began: Instant,
    pub(super) what: What,
}

pub(super) enum What {
    Page {
        delivery: Arc<Delivery>,
        source: Source,
        queued: Duration,
    },
    Finish {
        delivery: Arc<Delivery>,
    },
    Ping,
}

impl Sender {
    /// The connection counts as open while the sender lives.
    pub fn new(
        connection: Connection,
        peer: Arc<Peer>,
        config: &InitiatorConfig,
        counters: Arc<Counters>,
    ) -> Sender {
        let wire = counters.wire(connection.wire);
        add(&wire.connections, 1);
        add(&wire.connections_opened, 1);
        Sender {
            connection,
            peer,
            counters,
            stall: config.stall,
            out: Vec::new(),
            sent: 0,
            untold: 0,
            page: None,
            unanswered: VecDeque::new(),
            next_seq: 0,
            moved: Instant::now(),
        }
    }

    pub fn run(mut self) {
        // A panic can only come from what callers gave us (a source, a callback). It must not leave
        // other writers waiting for a thread that is gone.
        let turns = AssertUnwindSafe(|| self.turns());
        let error = catch_unwind(turns)
            .unwrap_or_else(|_| WriteError::Lost("its thread has panicked".into()));
        if let Some(kind) = error.connection_failure() {
            self.counters.failed(kind);
            tracing::warn!(wire = self.connection.wire.as_str(), %error, "transfer connection ended");
        }
        self.abandon_writes();
        self.fail_all(&error);
    }

    /// Ends remote writes, so that pages can be let go under them.
    pub(super) fn abandon_writes(&mut self) {
        self.connection.way = Way::Socket;
    }

    /// Runs until there is a reason to end.
    fn turns(&mut self) -> WriteError {
        loop {
            let Err(error) = self.turn() else { continue };
            // A target that closes says why first, if it can.
            if matches!(error, WriteError::Lost(_)) {
                let _ = self.take_answers();
            }
            return error;
        }
    }

    fn turn(&mut self) -> Result<(), WriteError> {
        self.take_answers()?;
        self.settle()?;
        self.push()?;
        self.begin_rest()?;
        self.wait()
    }

    /// Takes note of remote writes that are done.
    fn settle(&mut self) -> Result<(), WriteError> {
        if let Way::Remote(ring) = &mut self.connection.way
            && ring.settle(&mut self.out).map_err(broken)?
        {
            self.moved = Instant::now();
        }
        Ok(())
    }

    /// Begins remote writes that were put off for more to be written at once.
    fn begin_rest(&mut self) -> Result<(), WriteError> {
        if let Way::Remote(ring) = &mut self.connection.way {
            ring.begin_rest(self.page.is_some()).map_err(broken)?;
        }
        Ok(())
    }

    /// Where to put a frame that comes after everything so far.
    fn frames(&mut self) -> &mut Vec<u8> {
        if let Way::Remote(ring) = &mut self.connection.way
            && let Some(frames) = ring.frames()
        {
            return frames;
        }
        &mut self.out
    }

    /// Sends what can be sent now.
    fn push(&mut self) -> Result<(), WriteError> {
        loop {
            // Over a socket, payload follows its frame. Over a ring it is there already, and
            // frames that tell of it go out together.
            let hold = matches!(self.connection.way, Way::Shared(_)) && self.untold < CHUNK;
            if !hold && self.has_frames() && !self.flush()? {
                return Ok(());
            }
            let moved = match self.page {
                Some(sent) => self.push_page(sent)?,
                None => match self.peer.next()? {
                    Some(job) => {
                        self.begin(job);
                        true
                    }
                    None => false,
                },
            };
            if moved {
                continue;
            }
            // Nothing to add: what was held back goes out.
            if !self.has_frames() || !self.flush()? {
                return Ok(());
            }
        }
    }

    fn has_frames(&self) -> bool {
        self.sent < self.out.len()
    }

    /// Sends frames, and takes in what has come meanwhile; false if the socket takes nothing.
    fn flush(&mut self) -> Result<bool, WriteError> {
        let more = self.page == Some(0) && matches!(self.connection.way, Way::Socket);
        let sent = self.connection.socket.send(&self.out[self.sent..], more);
        let Some(sent) = accepted(sent)? else {
            return Ok(false);
        };
        self.moved = Instant::now();
        self.sent += sent;
        if !self.has_frames() {
            self.out.clear();
            self.sent = 0;
            self.untold = 0;
        }
        self.take_answers()?;
        Ok(true)
    }

    /// Sends more of the page that is being sent; false if nothing of it can be sent now.
    fn push_page(&mut self, sent: usize) -> Result<bool, WriteError> {
        let left = page_length(&self.unanswered) - sent;
        let count = match &mut self.connection.way {
            Way::Socket => {
                let bytes = &page_bytes(&self.unanswered)[sent..][..left.min(4 * CHUNK)];
                let Some(count) = accepted(self.connection.socket.send(bytes, false))? else {
                    return Ok(false);
                };
                count
            }
            Way::Remote(ring) => {
                // As much as there is: few large writes are what cards and devices are fast at.
                let count = left.min(ring.bytes() / 4);
                if ring.room() < count {
                    return Ok(false);
                }
                let (seq, _, source) = page(&self.unanswered);
                ring.put(seq, source, sent, count).map_err(broken)?;
                count
            }
            Way::Shared(ring) => {
                let count = left.min(CHUNK.min(ring.bytes() / 4));
                if ring.room() < count {
                    return Ok(false);
                }
                ring.put(&page_bytes(&self.unanswered)[sent..][..count]);
                self.untold += count;
                Frame::Data {
                    bytes: count as u32,
                }
                .encode(&mut self.out);
                count
            }
        };
        self.moved = Instant::now();
        self.page = (count < left).then_some(sent + count);
        Ok(true)
    }

    /// Turns a job into frames.
    fn begin(&mut self, job: Job) {
        self.end_silence();
        match job {
            Job::Write {
                delivery,
                index,
                source,
                queued,
            } => {
                if let Some(error) = delivery.failure() {
                    return self.drop_page(&delivery, source, &error);
                }
                let (lease, key) = (delivery.lease, delivery.key);
                let queued = queued.elapsed();
                let source = match &self.connection.way {
                    Way::Remote(ring) if ring.reaches(&source) => source,
                    _ => source.on_host(),
                };
                let seq = self.expect(What::Page {
                    delivery,
                    source,
                    queued,
                });
                self.page = Some(0);
                let bytes = page_length(&self.unanswered) as u64;
                let checksums = self.connection.checksums;
                let checksum = checksums.then(|| xxh3_64(page_bytes(&self.unanswered)));
                Frame::Write {
                    seq,
                    lease,
                    key,
                    index,
                    bytes,
                    checksum,
                }
                .encode(self.frames());
            }
            Job::Finish { delivery, message } => {
                let (lease, key) = (delivery.lease, delivery.key);
                if delivery.failure().is_some() {
                    return Frame::Abandon { lease, key }.encode(self.frames());
                }
                let seq = self.expect(What::Finish { delivery });
                Frame::Finish {
                    seq,
                    lease,
                    key,
                    message,
                }
                .encode(self.frames());
            }
            Job::Abandon { delivery } => {
                Frame::Abandon {
                    lease: delivery.lease,
                    key: delivery.key,
                }
                .encode(self.frames());
                self.counters.failed(FailureKind::Abandoned);
            }
        }
    }

    fn expect(&mut self, what: What) -> u64 {
        let seq = self.next_seq;
        self.next_seq += 1;
        self.unanswered.push_back(Unanswered {
            seq,
            began: Instant::now(),
            what,
        });
        seq
    }

    /// Nothing was asked until now, so until now nobody has kept anybody waiting.
    fn end_silence(&mut self) {
        if self.unanswered.is_empty() {
            self.moved = Instant::now();
        }
    }

    /// Waits for an answer, for room to send, or for a job; sees to silence on either side.
    fn wait(&mut self) -> Result<(), WriteError> {
        let sending = self.has_frames();
        // A page over the ring waits for credit, which is an answer.
        let to_socket =
            sending || (self.page.is_some() && matches!(self.connection.way, Way::Socket));
        let pause = match &self.connection.way {
            Way::Remote(ring) => ring.pause(self.moved.elapsed(), !self.unanswered.is_empty()),
            _ => None,
        };
        let busy = sending || !self.unanswered.is_empty();
        let patience = match busy {
            true => self.stall,
            false if self.peer.has_writers() => self.connection.idle / 3,
            false => self.connection.idle / 2,
        };
        let mut fds = [
            poll_fd(
                self.connection.socket.raw(),
                READABLE | if to_socket { WRITABLE } else { 0 },
            ),
            poll_fd(self.peer.wake.raw(), READABLE),
        ];
        let deadline = after(self.moved, patience);
        let ready = match pause {
            Some(pause) => {
                wait_briefly(&mut fds, pause).map(|ready| ready || Instant::now() < deadline)
            }
            None => wait(&mut fds, Some(deadline)),
        };
        let ready = ready.map_err(|error| WriteError::Lost(error.to_string()))?;
        if fds[1].revents != 0 {
            self.peer.wake.clear();
            self.peer.check_open()?;
        }
        if ready {
            return Ok(());
        }
        if busy {
            return Err(WriteError::Stalled(self.stall));
        }
        if self.peer.close_unused() {
            return Err(WriteError::Closed);
        }
        self.end_silence();
        let seq = self.expect(What::Ping);
        Frame::Ping { seq }.encode(self.frames());
        Ok(())
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        let wire = self.counters.wire(self.connection.wire);
        sub(&wire.connections, 1);
    }
}

/// The page that is being sent, the last entry: its number, its length and its source.
fn page(unanswered: &VecDeque<Unanswered>) -> (u64, usize, &Source) {
    match unanswered.back() {
        Some(Unanswered {
            seq,
            what: What::Page {
                delivery, source, ..
            },
            ..
        }) => (*seq, delivery.page_bytes, source),
        _ => unreachable!("a page that is being sent is the last unanswered entry"),
    }
}

fn page_length(unanswered: &VecDeque<Unanswered>) -> usize {
    page(unanswered).1
}

/// As long as a page is, whatever its source says on second thoughts.
fn page_bytes(unanswered: &VecDeque<Unanswered>) -> &[u8] {
    let (_, length, source) = page(unanswered);
    &source.bytes()[..length]
}

fn broken(error: RemoteError) -> WriteError {
    WriteError::Lost(error.to_string())
}

/// How much the socket took; `None` if it is full.
fn accepted(sent: io::Result<usize>) -> Result<Option<usize>, WriteError> {
    match sent {
        Ok(count) => Ok(Some(count)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(WriteError::Lost(error.to_string())),
    }
}
