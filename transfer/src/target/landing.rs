//! A page's payload, from the socket or the ring into the page.
//!
//! The bytes of a page whose lease ends meanwhile are still taken off the wire, and dropped: the
//! connection carries other leases' pages too.

use std::io;
use std::time::Instant;

use super::end::End;
use super::receiver::Receiver;
use crate::config::Wire;
use crate::error::Refusal;
use crate::frame::Frame;
use crate::lease::{LandingPage, LeaseOver};
use crate::stats::{add, add_time, sub};

/// Bytes dropped at once.
const SCRATCH: usize = 64 << 10;

impl Receiver<'_> {
    /// Fills `page`. The inner error refuses the page, the outer one ends the connection.
    pub(super) fn land(
        &mut self,
        page: LandingPage,
        lease: u64,
        bytes: u64,
        checksum: Option<u64>,
    ) -> Result<Result<(), Refusal>, End> {
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
        let answer = match arrived? {
            Ok(()) => page.landed(checksum),
            Err(LeaseOver) => Err(Refusal::LeaseEnded { lease }),
        };
        if answer.is_ok() {
            add(&counters.pages, 1);
            add(&counters.bytes, bytes);
            add_time(&counters.wire_nanos, began.elapsed());
        }
        Ok(answer)
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

    fn fill(
        &mut self,
        page: Option<&mut LandingPage>,
        bytes: usize,
    ) -> Result<Result<(), LeaseOver>, End> {
        let over = page.is_none();
        let mut sink = Sink { page, over };
        match self.wire {
            Wire::Tcp => self.fill_from_socket(&mut sink, bytes)?,
            Wire::Nixl | Wire::Shm => self.fill_from_ring(&mut sink, bytes)?,
        }
        Ok(if sink.over { Err(LeaseOver) } else { Ok(()) })
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

    fn fill_from_ring(&mut self, sink: &mut Sink<'_>, bytes: usize) -> Result<(), End> {
        let mut left = bytes;
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
                // SAFETY: a piece of a ring in memory of the region's device, which its peer may change
                // meanwhile: then it spoils its own page.
                true => unsafe { sink.copy_on_device(piece, length) },
                false => sink.copy(piece, length),
            });
            left -= count;
            self.owed += count;
            // Often enough for the peer to go on filling while this side empties.
            if self.owed >= ring.bytes() / 4 {
                self.flush()?;
            }
        }
        Ok(())
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

    /// The same with `count` bytes of the memory of the page's device.
    ///
    /// # Safety
    /// The region is a device's, and `from` is valid there for reads of `count` bytes.
    unsafe fn copy_on_device(&mut self, from: *const u8, count: usize) {
        let mut done = 0;
        while let Some(page) = self.page.as_mut().filter(|_| !self.over && done < count) {
            // SAFETY: what is left of the caller's bytes.
            let copied = unsafe { page.fill_on_device(count - done, from.add(done)) };
            match copied {
                Ok(length) => done += length,
                Err(LeaseOver) => self.over = true,
            }
        }
    }
}
