//! Histograms that know more of what they saw than Prometheus' text format shows: beside the classic
//! buckets a native histogram, and of each classic bucket the trace of a request that fell into it.
//!
//! `prometheus`' own have neither, and no place for them in what they gather. All three are counted
//! under one lock, because a scraper refuses a native histogram whose buckets do not add up to its
//! count.

mod native;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use opentelemetry::trace::TraceId;
use parking_lot::Mutex;
use prometheus::{
    Opts,
    core::{Collector, Desc, Describer as _, Metric as _},
    proto::{self, LabelPair, MetricFamily, MetricType},
};

pub(crate) use native::{Native, ZERO_THRESHOLD};

use crate::traces::Span;

/// One series. Cheap to clone; all clones are the same series.
#[derive(Debug, Clone)]
pub struct Histogram(Arc<Series>);

#[derive(Debug)]
struct Series {
    labels: Vec<LabelPair>,
    bounds: Arc<[f64]>,
    counted: Mutex<Counted>,
}

/// What was observed so far.
#[derive(Debug, Clone)]
pub(crate) struct Counted {
    /// One more than bounds; not cumulative.
    pub counts: Vec<u64>,
    /// Of each bucket the latest.
    pub exemplars: Vec<Option<Exemplar>>,
    pub native: Native,
    pub sum: f64,
}

/// An observation of a request whose trace is recorded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Exemplar {
    pub value: f64,
    pub trace: TraceId,
    /// Seconds since 1970.
    pub at: f64,
}

/// A series as one scrape shows it.
pub(crate) struct Snapshot {
    /// By name.
    pub labels: Vec<LabelPair>,
    /// Upper, inclusive; without the infinite one.
    pub bounds: Arc<[f64]>,
    pub counted: Counted,
}

impl Histogram {
    fn new(labels: Vec<LabelPair>, bounds: Arc<[f64]>) -> Histogram {
        let counted = Mutex::new(Counted {
            counts: vec![0; bounds.len() + 1],
            exemplars: vec![None; bounds.len() + 1],
            native: Native::default(),
            sum: 0.0,
        });
        Histogram(Arc::new(Series {
            labels,
            bounds,
            counted,
        }))
    }

    /// Counts `value`, which is finite and not negative, as seconds and tokens are; anything else
    /// counts as the nearest that is.
    pub fn observe(&self, value: f64) {
        self.count(value, None);
    }

    /// The same, as a part of the work of `span`. If that is recorded, whoever looks at the histogram
    /// finds its trace.
    pub fn observe_in(&self, span: &Span, value: f64) {
        self.count(value, span.recorded());
    }

    fn count(&self, value: f64, trace: Option<TraceId>) {
        let value = match value.is_nan() {
            true => 0.0,
            false => value.clamp(0.0, f64::MAX),
        };
        let bucket = self.0.bounds.partition_point(|bound| *bound < value);
        let exemplar = trace.map(|trace| Exemplar {
            value,
            trace,
            at: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0.0, |since| since.as_secs_f64()),
        });
        let mut counted = self.0.counted.lock();
        counted.counts[bucket] += 1;
        counted.sum += value;
        counted.native.count(value);
        if exemplar.is_some() {
            counted.exemplars[bucket] = exemplar;
        }
    }

    /// The buckets' upper, inclusive bounds; without the infinite one.
    pub fn bounds(&self) -> &[f64] {
        &self.0.bounds
    }

    /// How many observations each bucket has, one more than there are bounds and not cumulative, and
    /// the sum of them all.
    pub fn counted(&self) -> (Vec<u64>, f64) {
        let counted = self.0.counted.lock();
        (counted.counts.clone(), counted.sum)
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            labels: self.0.labels.clone(),
            bounds: Arc::clone(&self.0.bounds),
            counted: self.0.counted.lock().clone(),
        }
    }
}

impl Snapshot {
    /// Each bound, the infinite one included, with how many observations are at most that, and an
    /// exemplar of those above the bound before.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64, Option<&Exemplar>)> {
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        let counted = &self.counted;
        let mut sum = 0;
        let below = counted.counts.iter().map(move |count| {
            sum += count;
            sum
        });
        let exemplars = counted.exemplars.iter().map(Option::as_ref);
        bounds
            .zip(below)
            .zip(exemplars)
            .map(|((bound, below), exemplar)| (bound, below, exemplar))
    }

    pub fn count(&self) -> u64 {
        self.counted.counts.iter().sum()
    }
}

impl prometheus::core::Metric for Histogram {
    fn metric(&self) -> proto::Metric {
        let snapshot = self.snapshot();
        let buckets = snapshot.buckets().map(|(bound, below, _)| {
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(bound);
            bucket.set_cumulative_count(below);
            bucket
        });
        let mut histogram = proto::Histogram::default();
        histogram.set_bucket(buckets.take(snapshot.bounds.len()).collect());
        histogram.set_sample_count(snapshot.count());
        histogram.set_sample_sum(snapshot.counted.sum);
        let mut metric = proto::Metric::from_label(snapshot.labels);
        metric.set_histogram(histogram);
        metric
    }
}

/// All series of a name. Cheap to clone; all clones are the same.
#[derive(Debug, Clone)]
pub struct HistogramVec(Arc<Family>);

#[derive(Debug)]
struct Family {
    desc: Desc,
    bounds: Arc<[f64]>,
    /// By the labels' values.
    series: Mutex<BTreeMap<Vec<String>, Histogram>>,
}

impl HistogramVec {
    /// `bounds`: the buckets' (see [`crate::buckets`]), rising. `labels`: names of those that tell
    /// series apart.
    pub(crate) fn new(
        opts: Opts,
        bounds: &[f64],
        labels: &[&str],
    ) -> Result<HistogramVec, prometheus::Error> {
        if !bounds.is_sorted_by(|a, b| a < b) || !bounds.iter().all(|bound| bound.is_finite()) {
            let name = &opts.name;
            return Err(prometheus::Error::Msg(format!(
                "the bounds of {name} are not finite and rising"
            )));
        }
        let labels = labels.iter().map(|&label| label.to_owned()).collect();
        let family = Family {
            desc: opts.variable_labels(labels).describe()?,
            bounds: bounds.into(),
            series: Mutex::default(),
        };
        Ok(HistogramVec(Arc::new(family)))
    }

    /// The series with these values of the labels.
    ///
    /// # Panics
    /// There are not as many values as labels.
    pub fn with_label_values(&self, values: &[&str]) -> Histogram {
        let Family {
            desc,
            bounds,
            series,
        } = &*self.0;
        assert_eq!(values.len(), desc.variable_labels.len(), "{}", desc.fq_name);
        let values: Vec<String> = values.iter().map(|&value| value.to_owned()).collect();
        let mut series = series.lock();
        if let Some(found) = series.get(&values) {
            return found.clone();
        }
        let variable = desc.variable_labels.iter().zip(&values);
        let variable = variable.map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name(name.clone());
            pair.set_value(value.clone());
            pair
        });
        let constant = desc.const_label_pairs.iter().cloned();
        let mut labels: Vec<LabelPair> = constant.chain(variable).collect();
        labels.sort();
        let made = Histogram::new(labels, Arc::clone(bounds));
        series.insert(values, made.clone());
        made
    }

    pub(crate) fn name(&self) -> &str {
        &self.0.desc.fq_name
    }

    pub(crate) fn snapshots(&self) -> Vec<Snapshot> {
        self.0
            .series
            .lock()
            .values()
            .map(Histogram::snapshot)
            .collect()
    }
}

impl Collector for HistogramVec {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.0.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut family = MetricFamily::default();
        family.set_name(self.0.desc.fq_name.clone());
        family.set_help(self.0.desc.help.clone());
        family.set_field_type(MetricType::HISTOGRAM);
        let metrics = self
            .0
            .series
            .lock()
            .values()
            .map(Histogram::metric)
            .collect();
        family.set_metric(metrics);
        vec![family]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_observed_both_kinds_of_buckets_add_up() {
        let family = HistogramVec::new(Opts::new("wait_seconds", "Wait"), &[1.0, 2.0], &[]);
        let waits = family.unwrap().with_label_values(&[]);
        for value in [0.0, -0.0, -1.0, f64::NAN, 1.0, 1.5, f64::INFINITY] {
            waits.observe(value);
        }
        assert_eq!(waits.counted(), (vec![5, 1, 1], f64::MAX));
        let Snapshot { counted, .. } = waits.snapshot();
        assert_eq!(counted.native.zeros(), 4);
        let (_, deltas) = counted.native.runs();
        // 1, 1.5 and what is far above, each alone.
        assert_eq!(deltas, [1, 0, 0]);
    }
}
