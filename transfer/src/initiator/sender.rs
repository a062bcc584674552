//! One connection's thread at the initiator: jobs in, frames and payload out, answers in.
//!
//! It never blocks but in one `poll`, and never sends anything between a page's `Write` frame and
//! the end of that page, which is what lets payload follow frames without being framed itself.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use xxhash_rust::xxh3::xxh3_64;

use super::connect::Connection;
use super::delivery::Delivery;
use super::peer::{Job, Peer};
use crate::config::InitiatorConfig;
use crate::error::WriteError;
use crate::frame::Frame;
use crate::memory::Source;
use crate::socket::{READABLE, WRITABLE, poll_fd, wait};
use crate::stats::{Counters, FailureKind, add, add_time, sub};

/// Most bytes put into the ring, or offered to the socket, at once: small enough for both sides to
/// copy at the same time, large enough for signalling not to matter.
const CHUNK: usize = 256 << 10;

pub(super) struct Sender {
    connection: Connection,
    peer: Arc<Peer>,
    counters: Arc<Counters>,
    stall: Duration,
    idle: Duration,
    /// Frames to send, from `sent` on.
    out: Vec<u8>,
    sent: usize,
    /// Bytes sent of the page of the last entry in `unanswered`, while it is not complete.
    page: Option<usize>,
    /// What has been sent (or, the last, begun) and not answered, in order.
    unanswered: VecDeque<Unanswered>,
    next_seq: u64,
    /// When bytes last moved in either direction.
    moved: Instant,
}

struct Unanswered {
    seq: u64,
    began: Instant,
    what: What,
}

enum What {
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
    pub fn new(
        connection: Connection,
        peer: Arc<Peer>,
        config: &InitiatorConfig,
        counters: Arc<Counters>,
    ) -> Sender {
        Sender {
            connection,
            peer,
            counters,
            stall: config.stall,
            idle: config.idle,
            out: Vec::new(),
            sent: 0,
            page: None,
            unanswered: VecDeque::new(),
            next_seq: 0,
            moved: Instant::now(),
        }
    }

    pub fn run(mut self) {
        let wire = self.counters.clone();
        let wire = wire.wire(self.connection.wire);
        add(&wire.connections, 1);
        add(&wire.connections_opened, 1);
        let error = loop {
            if let Err(error) = self.turn() {
                break error;
            }
        };
        // A target that closes says why first, if it can.
        if matches!(error, WriteError::Lost(_)) {
            let _ = self.take_answers();
        }
        if let Some(kind) = error.connection_failure() {
            self.counters.failed(kind);
            tracing::warn!(wire = self.connection.wire.as_str(), %error, "transfer connection ended");
        }
        self.fail_all(&error);
        sub(&wire.connections, 1);
    }

    fn turn(&mut self) -> Result<(), WriteError> {
        self.take_answers()?;
        while self.push()? {
            self.take_answers()?;
        }
        self.wait()
    }

    /// Sends what can be sent now; false when nothing can.
    fn push(&mut self) -> Result<bool, WriteError> {
        if self.sent < self.out.len() {
            let sent = self
                .connection
                .socket
                .send(&self.out[self.sent..], self.page == Some(0));
            let Some(sent) = accepted(sent)? else {
                return Ok(false);
            };
            self.moved = Instant::now();
            self.sent += sent;
            if self.sent == self.out.len() {
                self.out.clear();
                self.sent = 0;
            }
            return Ok(true);
        }
        if let Some(sent) = self.page {
            return self.push_page(sent);
        }
        match self.peer.next()? {
            None => Ok(false),
            Some(job) => {
                self.begin(job);
                Ok(true)
            }
        }
    }

    fn push_page(&mut self, sent: usize) -> Result<bool, WriteError> {
        let Some(Unanswered {
            what: What::Page { source, .. },
            ..
        }) = self.unanswered.back()
        else {
            unreachable!("a page that is being sent is the last unanswered entry");
        };
        let bytes = &source.bytes()[sent..];
        let count = match &mut self.connection.ring {
            None => {
                let bytes = &bytes[..bytes.len().min(4 * CHUNK)];
                let Some(count) = accepted(self.connection.socket.send(bytes, false))? else {
                    return Ok(false);
                };
                count
            }
            Some(ring) => {
                let count = bytes.len().min(CHUNK.min(ring.bytes() / 4));
                if ring.room() < count {
                    return Ok(false);
                }
                ring.put(&bytes[..count]);
                Frame::Data {
                    bytes: count as u32,
                }
                .encode(&mut self.out);
                count
            }
        };
        self.moved = Instant::now();
        self.page = (count < bytes.len()).then_some(sent + count);
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
                if delivery.failure().is_some() {
                    delivery.page_dropped();
                    self.peer.page_done();
                    return;
                }
                let checksum = self.connection.checksums.then(|| xxh3_64(source.bytes()));
                let (lease, key, bytes) =
                    (delivery.lease, delivery.key, delivery.page_bytes as u64);
                let queued = queued.elapsed();
                let seq = self.expect(What::Page {
                    delivery,
                    source,
                    queued,
                });
                Frame::Write {
                    seq,
                    lease,
                    key,
                    index,
                    bytes,
                    checksum,
                }
                .encode(&mut self.out);
                self.page = Some(0);
            }
            Job::Finish { delivery, message } => {
                let (lease, key) = (delivery.lease, delivery.key);
                if delivery.failure().is_some() {
                    return Frame::Abandon { lease, key }.encode(&mut self.out);
                }
                let seq = self.expect(What::Finish { delivery });
                Frame::Finish {
                    seq,
                    lease,
                    key,
                    message,
                }
                .encode(&mut self.out);
            }
            Job::Abandon { delivery } => {
                Frame::Abandon {
                    lease: delivery.lease,
                    key: delivery.key,
                }
                .encode(&mut self.out);
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

    fn take_answers(&mut self) -> Result<(), WriteError> {
        loop {
            let malformed =
                |error: crate::error::DecodeError| WriteError::Protocol(error.to_string());
            while let Some(frame) = self.connection.inbox.frame().map_err(malformed)? {
                self.take_answer(frame)?;
            }
            match self.connection.inbox.fill(&self.connection.socket) {
                Ok(0) => return Err(WriteError::Lost("the target closed it".into())),
                Ok(_) => self.moved = Instant::now(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(WriteError::Lost(error.to_string())),
            }
        }
    }

    fn take_answer(&mut self, frame: Frame) -> Result<(), WriteError> {
        match frame {
            Frame::Credit { bytes } => {
                let ring = self.connection.ring.as_mut();
                if ring.is_some_and(|ring| ring.credit(bytes)) {
                    return Ok(());
                }
                Err(WriteError::Protocol(format!(
                    "credit for {bytes} bytes that it never got"
                )))
            }
            Frame::Ack { seq } => {
                let answered = self.answered(seq)?;
                self.acknowledged(answered);
                Ok(())
            }
            Frame::Nack { seq, code, detail } => {
                let kind = FailureKind::from_code(code)
                    .ok_or_else(|| WriteError::Protocol(format!("unknown refusal {code}")))?;
                self.counters.failed(kind);
                if kind == FailureKind::LeaseEnded {
                    let answered = self.answered(seq)?;
                    self.refused(answered, &WriteError::LeaseEnded);
                    return Ok(());
                }
                // The target closes after any other refusal, maybe before it has the whole page.
                self.page = None;
                let refused = WriteError::Refused { kind, detail };
                if let Ok(answered) = self.answered(seq) {
                    self.refused(answered, &refused);
                }
                Err(WriteError::Lost(format!("closed by the target: {refused}")))
            }
            other => Err(WriteError::Protocol(format!("a {} frame", other.name()))),
        }
    }

    /// The entry that an answer is for: the oldest, wholly sent.
    fn answered(&mut self, seq: u64) -> Result<Unanswered, WriteError> {
        let sent = self.unanswered.len() - usize::from(self.page.is_some());
        match self.unanswered.front() {
            Some(front) if front.seq == seq && sent > 0 => {
                Ok(self.unanswered.pop_front().expect("there is a front"))
            }
            _ => Err(WriteError::Protocol(format!(
                "answer {seq} to nothing that was asked"
            ))),
        }
    }

    fn acknowledged(&mut self, Unanswered { began, what, .. }: Unanswered) {
        let wire = self.counters.wire(self.connection.wire);
        match what {
            What::Page {
                delivery,
                source,
                queued,
            } => {
                drop(source);
                add(&wire.pages, 1);
                add(&wire.bytes, delivery.page_bytes as u64);
                add_time(&wire.queue_nanos, queued);
                add_time(&wire.wire_nanos, began.elapsed());
                delivery.page_written();
                self.peer.page_done();
            }
            What::Finish { delivery } => {
                add(&wire.notifications, 1);
                add_time(&wire.notify_nanos, began.elapsed());
                delivery.finished();
            }
            What::Ping => {}
        }
    }

    fn refused(&mut self, Unanswered { what, .. }: Unanswered, error: &WriteError) {
        match what {
            What::Page {
                delivery, source, ..
            } => {
                drop(source);
                delivery.page_dropped();
                self.peer.page_done();
                delivery.fail(error);
            }
            What::Finish { delivery } => delivery.fail(error),
            What::Ping => {}
        }
    }

    /// Waits for an answer, for room to send, or for a job; sees to silence on either side.
    fn wait(&mut self) -> Result<(), WriteError> {
        let sending = self.sent < self.out.len();
        // A page over the ring waits for credit, which is an answer.
        let to_socket = sending || (self.page.is_some() && self.connection.ring.is_none());
        let busy = sending || !self.unanswered.is_empty();
        let patience = match busy {
            true => self.stall,
            false if self.peer.has_writers() => self.idle / 3,
            false => self.idle / 2,
        };
        let mut fds = [
            poll_fd(
                self.connection.socket.raw(),
                READABLE | if to_socket { WRITABLE } else { 0 },
            ),
            poll_fd(self.peer.wake.raw(), READABLE),
        ];
        let ready = wait(&mut fds, Some(self.moved + patience))
            .map_err(|error| WriteError::Lost(error.to_string()))?;
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
        Frame::Ping { seq }.encode(&mut self.out);
        Ok(())
    }

    fn fail_all(&mut self, error: &WriteError) {
        let jobs = self.peer.close(error);
        while let Some(entry) = self.unanswered.pop_front() {
            self.refused(entry, error);
        }
        for job in jobs {
            match job {
                Job::Write {
                    delivery, source, ..
                } => {
                    drop(source);
                    delivery.page_dropped();
                    self.peer.page_done();
                    delivery.fail(error);
                }
                Job::Finish { delivery, .. } => delivery.fail(error),
                Job::Abandon { .. } => {}
            }
        }
    }
}

/// How much the socket took; `None` if it is full.
fn accepted(sent: io::Result<usize>) -> Result<Option<usize>, WriteError> {
    match sent {
        Ok(count) => Ok(Some(count)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(WriteError::Lost(error.to_string())),
    }
}
