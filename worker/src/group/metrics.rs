//! What a rank's driver and staging count, and what the mesh counts for them.

use std::time::Duration;

use prometheus::{CounterVec, IntCounter, IntCounterVec, IntGauge, core::Collector};

use millrace_exchange::PeerStats;
use millrace_telemetry::{Histogram, buckets};

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
    waited: CounterVec,
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
            waited: metrics.register(CounterVec::new(
                metrics.opts(
                    "group_start_wait_seconds_total",
                    "Seconds from this rank's word before a step to the peer's",
                ),
                &["peer"],
            )?)?,
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
    pub fn waited(&self, peer: usize, time: Duration) {
        let peer = peer.to_string();
        let waited = self.waited.with_label_values(&[peer.as_str()]);
        waited.inc_by(time.as_secs_f64());
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
}

/// What the mesh counts, read when somebody scrapes. A rank knows as many peers as its group has, so
/// that a label for them costs the square of that over all ranks: only what tells a slow rank from
/// the others has one.
pub struct MeshCollector {
    read: MeshReader,
    bytes: IntCounterVec,
    waited: CounterVec,
    links: IntGauge,
    losses: IntCounter,
}

impl MeshCollector {
    pub fn new(metrics: &Metrics, read: MeshReader) -> Result<MeshCollector, prometheus::Error> {
        Ok(MeshCollector {
            read,
            bytes: IntCounterVec::new(
                metrics.opts(
                    "group_exchange_bytes_total",
                    "Bytes exchanged with the other ranks of the group",
                ),
                &["direction"],
            )?,
            waited: CounterVec::new(
                metrics.opts(
                    "group_exchange_wait_seconds_total",
                    "Seconds a step waited for rows of a rank after those of the ranks before it had come",
                ),
                &["peer"],
            )?,
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
        let MeshReading { linked, peers } = (self.read)();
        self.links.set(linked as i64);
        let sum = |of: fn(&PeerStats) -> u64| peers.iter().map(of).sum();
        for (direction, bytes) in [
            ("sent", sum(|peer| peer.bytes_sent)),
            ("received", sum(|peer| peer.bytes_received)),
        ] {
            mirror(&self.bytes.with_label_values(&[direction]), bytes);
        }
        mirror(&self.losses, sum(|peer| peer.losses));
        for peer in &peers {
            let rank = peer.rank.to_string();
            let waited = self.waited.with_label_values(&[rank.as_str()]);
            mirror_seconds(&waited, peer.waited.as_secs_f64());
        }
    }

    fn metrics(&self) -> Vec<&dyn Collector> {
        vec![&self.bytes, &self.waited, &self.links, &self.losses]
    }
}
