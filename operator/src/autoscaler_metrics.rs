//! What PoolAutoscalers see and decide, under `millrace_autoscaler_`. Labels are their names, roles,
//! latencies and causes: as many series as there are objects, and none of one that is gone.

use std::collections::HashMap;

use millrace_telemetry::Registry;
use prometheus::core::{Collector, MetricVec, MetricVecBuilder};
use prometheus::{GaugeVec, IntCounterVec, IntGaugeVec, Opts};

use crate::api::{AutoscalerStatus, Measured, ScaledPool};
use crate::cache::Key;

/// The PoolAutoscaler's. A scrape in Kubernetes adds the operator's own as `namespace`.
const NAMESPACE: &str = "target_namespace";

#[derive(Debug, Clone)]
pub struct AutoscalerMetrics {
    replicas: IntGaugeVec,
    seconds: GaugeVec,
    frozen: IntGaugeVec,
    limited: IntGaugeVec,
    decisions: IntCounterVec,
}

impl AutoscalerMetrics {
    pub fn new(registry: &Registry) -> Result<AutoscalerMetrics, prometheus::Error> {
        let opts = |name: &str, help: &str| Opts::new(format!("millrace_autoscaler_{name}"), help);
        let metrics = AutoscalerMetrics {
            replicas: IntGaugeVec::new(
                opts(
                    "replicas",
                    "Groups by role: ready, current (asked for before) and desired.",
                ),
                &[NAMESPACE, "autoscaler", "role", "state"],
            )?,
            seconds: GaugeVec::new(
                opts(
                    "seconds",
                    "Latency at the objectives' percentile: the objective, what was measured, and what is predicted with the desired groups.",
                ),
                &[NAMESPACE, "autoscaler", "latency", "kind"],
            )?,
            frozen: IntGaugeVec::new(
                opts("frozen", "1 while too little is known to decide."),
                &[NAMESPACE, "autoscaler"],
            )?,
            limited: IntGaugeVec::new(
                opts(
                    "limited",
                    "1 while bounds, budget or schedule decide instead of demand.",
                ),
                &[NAMESPACE, "autoscaler"],
            )?,
            decisions: IntCounterVec::new(
                opts(
                    "decisions_total",
                    "Looks, by role and by why there are to be as many groups as there are to be.",
                ),
                &[NAMESPACE, "autoscaler", "role", "reason"],
            )?,
        };
        let all: [Box<dyn Collector>; 5] = [
            Box::new(metrics.replicas.clone()),
            Box::new(metrics.seconds.clone()),
            Box::new(metrics.frozen.clone()),
            Box::new(metrics.limited.clone()),
            Box::new(metrics.decisions.clone()),
        ];
        for collector in all {
            registry.register(collector)?;
        }
        Ok(metrics)
    }

    /// A look at a PoolAutoscaler came to this.
    pub fn decided(&self, key: &Key, status: &AutoscalerStatus) {
        let (namespace, name) = (&*key.namespace, &*key.name);
        if let Some(prefill) = &status.prefill {
            self.pool(key, "prefill", prefill);
        }
        self.pool(key, "decode", &status.decode);
        self.latency(key, "ttft", status.ttft.as_ref());
        self.latency(key, "itl", status.itl.as_ref());
        self.latency(key, "queue", status.queue_time.as_ref());
        let holds = |kind: &str| {
            let mut conditions = status.conditions.iter();
            i64::from(conditions.any(|c| c.type_ == kind && c.status == "True"))
        };
        let labels = [namespace, name];
        self.frozen.with_label_values(&labels).set(holds("Frozen"));
        self.limited
            .with_label_values(&labels)
            .set(holds("Limited"));
    }

    /// Nothing is decided about it, or it is gone.
    pub fn forget(&self, key: &Key) {
        forget(&self.replicas, key);
        forget(&self.seconds, key);
        forget(&self.frozen, key);
        forget(&self.limited, key);
        forget(&self.decisions, key);
    }

    fn pool(&self, key: &Key, role: &str, pool: &ScaledPool) {
        let (namespace, name) = (&*key.namespace, &*key.name);
        for (state, groups) in [
            ("ready", pool.ready),
            ("current", pool.current),
            ("desired", pool.desired),
        ] {
            let replicas = self
                .replicas
                .with_label_values(&[namespace, name, role, state]);
            replicas.set(groups.into());
        }
        let labels = [namespace, name, role, &pool.cause];
        self.decisions.with_label_values(&labels).inc();
    }

    fn latency(&self, key: &Key, latency: &str, measured: Option<&Measured>) {
        let (namespace, name) = (&*key.namespace, &*key.name);
        let (objective, seen, predicted) = match measured {
            None => (None, None, None),
            Some(measured) => (
                Some(measured.objective_milliseconds),
                measured.measured_milliseconds,
                measured.predicted_milliseconds,
            ),
        };
        for (kind, milliseconds) in [
            ("objective", objective),
            ("measured", seen),
            ("predicted", predicted),
        ] {
            let labels = [namespace, name, latency, kind];
            match milliseconds {
                Some(ms) => {
                    let seconds = self.seconds.with_label_values(&labels);
                    seconds.set(f64::from(ms) / 1000.0);
                }
                // An error: there is none, as it should be.
                None => drop(self.seconds.remove_label_values(&labels)),
            }
        }
    }
}

fn forget<B: MetricVecBuilder>(all: &MetricVec<B>, key: &Key) {
    for metric in all.collect().iter().flat_map(|family| family.get_metric()) {
        let labels: HashMap<&str, &str> = metric
            .get_label()
            .iter()
            .map(|label| (label.name(), label.value()))
            .collect();
        let is = |label: &str, value: &str| labels.get(label) == Some(&value);
        if is(NAMESPACE, &key.namespace) && is("autoscaler", &key.name) {
            // An error: somebody else was faster.
            drop(all.remove(&labels));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(registry: &Registry) -> usize {
        let families = registry.gather();
        families
            .iter()
            .map(|family| family.get_metric().len())
            .sum()
    }

    #[test]
    fn what_is_gone_has_no_series() {
        let registry = Registry::new();
        let metrics = AutoscalerMetrics::new(&registry).unwrap();
        let mut status = AutoscalerStatus {
            prefill: Some(ScaledPool::default()),
            ttft: Some(Measured {
                objective_milliseconds: 500,
                measured_milliseconds: Some(400),
                ..Measured::default()
            }),
            ..AutoscalerStatus::default()
        };
        let (one, other) = (Key::new("n", "a"), Key::new("n", "b"));
        metrics.decided(&one, &status);
        let alone = series(&registry);
        assert_eq!(alone, 6 + 2 + 2 + 2, "replicas, seconds, flags, decisions");
        metrics.decided(&other, &status);
        metrics.forget(&other);
        assert_eq!(series(&registry), alone);
        status.ttft = None;
        metrics.decided(&one, &status);
        assert_eq!(
            series(&registry),
            alone - 2,
            "no objective, no numbers of it"
        );
        metrics.forget(&one);
        assert_eq!(series(&registry), 0);
    }
}
