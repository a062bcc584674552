//! What every transport offers. The socket transports implement it here; one with remote direct
//! memory access fits behind the same three traits, which is why sources name registered memory,
//! writes carry no reply, and only this crate can say that writes have ended.

use std::sync::mpsc;

use crate::config::Wire;
use crate::error::{GrantError, OpenError, TryWriteError, WriteError};
use crate::grant::Grant;
use crate::lease::{Lease, OnEvent};
use crate::memory::Source;
use crate::stats::Stats;

/// The side whose pages are written.
pub trait PageTarget: Send + Sync {
    /// Puts `pages` under a lease and exports what a peer needs to write them: page `i` of the
    /// grant is `pages[i]`.
    ///
    /// `on_event` hears of the lease's first event ([`crate::LeaseEvent`]) on a transport thread;
    /// it must not wait. Without it, ask [`Lease::wait`].
    fn grant(&self, pages: &[u32], on_event: Option<OnEvent>)
    -> Result<(Lease, Grant), GrantError>;

    fn stats(&self) -> Stats;
}

/// The side that writes.
pub trait PageInitiator: Send + Sync {
    /// Readies a way to the grant's target: a cached connection, or a new one, which may take the
    /// configured connect timeout. Call it off the engine's thread.
    fn open(&self, grant: &Grant) -> Result<Box<dyn PageWriter>, OpenError>;

    fn stats(&self) -> Stats;
}

/// What was delivered under one grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    pub pages: u64,
    pub bytes: u64,
}

/// Runs on a transport thread when everything has been acknowledged, or has failed and every source
/// has been let go; must not wait or panic.
pub type OnFinished = Box<dyn FnOnce(Result<Written, WriteError>) + Send>;

/// Writes one grant's pages. Dropped before it has finished, it tells the target that it gave up.
pub trait PageWriter: Send {
    /// Which way the pages take.
    fn wire(&self) -> Wire;

    /// Queues one page, each index once and in any order. Returns at once unless the connection's
    /// queue is full, and then waits for room for at most the configured stall time.
    ///
    /// `source` is kept until the write is acknowledged or has failed. An earlier write's failure
    /// is reported here, or by `finish`.
    fn write(&mut self, index: usize, source: Source) -> Result<(), WriteError>;

    /// Like `write`, but hands the source back rather than wait.
    fn try_write(&mut self, index: usize, source: Source) -> Result<(), TryWriteError>;

    /// Pages queued or on their way under this grant.
    fn pending(&self) -> usize;

    /// Announces, after every page, that all of them have been written; `message` reaches the
    /// lease's owner. Returns at once; `on_finished` hears how it went.
    fn finish_with(self: Box<Self>, message: Vec<u8>, on_finished: OnFinished);

    /// The same, waiting until everything has been acknowledged or has failed.
    fn finish(self: Box<Self>, message: Vec<u8>) -> Result<Written, WriteError> {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.finish_with(message, Box::new(move |result| drop(sender.send(result))));
        // The callback is dropped uncalled only if a transport thread has died.
        receiver.recv().unwrap_or(Err(WriteError::Closed))
    }
}
