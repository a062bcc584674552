//! What the transfer layer counts, read when somebody scrapes.

use prometheus::{CounterVec, IntCounterVec, IntGauge, IntGaugeVec, core::Collector};

use millrace_transfer::{FailureKind, Stats, Wire};

use super::{
    Metrics,
    mirror::{Mirror, mirror, mirror_seconds},
};

/// Reads the counters of a target or an initiator.
pub type TransferStats = Box<dyn Fn() -> Stats + Send + Sync>;

pub struct TransferCollector {
    stats: TransferStats,
    bytes: IntCounterVec,
    pages: IntCounterVec,
    seconds: CounterVec,
    connections: IntGaugeVec,
    in_flight: IntGaugeVec,
    failures: IntCounterVec,
    leases: IntCounterVec,
    active_leases: IntGauge,
}

impl TransferCollector {
    pub fn new(
        metrics: &Metrics,
        stats: TransferStats,
    ) -> Result<TransferCollector, prometheus::Error> {
        let counter = |name, help, label| IntCounterVec::new(metrics.opts(name, help), &[label]);
        let gauge = |name, help, label| IntGaugeVec::new(metrics.opts(name, help), &[label]);
        Ok(TransferCollector {
            stats,
            bytes: counter(
                "transfer_bytes_total",
                "Bytes of KV pages delivered",
                "transport",
            )?,
            pages: counter("transfer_pages_total", "KV pages delivered", "transport")?,
            seconds: CounterVec::new(
                metrics.opts(
                    "transfer_seconds_total",
                    "Seconds that delivered pages spent queued and on the wire (pages overlap), and announcements took",
                ),
                &["transport", "stage"],
            )?,
            connections: gauge(
                "transfer_connections",
                "Open connections for KV pages",
                "transport",
            )?,
            in_flight: gauge(
                "transfer_pages_in_flight",
                "KV pages being written",
                "transport",
            )?,
            failures: counter(
                "transfer_failures_total",
                "Writes of KV pages that failed",
                "kind",
            )?,
            leases: counter(
                "leases_total",
                "Leases on KV pages by what became of them; a dropped one is a bug",
                "state",
            )?,
            active_leases: IntGauge::with_opts(metrics.opts(
                "leases_active",
                "Leases under which a peer may write KV pages now",
            ))?,
        })
    }
}

impl Mirror for TransferCollector {
    fn update(&self) {
        let stats = (self.stats)();
        for wire in Wire::ALL {
            let (transport, now) = (wire.as_str(), stats.wire(wire));
            mirror(&self.bytes.with_label_values(&[transport]), now.bytes);
            mirror(&self.pages.with_label_values(&[transport]), now.pages);
            for (stage, seconds) in [
                ("queue", now.queue_seconds),
                ("wire", now.wire_seconds),
                ("notify", now.notify_seconds),
            ] {
                mirror_seconds(
                    &self.seconds.with_label_values(&[transport, stage]),
                    seconds,
                );
            }
            self.connections
                .with_label_values(&[transport])
                .set(now.connections as i64);
            self.in_flight
                .with_label_values(&[transport])
                .set(now.in_flight as i64);
        }
        for &kind in FailureKind::ALL {
            let count = stats.failures(kind);
            mirror(&self.failures.with_label_values(&[kind.as_str()]), count);
        }
        let leases = &stats.leases;
        for (state, count) in [
            ("granted", leases.granted),
            ("completed", leases.completed),
            ("revoked", leases.revoked),
            ("dropped", leases.dropped),
        ] {
            mirror(&self.leases.with_label_values(&[state]), count);
        }
        self.active_leases.set(leases.active as i64);
    }

    fn metrics(&self) -> Vec<&dyn Collector> {
        vec![
            &self.bytes,
            &self.pages,
            &self.seconds,
            &self.connections,
            &self.in_flight,
            &self.failures,
            &self.leases,
            &self.active_leases,
        ]
    }
}
