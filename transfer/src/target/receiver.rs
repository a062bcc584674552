//! One connection's thread at the target: frames in, pages filled, answers out.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Shared;
use super::end::End;
use super::handshake::{self, Asked};
use super::landing::Landing;
use super::rings::{Guest, NoRing};
use crate::config::Wire;
use crate::deadline::within;
use crate::error::Refusal;
use crate::frame::{Frame, MAX_DESCRIPTION};
use crate::inbox::Inbox;
use crate::memory::MemoryKind;
use crate::nixl::{Agent, NixlError};
use crate::passing::send_with_fd;
use crate::ring::RingReader;
use crate::socket::{READABLE, Socket};
use crate::stats::{FailureKind, add, add_time, sub};

/// Serves one connection until it ends.
pub(super) fn serve(shared: &Arc<Shared>, socket: &Socket, wire: Wire) {
    let mut receiver = Receiver::new(shared, socket, wire);
    // A panic can only come from a lease owner's callback; the peer and the acceptor must not be
    // left with a connection that nobody serves.
    let end = catch_unwind(AssertUnwindSafe(|| receiver.run())).unwrap_or(Err(End::Panicked));
    let end = match end {
        Err(end) => end,
        Ok(never) => match never {},
    };
    if let Some(kind) = end.failure() {
        shared.counters.failed(kind);
        let cause = std::error::Error::source(&end).map(ToString::to_string);
        let wire = receiver.wire.as_str();
        tracing::warn!(wire, %end, cause, "transfer connection ended");
    } else {
        tracing::debug!(wire = receiver.wire.as_str(), %end, "transfer connection ended");
    }
    receiver.part(&end);
    drop(receiver);
    // The acceptor still holds the socket: end it now, not when the thread is collected.
    socket.shutdown();
}

/// How long, and for how many bytes, a peer that was refused is listened to after that, so that it
/// reads the refusal before it meets a closed connection.
const PARTING_PATIENCE: Duration = Duration::from_secs(1);
const PARTING_BYTES: usize = 64 << 20;

/// How long the next page of a device is waited for without sleeping: waking up takes longer than the page.
const SPIN: Duration = Duration::from_micros(200);

pub(super) struct Receiver<'a> {
    pub shared: &'a Shared,
    pub socket: &'a Socket,
    pub wire: Wire,
    pub inbox: Inbox,
    /// By which a peer writes the ring; goes before it.
    agent: Option<Agent>,
    /// Present once a peer has been welcomed that is to write into one.
    pub ring: Option<RingReader>,
    /// Whose device writes the ring, where one does.
    guest: Option<Guest>,
    /// Whether it counts as open.
    counted: bool,
    /// Ring bytes taken and not yet given back.
    pub owed: usize,
    /// Those of them that copies on the device still read.
    pub reading: usize,
    /// Pages that are being copied on the device, in order of their numbers; go before the ring.
    pub landing: VecDeque<Landing>,
    /// How many of them, the last ones, have no copies yet.
    pub unbegun: usize,
    /// Answers not yet sent: they go out before the next wait.
    pub replies: Vec<u8>,
    /// Leases that this connection has begun to write and has not announced.
    writing: HashSet<u64>,
}

pub(super) enum Never {}

impl<'a> Receiver<'a> {
    fn new(shared: &'a Shared, socket: &'a Socket, wire: Wire) -> Self {
        Receiver {
            shared,
            socket,
            wire,
            inbox: Inbox::new(),
            agent: None,
            ring: None,
            guest: None,
            counted: false,
            owed: 0,
            reading: 0,
            landing: VecDeque::new(),
            unbegun: 0,
            replies: Vec::new(),
            writing: HashSet::new(),
        }
    }

    fn run(&mut self) -> Result<Never, End> {
        let first = self.next_frame(self.shared.config.stall, End::Stalled);
        let asked = handshake::check(self.shared, first)?;
        if asked.nixl {
            self.wire = Wire::Nixl;
        }
        let counters = self.shared.counters.wire(self.wire);
        add(&counters.connections, 1);
        add(&counters.connections_opened, 1);
        self.counted = true;
        self.welcome(&asked)?;
        loop {
            let frame = self.next_frame(self.shared.config.idle, End::Idle)?;
            self.serve_frame(frame)?;
        }
    }

    fn welcome(&mut self, asked: &Asked) -> Result<(), End> {
        let config = &self.shared.config;
        let mut fd = None;
        let (mut ring_address, mut description) = (0, Vec::new());
        match self.wire {
            Wire::Tcp => {}
            Wire::Shm => {
                if !(asked.device && self.open_to_device(&mut description)) {
                    let (ring, shared) = RingReader::create(config.ring_bytes)?;
                    self.ring = Some(ring);
                    fd = Some(shared);
                }
            }
            Wire::Nixl => {
                description = self.open_to_nixl()?;
                ring_address = self.ring.as_ref().map_or(0, |ring| ring.base() as u64);
            }
        }
        let mut bytes = Vec::new();
        Frame::Welcome {
            ring_bytes: self.ring.as_ref().map_or(0, RingReader::bytes) as u64,
            checksums: config.checksums,
            idle_millis: u64::try_from(config.idle.as_millis()).unwrap_or(u64::MAX),
            ring_address,
            description,
        }
        .encode(&mut bytes);
        let let_go = self.guest.as_ref().map(|guest| guest.let_go.as_fd());
        match fd.as_ref().map(AsFd::as_fd).or(let_go) {
            None => self.socket.send_all(&bytes, config.stall)?,
            Some(fd) => send_with_fd(self.socket, &bytes, fd)?,
        }
        Ok(())
    }

    /// Makes a ring that the peer's device can write, and its handle; false if pages have to go by way of the
    /// host.
    fn open_to_device(&mut self, handle: &mut Vec<u8>) -> bool {
        match self.make_device_ring() {
            Ok((ring, guest, description)) => {
                (self.ring, self.guest, *handle) = (Some(ring), Some(guest), description);
                true
            }
            Err(why) => {
                tracing::warn!(%why, "a peer's pages come by way of the host");
                false
            }
        }
    }

    fn make_device_ring(&self) -> Result<(RingReader, Guest, Vec<u8>), NoRing> {
        let config = &self.shared.config;
        let Some(access) = self.shared.table.region().access() else {
            return Err(NoRing::OnHost);
        };
        if config.checksums {
            return Err(NoRing::Checksums);
        }
        let guest = Guest::of(self.socket)?;
        let bytes = config.device_ring_bytes;
        let mut handle = Vec::new();
        let ring = self.shared.rings.make(|| {
            let (memory, made) = access.make_ring(bytes)?;
            handle = made;
            Ok(RingReader::on_device(memory, bytes))
        })?;
        Ok((ring, guest, handle))
    }

    /// Makes a ring that the peer can write by NIXL; returns what the peer needs to know for that.
    fn open_to_nixl(&mut self) -> Result<Vec<u8>, End> {
        let Some(config) = &self.shared.config.nixl else {
            return Err(End::NoNixl("this target does not offer it".into()));
        };
        let unavailable = |error: NixlError| End::NoNixl(error.to_string());
        let bytes = config.ring_bytes(self.shared.layout.page_bytes());
        let ring = RingReader::registered(bytes).map_err(|error| {
            End::NoNixl(format!("no memory for a ring of {bytes} bytes: {error}"))
        })?;
        let spare = self.shared.spare.lock().take();
        let agent = spare
            .map_or_else(|| Agent::new(config), Ok)
            .map_err(unavailable)?;
        // SAFETY: the ring outlives the agent: here by order of declaration, later by `drop`.
        unsafe { agent.register(ring.base(), ring.bytes(), MemoryKind::Host) }
            .map_err(unavailable)?;
        let description = agent.metadata().map_err(unavailable)?;
        if description.len() > MAX_DESCRIPTION {
            let length = description.len();
            return Err(End::NoNixl(format!("its description has {length} bytes")));
        }
        (self.agent, self.ring) = (Some(agent), Some(ring));
        Ok(description)
    }

    fn serve_frame(&mut self, frame: Frame) -> Result<(), End> {
        match frame {
            Frame::Write {
                seq,
                lease,
                key,
                index,
                bytes,
                checksum,
            } => {
                let table = &self.shared.table;
                match table.begin(lease, key, index, bytes) {
                    Ok(page) => {
                        self.writing.insert(lease);
                        self.land(page, seq, lease, bytes, checksum)
                    }
                    // Its bytes are on their way all the same.
                    Err(refusal) if !refusal.is_violation() => {
                        self.discard(bytes)?;
                        self.answer(seq, Err(refusal))
                    }
                    Err(refusal) => self.answer(seq, Err(refusal)),
                }
            }
            Frame::Finish {
                seq,
                lease,
                key,
                message,
            } => {
                let began = Instant::now();
                self.settle(0)?;
                let answer = self.shared.table.announce(lease, key, message);
                self.writing.remove(&lease);
                if answer.is_ok() {
                    let counters = self.shared.counters.wire(self.wire);
                    add(&counters.notifications, 1);
                    add_time(&counters.notify_nanos, began.elapsed());
                }
                self.answer(seq, answer)
            }
            Frame::Abandon { lease, key } => {
                self.writing.remove(&lease);
                match self.shared.table.abandon(lease, key) {
                    Ok(()) => self.shared.counters.failed(FailureKind::Abandoned),
                    Err(refusal) if !refusal.is_violation() => {}
                    // It wants no answer, so there is no number to answer with.
                    Err(refusal) => {
                        return Err(End::Violation {
                            seq: u64::MAX,
                            refusal,
                        });
                    }
                }
                Ok(())
            }
            Frame::Ping { seq } => self.answer(seq, Ok(())),
            other => Err(End::OutOfTurn(other.name())),
        }
    }

    /// Answers, after everything that was asked for before.
    pub fn answer(&mut self, seq: u64, answer: Result<(), Refusal>) -> Result<(), End> {
        self.settle(0)?;
        self.reply(seq, answer)
    }

    pub fn reply(&mut self, seq: u64, answer: Result<(), Refusal>) -> Result<(), End> {
        match answer {
            Ok(()) => Frame::Ack { seq }.encode(&mut self.replies),
            Err(refusal) if refusal.is_violation() => return Err(End::Violation { seq, refusal }),
            Err(refusal) => {
                self.shared.counters.failed(refusal.kind());
                nack(seq, &refusal).encode(&mut self.replies);
            }
        }
        Ok(())
    }

    /// The next frame. While nothing of it has come, waits `patience` and then ends as `otherwise`;
    /// after its first byte the peer must not stall.
    pub fn next_frame(&mut self, patience: Duration, otherwise: End) -> Result<Frame, End> {
        loop {
            if let Some(frame) = self.inbox.frame()? {
                return Ok(frame);
            }
            let stall = self.shared.config.stall;
            let patience = if self.inbox.is_empty() {
                patience
            } else {
                stall
            };
            match self.inbox.fill(self.socket) {
                Ok(0) => return Err(self.closed()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !self.await_bytes(patience)? {
                        return Err(if self.inbox.is_empty() {
                            otherwise
                        } else {
                            End::Stalled
                        });
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The peer's end: ordinary only between frames.
    fn closed(&self) -> End {
        if self.inbox.is_empty() {
            End::Closed
        } else {
            End::Lost(io::ErrorKind::UnexpectedEof.into())
        }
    }

    /// Sends what is owed, then waits for more to read.
    pub fn await_bytes(&mut self, patience: Duration) -> Result<bool, End> {
        self.settle(0)?;
        self.flush()?;
        if self.guest.is_some() && !self.writing.is_empty() && self.socket.spin(READABLE, SPIN)? {
            return Ok(true);
        }
        Ok(self.socket.wait(READABLE, within(patience))?)
    }

    pub fn flush(&mut self) -> Result<(), End> {
        let free = self.owed - self.reading;
        if free > 0 {
            let bytes = free as u64;
            Frame::Credit { bytes }.encode(&mut self.replies);
            self.owed = self.reading;
        }
        let replies = std::mem::take(&mut self.replies);
        let sent = self.socket.send_all(&replies, self.shared.config.stall);
        self.replies = replies;
        self.replies.clear();
        Ok(sent?)
    }

    /// Tells the leases' owners, and the peer if it should hear why.
    fn part(&mut self, end: &End) {
        let _ = self.settle(0);
        for lease in self.writing.drain() {
            self.shared.table.writer_lost(lease);
        }
        let parting = match end {
            End::Violation { seq, refusal } => Some(nack(*seq, refusal)),
            end => handshake::refusal(end),
        };
        if let Some(frame) = parting {
            frame.encode(&mut self.replies);
            (self.owed, self.reading) = (0, 0);
            if self.flush().is_ok() {
                self.socket.shutdown_send();
                self.listen_out();
            }
        }
    }

    /// Reads and drops what the peer still sends, for a while: closing a socket with unread bytes
    /// may cost the peer the refusal that it has not read yet.
    fn listen_out(&mut self) {
        let deadline = within(PARTING_PATIENCE);
        let mut scratch = vec![0; 64 << 10];
        let mut budget = PARTING_BYTES;
        while budget > 0 && matches!(self.socket.wait(READABLE, deadline), Ok(true)) {
            match self.socket.recv(&mut scratch) {
                Ok(0) => return,
                Ok(count) => budget = budget.saturating_sub(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    }
}

impl Drop for Receiver<'_> {
    fn drop(&mut self) {
        // What reads the ring, and the way to it, which ends every write that may still come; then the ring.
        self.landing.clear();
        self.agent = None;
        let ring = self.ring.take();
        if let (Some(ring), Some(guest)) = (ring, self.guest.take()) {
            self.shared.rings.retire(ring, guest);
        }
        if self.counted {
            sub(&self.shared.counters.wire(self.wire).connections, 1);
        }
    }
}

fn nack(seq: u64, refusal: &Refusal) -> Frame {
    Frame::Nack {
        seq,
        code: refusal.kind().code(),
        detail: refusal.to_string(),
    }
}
