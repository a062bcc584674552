//! A process's metrics, and what each of them is.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use prometheus::{
    Opts,
    core::Collector,
    proto::{MetricFamily, MetricType},
};

use crate::{
    ProcessCollector, build,
    exposition::Family,
    histogram::{Histogram, HistogramVec},
};

/// Prometheus' registry, which also remembers what was registered: a scrape leaves out what has no
/// series yet, a catalogue must not. Cheap to clone; all clones are the same registry.
#[derive(Clone, Default)]
pub struct Registry {
    inner: prometheus::Registry,
    described: Arc<Mutex<Vec<Described>>>,
    histograms: Arc<Mutex<Vec<HistogramVec>>>,
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

    /// All but histograms, which [`Registry::histogram`] makes.
    ///
    /// # Errors
    /// A metric of this name is there already, or it is none that Prometheus takes.
    pub fn register(&self, collector: Box<dyn Collector>) -> Result<(), prometheus::Error> {
        let described = describe(&*collector);
        if let Some(one) = described.iter().find(|one| one.kind == Kind::Histogram) {
            let name = &one.name;
            return Err(prometheus::Error::Msg(format!(
                "{name} has no exemplars and no native histogram: make it with Registry::histogram"
            )));
        }
        self.add(collector, described)
    }

    /// A histogram of one series. `bounds`: of its classic buckets (see [`crate::buckets`]), rising.
    ///
    /// # Errors
    /// As [`Registry::register`].
    pub fn histogram(&self, opts: Opts, bounds: &[f64]) -> Result<Histogram, prometheus::Error> {
        Ok(self.histograms(opts, bounds, &[])?.with_label_values(&[]))
    }

    /// The same, with labels that tell series apart.
    ///
    /// # Errors
    /// As [`Registry::register`].
    pub fn histograms(
        &self,
        opts: Opts,
        bounds: &[f64],
        labels: &[&str],
    ) -> Result<HistogramVec, prometheus::Error> {
        let made = HistogramVec::new(opts, bounds, labels)?;
        self.add(Box::new(made.clone()), describe(&made))?;
        self.histograms.lock().push(made.clone());
        Ok(made)
    }

    fn add(
        &self,
        collector: Box<dyn Collector>,
        described: Vec<Described>,
    ) -> Result<(), prometheus::Error> {
        self.inner.register(collector)?;
        self.described.lock().extend(described);
        Ok(())
    }

    /// What a scrape shows, as the text format has it.
    pub fn gather(&self) -> Vec<MetricFamily> {
        self.inner.gather()
    }

    /// The same, with all that is known of histograms.
    pub(crate) fn families(&self) -> Vec<Family> {
        let histograms = self.histograms.lock().clone();
        let with = |inner: MetricFamily| {
            let known = histograms.iter().find(|h| h.name() == inner.name());
            Family {
                histograms: known.map(HistogramVec::snapshots).unwrap_or_default(),
                inner,
            }
        };
        self.gather().into_iter().map(with).collect()
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
    use prometheus::IntCounterVec;

    use super::*;

    #[test]
    fn what_has_no_series_yet_is_known_all_the_same() {
        let registry = Registry::new();
        let opts = Opts::new("ends_total", "Ends").const_label("model_name", "m");
        let ends = IntCounterVec::new(opts, &["reason"]).unwrap();
        registry.register(Box::new(ends.clone())).unwrap();
        let waits = Opts::new("wait_seconds", "Wait");
        registry.histograms(waits, &[1.0], &["stage"]).unwrap();
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

    #[test]
    fn a_histogram_that_knows_less_is_refused() {
        let opts = prometheus::HistogramOpts::new("wait_seconds", "Wait");
        let plain = prometheus::Histogram::with_opts(opts).unwrap();
        let refused = Registry::new().register(Box::new(plain)).unwrap_err();
        assert!(refused.to_string().contains("Registry::histogram"));
        let falling = Opts::new("wait_seconds", "Wait");
        assert!(Registry::new().histogram(falling, &[2.0, 1.0]).is_err());
    }
}
