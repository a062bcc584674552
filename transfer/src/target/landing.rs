//! A page's payload, from the socket or the ring into the page.
//!
//! The bytes of a page whose lease ends meanwhile are still taken off the wire, and dropped: the
//! connection carries other leases' pages too.
//!
//! Inside a device's memory copies are begun for as many pages at once as have come, up to a part of the ring,
//! since asking for a copy and hearing of its end take longer than the copy. A page is answered only once its
//! copy has ended, and the next ones are begun meanwhile. Nothing waits for the peer, and nothing is answered, as
//! long as a page is not settled.

use std::io;
use std::time::Instant;

use super::end::End;
use super::receiver::Receiver;
use crate::config::Wire;
use crate::error::Refusal;
use crate::frame::Frame;
use crate::lease::{LandingPage, LeaseOver};
use crate::ring::RingReader;
use crate::stats::{add, add_time, sub};

/// Bytes dropped at once.
const SCRATCH: usize = 64 << 10;

/// A page of which everything is in the ring or copied.
pub(super) struct Landing {
    page: LandingPage,
    seq: u64,
    bytes: u64,
    /// Bytes of the ring that are read for it until it is settled.
    reading: usize,
    began: Instant,
}

impl Receiver<'_> {
    /// Fills `page`, the `seq`th thing that was asked for, and answers once it has landed.
    pub(super) fn land(
        &mut self,
        page: LandingPage,
        seq: u64,
        lease: u64,
        bytes: u64,
        checksum: Option<u64>,
    ) -> Result<(), End> {
        let counters = self.shared.counters.wire(self.wire);
        let began = Instant::now();
        let mut page = if checksum.is_some() {
            page.with_checksum()
        } else {
            page
        };
        add(&counters.in_flight, 1);
        let arrived = self.fill(Some(&mut page), bytes as usize);
        sub(&counters.in_flight, 1);
        match arrived? {
            Ok(reading) if reading > 0 => {
                self.landing.push_back(Landing {
                    page,
                    seq,
                    bytes,
                    reading,
                    began,
                });
                self.unbegun += 1;
                if self.unbegun * bytes as usize >= self.part_of_ring() {
                    // What was begun before is over by now, or soon.
                    let latest = self.unbegun;
                    self.begin_copies();
                    self.settle(latest)?;
                }
                self.give_back()
            }
            Ok(_) => {
                let answer = page.landed(checksum);
                if answer.is_ok() {
                    self.count(bytes, began);
                }
                self.answer(seq, answer)
            }
            Err(LeaseOver) => self.answer(seq, Err(Refusal::LeaseEnded { lease })),
        }
    }

    /// Answers pages once their copies have ended, the oldest first, until `most` are left.
    pub(super) fn settle(&mut self, most: usize) -> Result<(), End> {
        if self.landing.len() > most {
            self.begin_copies();
        }
        while self.landing.len() > most
            && let Some(landing) = self.landing.pop_front()
        {
            let answer = landing.page.landed(None);
            self.reading -= landing.reading;
            if answer.is_ok() {
                self.count(landing.bytes, landing.began);
            }
            self.reply(landing.seq, answer)?;
        }
        Ok(())
    }

    /// Begins the copies of pages that have come since the last time.
    fn begin_copies(&mut self) {
        let begun = self.landing.len() - self.unbegun;
        let pages = self.landing.range_mut(begun..);
        LandingPage::begin_copies(pages.map(|landing| &mut landing.page));
        self.unbegun = 0;
    }

    fn count(&self, bytes: u64, began: Instant) {
        let counters = self.shared.counters.wire(self.wire);
        add(&counters.pages, 1);
        add(&counters.bytes, bytes);
        add_time(&counters.wire_nanos, began.elapsed());
    }

    /// Takes a page's payload off the wire and drops it.
    pub(super) fn discard(&mut self, bytes: u64) -> Result<(), End> {
        // What such a write is as long as was not checked against anything yet.
        let page_bytes = self.shared.layout.page_bytes();
        if bytes != page_bytes as u64 {
            return Err(End::DataOverrun {
                bytes: bytes.min(u32::MAX.into()) as u32,
                limit: page_bytes,
            });
        }
        let _ = self.fill(None, page_bytes)?;
        Ok(())
    }

    /// Returns how many bytes of the ring are still being read for the page.
    fn fill(
        &mut self,
        page: Option<&mut LandingPage>,
        bytes: usize,
    ) -> Result<Result<usize, LeaseOver>, End> {
        let over = page.is_none();
        let mut sink = Sink { page, over };
        let reading = match self.wire {
            Wire::Tcp => self.fill_from_socket(&mut sink, bytes).map(|()| 0)?,
            Wire::Nixl | Wire::Shm => self.fill_from_ring(&mut sink, bytes)?,
        };
        Ok(match sink.over {
            true => Err(LeaseOver),
            false => Ok(reading),
        })
    }

    fn fill_from_socket(&mut self, sink: &mut Sink<'_>, bytes: usize) -> Result<(), End> {
        let mut left = bytes;
        let early = self.inbox.payload(left);
        left -= early.len();
        sink.copy(early.as_ptr(), early.len());
        let mut scratch = Vec::new();
        while left > 0 {
            let socket = self.socket;
            let received = sink.offer(left, |to, room| {
                // SAFETY: `offer` gives a place for `room` bytes. The call does not wait.
                unsafe { socket.recv_raw(to, room) }
            });
            let received = received.unwrap_or_else(|LeaseOver| {
                scratch.resize(SCRATCH.min(left), 0);
                socket.recv(&mut scratch[..SCRATCH.min(left)])
            });
            match received {
                Ok(0) => return Err(End::Lost(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => left -= count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !self.await_bytes(self.shared.config.stall)? {
                        return Err(End::Stalled);
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn fill_from_ring(&mut self, sink: &mut Sink<'_>, bytes: usize) -> Result<usize, End> {
        let (mut left, mut reading) = (bytes, 0);
        while left > 0 {
            let frame = match self.next_frame(self.shared.config.stall, End::Stalled) {
                Err(End::Closed) => return Err(End::Lost(io::ErrorKind::UnexpectedEof.into())),
                other => other?,
            };
            let Frame::Data { bytes } = frame else {
                return Err(End::OutOfTurn(frame.name()));
            };
            let ring = self
                .ring
                .as_mut()
                .expect("a connection that is not over TCP has a ring once welcomed");
            // The peer may use what it has been given credit for: the rest of the ring.
            let limit = left.min(ring.bytes() - self.owed);
            let count = bytes as usize;
            if count == 0 || count > limit {
                return Err(End::DataOverrun { bytes, limit });
            }
            let on_device = ring.is_on_device();
            ring.take(count, |piece, length| match on_device {
                // SAFETY: a piece of a ring in memory of the region's device, which is given back only after
                // the copies have ended. Its peer may change it meanwhile: then it spoils its own page.
                true => unsafe { sink.plan_on_device(piece, length) },
                false => sink.copy(piece, length),
            });
            left -= count;
            if on_device && left == 0 && !sink.over {
                reading = count;
                self.reading += count;
            } else {
                // The ring is given back in order: what came before has to be read by now, too.
                self.settle(0)?;
                sink.end_copies();
            }
            self.owed += count;
            self.give_back()?;
        }
        Ok(reading)
    }

    /// Gives the peer back what has been taken from the ring: often enough for it to go on filling while this
    /// side empties.
    fn give_back(&mut self) -> Result<(), End> {
        if self.owed - self.reading >= self.part_of_ring() {
            self.flush()?;
        }
        Ok(())
    }

    fn part_of_ring(&self) -> usize {
        self.ring.as_ref().map_or(0, RingReader::bytes) / 4
    }
}

/// Where payload goes: into the page until its lease ends, nowhere from then on.
struct Sink<'a> {
    page: Option<&'a mut LandingPage>,
    over: bool,
}

impl Sink<'_> {
    fn offer(
        &mut self,
        limit: usize,
        copy: impl FnOnce(*mut u8, usize) -> io::Result<usize>,
    ) -> Result<io::Result<usize>, LeaseOver> {
        let Some(page) = self.page.as_mut().filter(|_| !self.over) else {
            return Err(LeaseOver);
        };
        page.fill(limit, copy)
            .inspect_err(|LeaseOver| self.over = true)
    }

    /// Copies all `count` bytes (of the inbox or the ring), slice by slice.
    fn copy(&mut self, from: *const u8, count: usize) {
        let mut done = 0;
        while done < count {
            let copied = self.offer(count - done, |to, room| {
                let length = room.min(count - done);
                // SAFETY: `from` is valid for `count` bytes (an inbox slice or a piece of the ring,
                // whose content the peer may change meanwhile: then it spoils its own page), and
                // `to` for `room`.
                unsafe { std::ptr::copy_nonoverlapping(from.add(done), to, length) };
                Ok(length)
            });
            match copied {
                Ok(Ok(length)) => done += length,
                Ok(Err(_)) | Err(LeaseOver) => return,
            }
        }
    }

    /// Plans to copy `count` bytes of the memory of the page's device.
    ///
    /// # Safety
    /// The region is a device's, and `from` is valid there for reads of `count` bytes until the copies have
    /// ended, or are never begun.
    unsafe fn plan_on_device(&mut self, from: *const u8, count: usize) {
        if let Some(page) = self.page.as_mut().filter(|_| !self.over) {
            // SAFETY: the caller's bytes.
            let planned = unsafe { page.plan_on_device(count, from) };
            debug_assert_eq!(
                planned, count,
                "no more is taken than the page has room for"
            );
        }
    }

    /// Copies what was planned on the device.
    fn end_copies(&mut self) {
        if let Some(page) = &mut self.page {
            LandingPage::begin_copies(std::iter::once(&mut **page));
            page.end_copies();
        }
    }
}
