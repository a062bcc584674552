//! The caller's handle on one grant.

use std::sync::Arc;
use std::time::Duration;

use super::delivery::Delivery;
use super::peer::{Job, Peer};
use crate::api::{OnFinished, PageWriter};
use crate::config::Wire;
use crate::error::{TryWriteError, WriteError};
use crate::frame::MAX_MESSAGE;
use crate::grant::Grant;
use crate::memory::Source;

pub(super) struct Writer {
    peer: Arc<Peer>,
    delivery: Arc<Delivery>,
    /// Which pages have been given, so that a slip is caught here and not as a refusal that costs
    /// everybody the connection.
    given: Vec<bool>,
    stall: Duration,
    finished: bool,
}

impl Writer {
    /// `peer` counts this writer already.
    pub fn new(peer: Arc<Peer>, grant: &Grant, stall: Duration) -> Writer {
        let delivery = Arc::new(Delivery::new(grant));
        Writer {
            peer,
            delivery,
            given: vec![false; grant.pages.len()],
            stall,
            finished: false,
        }
    }

    fn check(&self, index: usize, source: &Source) -> Result<(), WriteError> {
        let pages = self.given.len();
        match self.given.get(index) {
            None => return Err(WriteError::IndexOutOfRange { index, pages }),
            Some(true) => return Err(WriteError::WrittenTwice { index }),
            Some(false) => {}
        }
        let (bytes, page_bytes) = (source.len(), self.delivery.page_bytes);
        if bytes != page_bytes {
            return Err(WriteError::WrongLength { bytes, page_bytes });
        }
        self.delivery.failure().map_or(Ok(()), Err)
    }

    fn queue(
        &mut self,
        index: usize,
        source: Source,
        patience: Duration,
    ) -> Result<Option<Source>, WriteError> {
        self.check(index, &source)?;
        let back = self
            .peer
            .write(&self.delivery, index as u32, source, patience)?;
        self.given[index] = back.is_none();
        Ok(back)
    }

    fn announce(&self, message: Vec<u8>) -> Result<(), WriteError> {
        let pages = self.given.len();
        let missing = self.given.iter().filter(|given| !**given).count();
        if missing > 0 {
            return Err(WriteError::MissingPages { missing, pages });
        }
        if message.len() > MAX_MESSAGE {
            return Err(WriteError::MessageTooLong {
                bytes: message.len(),
                limit: MAX_MESSAGE,
            });
        }
        self.peer.push(Job::Finish {
            delivery: self.delivery.clone(),
            message,
        })
    }
}

impl PageWriter for Writer {
    fn wire(&self) -> Wire {
        self.peer.wire()
    }

    fn write(&mut self, index: usize, source: Source) -> Result<(), WriteError> {
        match self.queue(index, source, self.stall)? {
            None => Ok(()),
            Some(_) => Err(WriteError::QueueFull(self.stall)),
        }
    }

    fn try_write(&mut self, index: usize, source: Source) -> Result<(), TryWriteError> {
        match self.queue(index, source, Duration::ZERO)? {
            None => Ok(()),
            Some(source) => Err(TryWriteError::Full(source)),
        }
    }

    fn pending(&self) -> usize {
        self.delivery.pending()
    }

    fn finish_with(mut self: Box<Self>, message: Vec<u8>, on_finished: OnFinished) {
        // Set first: the answer may be quicker than we are.
        self.delivery.on_finished(on_finished);
        match self.announce(message) {
            Ok(()) => self.finished = true,
            // Dropping the writer then tells the target.
            Err(error) => self.delivery.fail(&error),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.finished {
            // Pages still queued are skipped from here on.
            self.delivery.fail(&WriteError::Abandoned);
            // A connection that has ended needs no telling.
            let _ = self.peer.push(Job::Abandon {
                delivery: self.delivery.clone(),
            });
        }
        self.peer.detach();
    }
}
