//! Counters that are counted elsewhere.

use parking_lot::Mutex;
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

/// Metrics of what something else counts, read when somebody scrapes.
pub trait Mirror: Send + Sync {
    /// Brings the metrics up to date.
    fn update(&self);
    fn metrics(&self) -> Vec<&dyn Collector>;
}

/// A mirror as Prometheus scrapes it.
pub struct Mirrored<M> {
    mirror: M,
    /// Held from update to collection, so that two scrapes do not count twice.
    scrape: Mutex<()>,
}

impl<M: Mirror> Mirrored<M> {
    pub fn new(mirror: M) -> Mirrored<M> {
        Mirrored {
            mirror,
            scrape: Mutex::new(()),
        }
    }
}

impl<M: Mirror> Collector for Mirrored<M> {
    fn desc(&self) -> Vec<&Desc> {
        let metrics = self.mirror.metrics();
        metrics.iter().flat_map(|metric| metric.desc()).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let _one_at_a_time = self.scrape.lock();
        self.mirror.update();
        let metrics = self.mirror.metrics();
        metrics.iter().flat_map(|metric| metric.collect()).collect()
    }
}
