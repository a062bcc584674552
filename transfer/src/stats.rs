//! Plain counters. The worker turns a snapshot into metrics; nothing here knows of Prometheus.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::config::Wire;

macro_rules! failure_kinds {
    ($($variant:ident => $name:literal,)*) => {
        /// What a failure is counted as.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum FailureKind { $($variant,)* }

        impl FailureKind {
            pub const ALL: &[FailureKind] = &[$(FailureKind::$variant,)*];

            /// Value of the metric label `reason`.
            pub fn as_str(self) -> &'static str {
                match self { $(FailureKind::$variant => $name,)* }
            }
        }
    };
}

failure_kinds! {
    Connect => "connect",
    Mismatch => "mismatch",
    Busy => "busy",
    Lost => "lost",
    Stalled => "stalled",
    Malformed => "malformed",
    LeaseEnded => "lease_ended",
    UnknownLease => "unknown_lease",
    WrongKey => "wrong_key",
    IndexOutOfRange => "index_out_of_range",
    WrongLength => "wrong_length",
    WrittenTwice => "written_twice",
    Checksum => "checksum",
    Incomplete => "incomplete",
    Abandoned => "abandoned",
    Unavailable => "unavailable",
}

impl FailureKind {
    /// Number on the wire.
    pub(crate) fn code(self) -> u16 {
        self as u16
    }

    pub(crate) fn from_code(code: u16) -> Option<FailureKind> {
        FailureKind::ALL.get(code as usize).copied()
    }
}

/// Counters of one target or one initiator since its start.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    pub nixl: WireStats,
    pub shm: WireStats,
    pub tcp: WireStats,
    /// All zero at an initiator, which has none.
    pub leases: LeaseStats,
    /// Failures by kind, in the order of [`FailureKind::ALL`].
    pub failures: Vec<(FailureKind, u64)>,
}

impl Stats {
    pub fn wire(&self, wire: Wire) -> &WireStats {
        match wire {
            Wire::Nixl => &self.nixl,
            Wire::Shm => &self.shm,
            Wire::Tcp => &self.tcp,
        }
    }

    pub fn failures(&self, kind: FailureKind) -> u64 {
        self.failures
            .iter()
            .find(|(k, _)| *k == kind)
            .map_or(0, |(_, count)| *count)
    }
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct WireStats {
    /// Open connections.
    pub connections: u64,
    /// Connections ever opened.
    pub connections_opened: u64,
    /// Pages delivered: at the target landed, at the initiator acknowledged.
    pub pages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Writes accepted and not yet finished, one way or the other.
    pub in_flight: u64,
    /// Announcements delivered.
    pub notifications: u64,
    /// Seconds that delivered pages waited to be sent (initiator only).
    pub queue_seconds: f64,
    /// Seconds from the first byte of a delivered page to its last (target) or to its
    /// acknowledgement (initiator), summed over pages; pages overlap.
    pub wire_seconds: f64,
    /// Seconds from an announcement's sending to its acknowledgement (initiator) or that its
    /// handling took (target).
    pub notify_seconds: f64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeaseStats {
    pub granted: u64,
    pub completed: u64,
    pub revoked: u64,
    /// Dropped by their owner without either (their pages can never be freed: a bug there).
    pub dropped: u64,
    pub active: u64,
    pub active_pages: u64,
}

#[derive(Default)]
pub(crate) struct WireCounters {
    pub connections: AtomicU64,
    pub connections_opened: AtomicU64,
    pub pages: AtomicU64,
    pub bytes: AtomicU64,
    pub in_flight: AtomicU64,
    pub notifications: AtomicU64,
    pub queue_nanos: AtomicU64,
    pub wire_nanos: AtomicU64,
    pub notify_nanos: AtomicU64,
}

impl WireCounters {
    fn snapshot(&self) -> WireStats {
        let seconds = |nanos: &AtomicU64| nanos.load(Relaxed) as f64 * 1e-9;
        WireStats {
            connections: self.connections.load(Relaxed),
            connections_opened: self.connections_opened.load(Relaxed),
            pages: self.pages.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            in_flight: self.in_flight.load(Relaxed),
            notifications: self.notifications.load(Relaxed),
            queue_seconds: seconds(&self.queue_nanos),
            wire_seconds: seconds(&self.wire_nanos),
            notify_seconds: seconds(&self.notify_nanos),
        }
    }
}

/// The live form of [`Stats`], shared by the threads of one side.
#[derive(Default)]
pub(crate) struct Counters {
    nixl: WireCounters,
    shm: WireCounters,
    tcp: WireCounters,
    failures: [AtomicU64; FailureKind::ALL.len()],
}

impl Counters {
    pub(crate) fn wire(&self, wire: Wire) -> &WireCounters {
        match wire {
            Wire::Nixl => &self.nixl,
            Wire::Shm => &self.shm,
            Wire::Tcp => &self.tcp,
        }
    }

    pub(crate) fn failed(&self, kind: FailureKind) {
        self.failures[kind as usize].fetch_add(1, Relaxed);
    }

    pub(crate) fn snapshot(&self, leases: LeaseStats) -> Stats {
        let failures = FailureKind::ALL.iter().zip(&self.failures);
        Stats {
            nixl: self.nixl.snapshot(),
            shm: self.shm.snapshot(),
            tcp: self.tcp.snapshot(),
            leases,
            failures: failures
                .map(|(kind, count)| (*kind, count.load(Relaxed)))
                .collect(),
        }
    }
}

pub(crate) fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Relaxed);
}

pub(crate) fn sub(counter: &AtomicU64, amount: u64) {
    counter.fetch_sub(amount, Relaxed);
}

pub(crate) fn add_time(counter: &AtomicU64, time: Duration) {
    add(counter, u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
}
