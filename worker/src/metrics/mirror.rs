//! Counters that are counted elsewhere.

use prometheus::{
    Counter, IntCounter,
    core::{Collector, Desc},
    proto::MetricFamily,
};

/// Brings a counter up to `total`. The caller sees to it that two scrapes do not do this at once.
pub fn mirror(counter: &IntCounter, total: u64) {
    counter.inc_by(total.saturating_sub(counter.get()));
}

pub fn mirror_seconds(counter: &Counter, total: f64) {
    counter.inc_by((total - counter.get()).max(0.0));
}

pub fn descs<'a>(metrics: impl IntoIterator<Item = &'a dyn Collector>) -> Vec<&'a Desc> {
    metrics
        .into_iter()
        .flat_map(|metric| metric.desc())
        .collect()
}

pub fn families<'a>(metrics: impl IntoIterator<Item = &'a dyn Collector>) -> Vec<MetricFamily> {
    metrics
        .into_iter()
        .flat_map(|metric| metric.collect())
        .collect()
}
