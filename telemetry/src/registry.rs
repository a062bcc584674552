//! A process's metrics, and what each of them is.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use prometheus::{
    core::Collector,
    proto::{MetricFamily, MetricType},
};

use crate::{ProcessCollector, build};

/// Prometheus' registry, which also remembers what was registered: a scrape leaves out what has no
/// series yet, a catalogue must not. Cheap to clone; all clones are the same registry.
#[derive(Clone, Default)]
pub struct Registry {
    inner: prometheus::Registry,
    described: Arc<Mutex<Vec<Described>>>,
}

/// One metric, whether it has series or not.
#[derive(Debug, Clone, PartialEq)]
pub struct Described {
    pub name: String,
    pub kind: Kind,
    pub help: String,
    /// Names, those with one value in a process first.
    pub labels: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    /// As in a scrape's `# TYPE`.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

impl Registry {
    /// An empty one.
    pub fn new() -> Registry {
        Registry::default()
    }

    /// With what every process shows of itself.
    ///
    /// # Errors
    /// Never but for a mistake in their names.
    pub fn of_process() -> Result<Registry, prometheus::Error> {
        let registry = Registry::new();
        registry.register(Box::new(ProcessCollector::new()?))?;
        registry.register(Box::new(build::info()?))?;
        Ok(registry)
    }

    /// # Errors
    /// A metric of this name is there already, or it is none that Prometheus takes.
    pub fn register(&self, collector: Box<dyn Collector>) -> Result<(), prometheus::Error> {
        let described = describe(&*collector);
        self.inner.register(collector)?;
        self.described.lock().extend(described);
        Ok(())
    }

    /// What a scrape shows.
    pub fn gather(&self) -> Vec<MetricFamily> {
        self.inner.gather()
    }

    /// All that was registered, by name.
    pub fn described(&self) -> Vec<Described> {
        let mut all = self.described.lock().clone();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }
}

fn describe(collector: &dyn Collector) -> Vec<Described> {
    // Families come with their type also where they are empty.
    let kinds: HashMap<String, MetricType> = collector
        .collect()
        .iter()
        .map(|family| (family.name().to_owned(), family.get_field_type()))
        .collect();
    let describe = |desc: &prometheus::core::Desc| {
        let constant = desc.const_label_pairs.iter().map(|pair| pair.name());
        let variable = desc.variable_labels.iter().map(String::as_str);
        Described {
            name: desc.fq_name.clone(),
            kind: match kinds.get(&desc.fq_name) {
                Some(MetricType::HISTOGRAM) => Kind::Histogram,
                Some(MetricType::COUNTER) => Kind::Counter,
                _ => Kind::Gauge,
            },
            help: desc.help.clone(),
            labels: constant.chain(variable).map(str::to_owned).collect(),
        }
    };
    collector.desc().into_iter().map(describe).collect()
}

#[cfg(test)]
mod tests {
    use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts};

    use super::*;

    #[test]
    fn what_has_no_series_yet_is_known_all_the_same() {
        let registry = Registry::new();
        let opts = Opts::new("ends_total", "Ends").const_label("model_name", "m");
        let ends = IntCounterVec::new(opts, &["reason"]).unwrap();
        registry.register(Box::new(ends.clone())).unwrap();
        let waits = HistogramVec::new(HistogramOpts::new("wait_seconds", "Wait"), &["peer"]);
        registry.register(Box::new(waits.unwrap())).unwrap();
        assert!(registry.gather().is_empty());
        let described = registry.described();
        assert_eq!(described.len(), 2);
        assert_eq!(described[0].name, "ends_total");
        assert_eq!(described[0].kind, Kind::Counter);
        assert_eq!(described[0].labels, ["model_name", "reason"]);
        assert_eq!(described[1].kind, Kind::Histogram);
        assert!(registry.register(Box::new(ends)).is_err(), "twice");
        assert_eq!(registry.described().len(), 2);
    }
}
