//! Prometheus metrics of a worker, under vLLM's names with the prefix `millrace_`.
//!
//! Most are read off the engine and the transfer layer when somebody scrapes ([`engine`],
//! [`experts`], [`transfer`], [`crate::group`]); only durations are observed where they pass.

mod engine;
mod experts;
pub(crate) mod mirror;
mod transfer;

use std::{collections::HashMap, sync::Arc};

use prometheus::{Histogram, HistogramOpts, IntCounterVec, Opts, Registry, core::Collector};

use millrace_engine::ExpertCounts;
use millrace_telemetry::buckets;

use self::mirror::{Mirror, Mirrored};
use crate::{
    config::Role,
    engine::{EngineMonitor, StepMetrics},
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
        let opts = HistogramOpts {
            common_opts: self.opts(name, help),
            buckets: buckets.to_vec(),
        };
        let histogram = Histogram::with_opts(opts)?;
        self.register(histogram)
    }

    /// `millrace_<name>`, one series a value of `label`.
    pub fn counters(
        &self,
        name: &str,
        help: &str,
        label: &str,
    ) -> Result<IntCounterVec, prometheus::Error> {
        let counters = IntCounterVec::new(self.opts(name, help), &[label])?;
        self.register(counters)
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

    /// Everything that the engine counts.
    pub fn watch_engine(
        &self,
        monitor: EngineMonitor,
        page_tokens: usize,
    ) -> Result<(), prometheus::Error> {
        self.watch(engine::EngineCollector::new(self, monitor, page_tokens)?)
    }

    /// How often experts were chosen.
    pub fn watch_experts(&self, counts: Arc<ExpertCounts>) -> Result<(), prometheus::Error> {
        self.watch(experts::ExpertCollector::new(self, counts)?)
    }

    /// Everything that the transfer layer counts.
    pub fn watch_transfer(&self, stats: TransferStats) -> Result<(), prometheus::Error> {
        self.watch(transfer::TransferCollector::new(self, stats)?)
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
