//! What went over the links, for metrics.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Totals with one rank, over all its lives and links.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PeerStats {
    pub rank: usize,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    pub frames_sent: u64,
    pub frames_received: u64,
    /// Spent in `collect` and `combine` on frames of this rank that had not come yet. Ranks are
    /// waited for in order, so that this is what each was slower than those before it.
    pub waited: Duration,
    /// Links made.
    pub links: u64,
    /// Links lost.
    pub losses: u64,
}

#[derive(Default)]
pub(crate) struct Counters {
    bytes_sent: AtomicU64,
    bytes_received: AtomicU64,
    frames_sent: AtomicU64,
    frames_received: AtomicU64,
    waited_nanos: AtomicU64,
    links: AtomicU64,
    losses: AtomicU64,
}

impl Counters {
    pub(crate) fn sent(&self, bytes: usize) {
        self.bytes_sent.fetch_add(bytes as u64, Relaxed);
        self.frames_sent.fetch_add(1, Relaxed);
    }

    pub(crate) fn received(&self, bytes: usize) {
        self.bytes_received.fetch_add(bytes as u64, Relaxed);
        self.frames_received.fetch_add(1, Relaxed);
    }

    pub(crate) fn waited(&self, time: Duration) {
        self.waited_nanos.fetch_add(time.as_nanos() as u64, Relaxed);
    }

    pub(crate) fn linked(&self) {
        self.links.fetch_add(1, Relaxed);
    }

    pub(crate) fn lost(&self) {
        self.losses.fetch_add(1, Relaxed);
    }

    pub(crate) fn stats(&self, rank: usize) -> PeerStats {
        PeerStats {
            rank,
            bytes_sent: self.bytes_sent.load(Relaxed),
            bytes_received: self.bytes_received.load(Relaxed),
            frames_sent: self.frames_sent.load(Relaxed),
            frames_received: self.frames_received.load(Relaxed),
            waited: Duration::from_nanos(self.waited_nanos.load(Relaxed)),
            links: self.links.load(Relaxed),
            losses: self.losses.load(Relaxed),
        }
    }
}
