//! What a rank's driver and staging count, and what the mesh counts for them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace_telemetry::Histogram;
use parking_lot::Mutex;
use prometheus::{Counter, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, core::Collector};

use millrace_exchange::PeerStats;
use millrace_telemetry::buckets;

use super::slowest::{Slowest, Waits};
use crate::metrics::{
    Metrics,
    mirror::{Mirror, mirror, mirror_seconds},
};

const COMPLETE: &str = "complete";
const DROPPED: &str = "dropped";
const CHECKPOINT: &str = "checkpoint";
const PEER: &str = "peer";
/// Why weights were not staged from where they were to come.
const REASONS: [&str; 7] = [
    "unavailable",
    "absent",
    "timeout",
    "malformed",
    "checksum",
    "panic",
    CHECKPOINT,
];

/// Set by the engine's thread.
#[derive(Clone)]
pub struct GroupMetrics {
    epoch: IntGauge,
    member: IntGauge,
    adoptions: IntCounter,
    evictions: IntCounter,
    steps: IntCounterVec,
    waited: Counter,
    waits: Arc<Mutex<Waits>>,
}

impl GroupMetrics {
    pub fn new(metrics: &Metrics) -> Result<GroupMetrics, prometheus::Error> {
        let steps = metrics.counters(
            "group_steps_total",
            "Steps this rank took part in, with rows of its own or without, by how they ended",
            "result",
            &[COMPLETE, DROPPED],
        )?;
        Ok(GroupMetrics {
            steps,
            epoch: metrics.register(IntGauge::with_opts(
                metrics.opts("group_epoch", "The epoch this rank computes under; 0: none"),
            )?)?,
            member: metrics.register(IntGauge::with_opts(metrics.opts(
                "group_member",
                "1 if this rank is a member of its group's epoch",
            ))?)?,
            adoptions: metrics.register(IntCounter::with_opts(
                metrics.opts("group_adoptions_total", "Epochs this rank has adopted"),
            )?)?,
            evictions: metrics.register(IntCounter::with_opts(
                metrics.opts("group_evictions_total", "Epochs that left this rank out"),
            )?)?,
            waited: metrics.register(Counter::with_opts(metrics.opts(
                "group_start_wait_seconds_total",
                "Seconds from this rank's word before a step to the last of the others'",
            ))?)?,
            waits: Arc::default(),
        })
    }

    pub fn adopted(&self, epoch: u64) {
        self.epoch.set(epoch as i64);
        self.member.set(1);
        self.adoptions.inc();
    }

    pub fn left(&self) {
        self.epoch.set(0);
        self.member.set(0);
        self.evictions.inc();
    }

    pub fn step(&self, complete: bool) {
        let result = if complete { COMPLETE } else { DROPPED };
        self.steps.with_label_values(&[result]).inc();
    }

    /// For the peer's word.
    pub fn waited_for(&self, peer: usize, time: Duration) {
        *self.waits.lock().entry(peer).or_default() += time;
    }

    /// For everybody's.
    pub fn waited(&self, time: Duration) {
        self.waited.inc_by(time.as_secs_f64());
    }

    /// What was waited for words.
    pub fn waits(&self) -> Waits {
        self.waits.lock().clone()
    }
}

/// Set by staging.
#[derive(Clone)]
pub struct StagingMetrics {
    bytes: IntCounterVec,
    failures: IntCounterVec,
    pub seconds: Histogram,
}

impl StagingMetrics {
    pub fn new(metrics: &Metrics) -> Result<StagingMetrics, prometheus::Error> {
        let bytes = metrics.counters(
            "group_staged_bytes_total",
            "Bytes of weights staged and verified, by where they came from: another rank, or the checkpoint",
            "source",
            &[PEER, CHECKPOINT],
        )?;
        Ok(StagingMetrics {
            bytes,
            failures: metrics.counters(
                "group_staging_failures_total",
                "Experts whose weights a rank did not give, so that the checkpoint was read, or that the checkpoint did not",
                "reason",
                &REASONS,
            )?,
            seconds: metrics.histogram(
                "group_staging_seconds",
                "From an order to all of its weights in memory, if any were missing",
                &buckets::SECONDS,
            )?,
        })
    }

    pub fn staged_from_peer(&self, bytes: u64) {
        self.bytes.with_label_values(&[PEER]).inc_by(bytes);
    }

    pub fn staged_from_checkpoint(&self, bytes: u64) {
        self.bytes.with_label_values(&[CHECKPOINT]).inc_by(bytes);
    }

    pub fn failed(&self, reason: &str) {
        self.failures.with_label_values(&[reason]).inc();
    }
}

/// Reads the mesh.
pub type MeshReader = Box<dyn Fn() -> MeshReading + Send + Sync>;

#[derive(Default)]
pub struct MeshReading {
    /// Ranks that there is a working link with.
    pub linked: usize,
    /// Of every rank that there ever was one with.
    pub peers: Vec<PeerStats>,
    /// For words before steps.
    pub waits: Waits,
}

/// What the mesh counts, read when somebody scrapes. A rank knows as many peers as its group has, so
/// that a label for them would cost the square of that over all ranks, 20,736 series for 144. What
/// tells a slow rank from the others is instead whom they wait for, as a number: who is named by most
/// is the slow one.
pub struct MeshCollector {
    read: MeshReader,
    slowest: IntGaugeVec,
    /// By words before steps, and by rows.
    looks: Mutex<[Slowest; 2]>,
    bytes: IntCounterVec,
    waited: Counter,
    links: IntGauge,
    losses: IntCounter,
}

impl MeshCollector {
    pub fn new(metrics: &Metrics, read: MeshReader) -> Result<MeshCollector, prometheus::Error> {
        Ok(MeshCollector {
            read,
            slowest: IntGaugeVec::new(
                metrics.opts(
                    "group_slowest_peer",
                    "Number of the rank that this one waited for longest in the last half minute or so, for its word before a step (start) or its rows (exchange); -1: nobody",
                ),
                &["wait"],
            )?,
            looks: Mutex::default(),
            bytes: IntCounterVec::new(
                metrics.opts(
                    "group_exchange_bytes_total",
                    "Bytes exchanged with the other ranks of the group",
                ),
                &["direction"],
            )?,
            waited: Counter::with_opts(metrics.opts(
                "group_exchange_wait_seconds_total",
                "Seconds that steps waited for rows of other ranks",
            ))?,
            links: IntGauge::with_opts(metrics.opts(
                "group_links",
                "Ranks of the group that there is a working link with",
            ))?,
            losses: IntCounter::with_opts(metrics.opts(
                "group_link_losses_total",
                "Links with ranks of the group that broke",
            ))?,
        })
    }
}

impl Mirror for MeshCollector {
    fn update(&self) {
        let MeshReading {
            linked,
            peers,
            waits,
        } = (self.read)();
        self.links.set(linked as i64);
        let sum = |of: fn(&PeerStats) -> u64| peers.iter().map(of).sum();
        for (direction, bytes) in [
            ("sent", sum(|peer| peer.bytes_sent)),
            ("received", sum(|peer| peer.bytes_received)),
        ] {
            mirror(&self.bytes.with_label_values(&[direction]), bytes);
        }
        mirror(&self.losses, sum(|peer| peer.losses));
        let rows: Waits = (peers.iter())
            .map(|peer| (peer.rank, peer.waited))
            .collect();
        mirror_seconds(&self.waited, rows.values().sum::<Duration>().as_secs_f64());
        let now = Instant::now();
        let mut looks = self.looks.lock();
        for (slowest, (wait, waits)) in looks.iter_mut().zip([("start", waits), ("exchange", rows)])
        {
            let rank = slowest.look(now, &waits);
            let named = rank.map_or(-1, |rank| rank as i64);
            self.slowest.with_label_values(&[wait]).set(named);
        }
    }

    fn metrics(&self) -> Vec<&dyn Collector> {
        vec![
            &self.slowest,
            &self.bytes,
            &self.waited,
            &self.links,
            &self.losses,
        ]
    }
}
