//! Makes and registers metrics with the prefix and the model's name.

use std::collections::HashMap;

use millrace_telemetry::{Histogram, Registry, buckets};
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts};

pub struct Maker<'a> {
    pub registry: &'a Registry,
    pub model_name: &'a str,
}

/// A label and all of its values. Their series are there from the start: of a counter whose first sample is
/// a 1, nobody sees that it has grown.
pub type Label<'a> = (&'a str, &'a [&'a str]);

type Made<T> = Result<T, prometheus::Error>;

impl Maker<'_> {
    fn opts(&self, name: &str, help: &str) -> Opts {
        let labels = HashMap::from([("model_name".to_owned(), self.model_name.to_owned())]);
        Opts::new(name, help)
            .namespace("millrace")
            .const_labels(labels)
    }

    fn register<T: prometheus::core::Collector + Clone + 'static>(&self, metric: T) -> Made<T> {
        self.registry.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    pub fn gauge(&self, name: &str, help: &str) -> Made<IntGauge> {
        self.register(IntGauge::with_opts(self.opts(name, help))?)
    }

    pub fn gauges(
        &self,
        name: &str,
        help: &str,
        label: &str,
        values: &[&str],
    ) -> Made<IntGaugeVec> {
        let gauges = IntGaugeVec::new(self.opts(name, help), &[label])?;
        for value in values {
            gauges.with_label_values(&[value]);
        }
        self.register(gauges)
    }

    pub fn counter(&self, name: &str, help: &str) -> Made<IntCounter> {
        self.register(IntCounter::with_opts(self.opts(name, help))?)
    }

    pub fn counters(&self, name: &str, help: &str, labels: &[Label<'_>]) -> Made<IntCounterVec> {
        let names: Vec<&str> = labels.iter().map(|(name, _)| *name).collect();
        let counters = IntCounterVec::new(self.opts(name, help), &names)?;
        for values in combinations(labels) {
            counters.with_label_values(&values);
        }
        self.register(counters)
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Made<Histogram> {
        self.registry.histogram(self.opts(name, help), buckets)
    }

    /// 10 us to 5 s.
    pub fn short_seconds(&self, name: &str, help: &str) -> Made<Histogram> {
        self.histogram(name, help, &buckets::SHORT_SECONDS)
    }

    /// 1 ms to 100 s.
    pub fn seconds(&self, name: &str, help: &str) -> Made<Histogram> {
        self.histogram(name, help, &buckets::SECONDS)
    }

    pub fn tokens(&self, name: &str, help: &str) -> Made<Histogram> {
        self.histogram(name, help, &buckets::TOKENS)
    }
}

fn combinations<'a>(labels: &[Label<'a>]) -> Vec<Vec<&'a str>> {
    labels.iter().fold(vec![Vec::new()], |before, (_, values)| {
        let with = |one: &Vec<&'a str>| {
            values
                .iter()
                .map(|value| [&one[..], &[*value]].concat())
                .collect::<Vec<_>>()
        };
        before.iter().flat_map(with).collect()
    })
}
