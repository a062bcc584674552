//! What the operator counts, under `millrace_operator_`.

use std::time::Duration;

use millrace_telemetry::traces::Span;
use millrace_telemetry::{HistogramVec, Registry, buckets};
use prometheus::{IntCounterVec, IntGauge, IntGaugeVec, Opts};

use crate::autoscaler_metrics::AutoscalerMetrics;

#[derive(Debug, Clone)]
pub struct Metrics {
    /// 1 while this process leads.
    pub leader: IntGauge,
    /// Routers that are heard.
    pub fleet_streams: IntGauge,
    reconciles: IntCounterVec,
    seconds: HistogramVec,
    queue: IntGaugeVec,
    requests: IntCounterVec,
    applies: IntCounterVec,
    pub autoscaler: AutoscalerMetrics,
}

impl Metrics {
    pub fn new(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        let counter = |name: &str, help: &str, labels: &[&str]| {
            IntCounterVec::new(Opts::new(format!("millrace_operator_{name}"), help), labels)
        };
        let gauge =
            |name: &str, help: &str| IntGauge::new(format!("millrace_operator_{name}"), help);
        let metrics = Metrics {
            leader: gauge(
                "leader",
                "1 while this process leads, 0 while it stands by.",
            )?,
            fleet_streams: gauge("fleet_streams", "Routers that tell of their workers.")?,
            reconciles: counter(
                "reconciles_total",
                "Looks at an object, by controller and result.",
                &["controller", "result"],
            )?,
            seconds: registry.histograms(
                Opts::new(
                    "millrace_operator_reconcile_seconds",
                    "Time of a look at an object.",
                ),
                &buckets::SECONDS,
                &["controller"],
            )?,
            queue: IntGaugeVec::new(
                Opts::new(
                    "millrace_operator_queue_depth",
                    "Objects that wait for a look that is due.",
                ),
                &["controller"],
            )?,
            requests: counter(
                "api_requests_total",
                "Requests to the API server, by verb, API group, resource (with subresource) and status code.",
                &["verb", "group", "resource", "code"],
            )?,
            applies: counter(
                "applies_total",
                "Children that were compared with what should be, by kind and outcome.",
                &["kind", "result"],
            )?,
            autoscaler: AutoscalerMetrics::new(registry)?,
        };
        registry.register(Box::new(metrics.leader.clone()))?;
        registry.register(Box::new(metrics.fleet_streams.clone()))?;
        registry.register(Box::new(metrics.reconciles.clone()))?;
        registry.register(Box::new(metrics.queue.clone()))?;
        registry.register(Box::new(metrics.requests.clone()))?;
        registry.register(Box::new(metrics.applies.clone()))?;
        Ok(metrics)
    }

    pub fn reconciled(&self, trace: &Span, controller: &str, result: &str, took: Duration) {
        self.reconciles
            .with_label_values(&[controller, result])
            .inc();
        self.seconds
            .with_label_values(&[controller])
            .observe_in(trace, took.as_secs_f64());
    }

    pub fn queued(&self, controller: &str, depth: usize) {
        self.queue
            .with_label_values(&[controller])
            .set(i64::try_from(depth).unwrap_or(i64::MAX));
    }

    /// `result`: applied, unchanged, not_served, deleted.
    pub fn applied(&self, kind: &str, result: &str) {
        self.applies.with_label_values(&[kind, result]).inc();
    }

    pub(crate) fn requested(&self, verb: &str, group: &str, resource: &str, code: &str) {
        self.requests
            .with_label_values(&[verb, group, resource, code])
            .inc();
    }
}
