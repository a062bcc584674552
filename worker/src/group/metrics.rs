//! What a rank's driver and staging count, and what the mesh counts for them.

use std::{sync::Arc, time::Duration};

use prometheus::{
    CounterVec, Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, core::Collector,
};

use millrace_exchange::Mesh;
use millrace_telemetry::buckets;

use crate::metrics::{
    Metrics,
    mirror::{Mirror, mirror, mirror_seconds},
};

const COMPLETE: &str = "complete";
const DROPPED: &str = "dropped";
const CHECKPOINT: &str = "checkpoint";

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
        )?;
        // Series that are there from the start can be compared with what they were.
        for result in [COMPLETE, DROPPED] {
            steps.with_label_values(&[result]);
        }
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
            "Bytes of weights staged and verified, by the rank they came from, or `checkpoint`",
            "source",
        )?;
        bytes.with_label_values(&[CHECKPOINT]);
        Ok(StagingMetrics {
            bytes,
            failures: metrics.counters(
                "group_staging_failures_total",
                "Experts whose weights a source did not give: then the checkpoint was read",
                "reason",
            )?,
            seconds: metrics.histogram(
                "group_staging_seconds",
                "From an order to all of its weights in memory, if any were missing",
                &buckets::SECONDS,
            )?,
        })
    }

    /// `peer`: the rank they came from; `None`: the checkpoint.
    pub fn staged(&self, peer: Option<usize>, bytes: u64) {
        let peer = peer.map(|rank| rank.to_string());
        let source = peer.as_deref().unwrap_or(CHECKPOINT);
        self.bytes.with_label_values(&[source]).inc_by(bytes);
    }

    pub fn failed(&self, reason: &str) {
        self.failures.with_label_values(&[reason]).inc();
    }
}

/// What the mesh counts, read when somebody scrapes.
pub struct MeshCollector {
    mesh: Arc<Mesh>,
    bytes: IntCounterVec,
    waited: CounterVec,
    linked: IntGaugeVec,
    losses: IntCounterVec,
}

impl MeshCollector {
    pub fn new(metrics: &Metrics, mesh: Arc<Mesh>) -> Result<MeshCollector, prometheus::Error> {
        Ok(MeshCollector {
            mesh,
            bytes: IntCounterVec::new(
                metrics.opts(
                    "group_exchange_bytes_total",
                    "Bytes exchanged with each rank of the group",
                ),
                &["peer", "direction"],
            )?,
            waited: CounterVec::new(
                metrics.opts(
                    "group_exchange_wait_seconds_total",
                    "Seconds a step waited for rows of a rank after those of the ranks before it had come",
                ),
                &["peer"],
            )?,
            linked: IntGaugeVec::new(
                metrics.opts("group_linked", "1 while there is a working link with the rank"),
                &["peer"],
            )?,
            losses: IntCounterVec::new(
                metrics.opts("group_link_losses_total", "Links with the rank that broke"),
                &["peer"],
            )?,
        })
    }
}

impl Mirror for MeshCollector {
    fn update(&self) {
        let linked = self.mesh.linked();
        for stats in self.mesh.stats() {
            let rank = stats.rank.to_string();
            let peer = rank.as_str();
            for (direction, bytes) in [
                ("sent", stats.bytes_sent),
                ("received", stats.bytes_received),
            ] {
                mirror(&self.bytes.with_label_values(&[peer, direction]), bytes);
            }
            mirror_seconds(
                &self.waited.with_label_values(&[peer]),
                stats.waited.as_secs_f64(),
            );
            mirror(&self.losses.with_label_values(&[peer]), stats.losses);
            let now = linked.iter().any(|id| id.rank == stats.rank);
            self.linked.with_label_values(&[peer]).set(i64::from(now));
        }
    }

    fn metrics(&self) -> Vec<&dyn Collector> {
        vec![&self.bytes, &self.waited, &self.linked, &self.losses]
    }
}
