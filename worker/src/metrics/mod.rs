//! Prometheus metrics of a worker, under vLLM's names with the prefix `millrace_`.
//!
//! Most are read off the engine and the transfer layer when somebody scrapes ([`engine`],
//! [`experts`], [`transfer`], [`crate::group`]); only durations are observed where they pass.

mod engine;
mod experts;
pub(crate) mod mirror;
mod transfer;

use std::{collections::HashMap, sync::Arc};

use prometheus::{IntCounterVec, IntGauge, Opts, core::Collector};

use millrace_engine::ExpertCounts;
use millrace_model::blocks::BLOCK_TOKENS;
use millrace_telemetry::{Histogram, Registry, buckets};
use millrace_transfer::Stats;

use self::{
    engine::{EngineReader, EngineReading},
    experts::{ExpertReader, LayerSums},
    mirror::{Mirror, Mirrored},
};
use crate::{
    config::Role,
    engine::{EngineMonitor, StepMetrics},
    group::metrics as group,
};

pub use transfer::TransferStats;

/// Makes and registers metrics, each with the labels `model_name` and `role`.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    labels: HashMap<String, String>,
}

impl Metrics {
    pub fn new(registry: Registry, model_name: &str, role: Role) -> Metrics {
        let labels = [("model_name", model_name), ("role", role.as_str())];
        Metrics {
            registry,
            labels: labels
                .map(|(k, v)| (k.to_string(), v.to_string()))
                .into_iter()
                .collect(),
        }
    }

    /// `millrace_<name>` with `buckets` (see [`millrace_telemetry::buckets`]).
    pub fn histogram(
        &self,
        name: &str,
        help: &str,
        buckets: &[f64],
    ) -> Result<Histogram, prometheus::Error> {
        self.registry.histogram(self.opts(name, help), buckets)
    }

    /// The same, one for each of `values` of `label`.
    pub fn histograms<const N: usize>(
        &self,
        name: &str,
        help: &str,
        buckets: &[f64],
        label: &str,
        values: [&str; N],
    ) -> Result<[Histogram; N], prometheus::Error> {
        let opts = self.opts(name, help);
        let all = self.registry.histograms(opts, buckets, &[label])?;
        Ok(values.map(|value| all.with_label_values(&[value])))
    }

    /// `millrace_<name>`, one series for each of `values` of `label`. All are there from the start:
    /// of a counter whose first sample is a 1, nobody sees that it has grown.
    pub fn counters(
        &self,
        name: &str,
        help: &str,
        label: &str,
        values: &[&str],
    ) -> Result<IntCounterVec, prometheus::Error> {
        let counters = IntCounterVec::new(self.opts(name, help), &[label])?;
        for value in values {
            counters.with_label_values(&[value]);
        }
        self.register(counters)
    }

    pub(crate) fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
        self.register(IntGauge::with_opts(self.opts(name, help))?)
    }

    /// What the engine's thread observes itself.
    pub fn steps(&self) -> Result<StepMetrics, prometheus::Error> {
        Ok(StepMetrics {
            seconds: self.histogram(
                "engine_step_seconds",
                "Time of one engine step: schedule, run, postprocess",
                &buckets::SHORT_SECONDS,
            )?,
            tokens: self.histogram(
                "engine_step_tokens",
                "Tokens computed in one engine step, drafts included",
                &buckets::TOKENS,
            )?,
        })
    }

    /// Routers that have admitted this worker.
    pub(crate) fn routers(&self) -> Result<IntGauge, prometheus::Error> {
        self.gauge("attached_routers", "Routers that have admitted this worker")
    }

    /// Everything that the engine counts. `max_running`: the most sequences that it runs at once.
    pub fn watch_engine(
        &self,
        monitor: EngineMonitor,
        max_running: usize,
    ) -> Result<(), prometheus::Error> {
        self.engine(
            Box::new(move || EngineReading {
                state: monitor.state(),
                evictable: monitor.pool().evictable(),
            }),
            max_running,
        )
    }

    fn engine(&self, read: EngineReader, max_running: usize) -> Result<(), prometheus::Error> {
        let collector = engine::EngineCollector::new(self, read, BLOCK_TOKENS, max_running)?;
        self.watch(collector)
    }

    /// How often experts were chosen.
    pub fn watch_experts(&self, counts: Arc<ExpertCounts>) -> Result<(), prometheus::Error> {
        self.experts(Box::new(move || {
            let chosen = counts.chosen();
            let computed = counts.computed().into_iter().enumerate();
            let sums = computed.map(|(layer, computed)| LayerSums {
                chosen: chosen.layer(layer).iter().sum(),
                computed,
            });
            sums.collect()
        }))
    }

    fn experts(&self, read: ExpertReader) -> Result<(), prometheus::Error> {
        self.watch(experts::ExpertCollector::new(self, read)?)
    }

    /// Everything that the transfer layer counts.
    pub fn watch_transfer(&self, stats: TransferStats) -> Result<(), prometheus::Error> {
        self.watch(transfer::TransferCollector::new(self, stats)?)
    }

    /// Registers all that a worker of either role registers in its life, with nothing behind it: for
    /// whoever wants to know what there is.
    pub fn describe(&self) -> Result<(), prometheus::Error> {
        self.routers()?;
        self.steps()?;
        self.engine(Box::new(EngineReading::default), 0)?;
        self.experts(Box::new(Vec::new))?;
        self.watch_transfer(Box::new(Stats::default))?;
        group::GroupMetrics::new(self)?;
        group::StagingMetrics::new(self)?;
        self.watch(group::MeshCollector::new(
            self,
            Box::new(group::MeshReading::default),
        )?)
    }

    pub(crate) fn register<C: Collector + Clone + 'static>(
        &self,
        metric: C,
    ) -> Result<C, prometheus::Error> {
        self.registry.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    pub(crate) fn watch(&self, mirror: impl Mirror + 'static) -> Result<(), prometheus::Error> {
        self.registry.register(Box::new(Mirrored::new(mirror)))
    }

    pub(crate) fn opts(&self, name: &str, help: &str) -> Opts {
        Opts::new(format!("millrace_{name}"), help).const_labels(self.labels.clone())
    }
}
