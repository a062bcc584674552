//! What the target answers, and what becomes of writes that it never answers.

use std::io;
use std::time::Instant;

use super::connect::Way;
use super::delivery::Delivery;
use super::peer::Job;
use super::sender::{Sender, Unanswered, What};
use crate::error::{DecodeError, WriteError};
use crate::frame::Frame;
use crate::memory::Source;
use crate::stats::{FailureKind, add, add_time};

impl Sender {
    /// Takes in everything that has come.
    pub(super) fn take_answers(&mut self) -> Result<(), WriteError> {
        loop {
            let malformed = |error: DecodeError| WriteError::Protocol(error.to_string());
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
                let taken = match &mut self.connection.way {
                    Way::Socket => false,
                    Way::Shared(ring) => ring.credit(bytes),
                    Way::Remote(ring) => ring.credit(bytes),
                };
                if taken {
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
                self.abandon_writes();
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
        let on_its_way = match &self.connection.way {
            Way::Remote(ring) => ring.is_writing_page(seq),
            _ => false,
        };
        match self.unanswered.front() {
            Some(front) if front.seq == seq && sent > 0 && !on_its_way => {
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
                self.peer.page_done();
                delivery.page_written();
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
            } => self.drop_page(&delivery, source, error),
            What::Finish { delivery } => delivery.fail(error),
            What::Ping => {}
        }
    }

    /// Lets a page go that will not be delivered.
    pub(super) fn drop_page(&self, delivery: &Delivery, source: Source, why: &WriteError) {
        drop(source);
        self.peer.page_done();
        delivery.page_dropped(why);
    }

    /// Ends the queue, and everything in it and on its way.
    pub(super) fn fail_all(&mut self, error: &WriteError) {
        let jobs = self.peer.close(error);
        while let Some(entry) = self.unanswered.pop_front() {
            self.refused(entry, error);
        }
        for job in jobs {
            match job {
                Job::Write {
                    delivery, source, ..
                } => self.drop_page(&delivery, source, error),
                Job::Finish { delivery, .. } => delivery.fail(error),
                Job::Abandon { .. } => {}
            }
        }
    }
}
