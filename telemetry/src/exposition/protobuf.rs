//! Prometheus' protobuf, the only format of its that has native histograms. Classic buckets and
//! exemplars are beside them: which of both a scraper keeps is its to say.
//!
//! The messages are those of
//! <https://github.com/prometheus/client_model/blob/master/io/prometheus/client/metrics.proto>, as far
//! as they are used.

use prometheus::proto::{LabelPair as Label, MetricType};
use prost::Message;

use super::Family;
use crate::histogram::{Exemplar as Seen, Snapshot, ZERO_THRESHOLD};

pub const CONTENT_TYPE: &str =
    "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";

#[derive(Clone, PartialEq, Message)]
struct MetricFamily {
    #[prost(string, optional, tag = "1")]
    name: Option<String>,
    #[prost(string, optional, tag = "2")]
    help: Option<String>,
    /// [`COUNTER`], [`GAUGE`] or [`HISTOGRAM`].
    #[prost(int32, optional, tag = "3")]
    kind: Option<i32>,
    #[prost(message, repeated, tag = "4")]
    metric: Vec<Metric>,
}

const COUNTER: i32 = 0;
const GAUGE: i32 = 1;
const HISTOGRAM: i32 = 4;

#[derive(Clone, PartialEq, Message)]
struct Metric {
    #[prost(message, repeated, tag = "1")]
    label: Vec<LabelPair>,
    #[prost(message, optional, tag = "2")]
    gauge: Option<Value>,
    #[prost(message, optional, tag = "3")]
    counter: Option<Value>,
    #[prost(message, optional, tag = "7")]
    histogram: Option<Histogram>,
}

#[derive(Clone, PartialEq, Message)]
struct LabelPair {
    #[prost(string, optional, tag = "1")]
    name: Option<String>,
    #[prost(string, optional, tag = "2")]
    value: Option<String>,
}

/// A gauge's or a counter's.
#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(double, optional, tag = "1")]
    value: Option<f64>,
}

#[derive(Clone, PartialEq, Message)]
struct Histogram {
    #[prost(uint64, optional, tag = "1")]
    sample_count: Option<u64>,
    #[prost(double, optional, tag = "2")]
    sample_sum: Option<f64>,
    #[prost(message, repeated, tag = "3")]
    bucket: Vec<Bucket>,
    #[prost(sint32, optional, tag = "5")]
    schema: Option<i32>,
    #[prost(double, optional, tag = "6")]
    zero_threshold: Option<f64>,
    #[prost(uint64, optional, tag = "7")]
    zero_count: Option<u64>,
    #[prost(message, repeated, tag = "12")]
    positive_span: Vec<BucketSpan>,
    #[prost(sint64, repeated, packed = "false", tag = "13")]
    positive_delta: Vec<i64>,
}

#[derive(Clone, PartialEq, Message)]
struct Bucket {
    #[prost(uint64, optional, tag = "1")]
    cumulative_count: Option<u64>,
    #[prost(double, optional, tag = "2")]
    upper_bound: Option<f64>,
    #[prost(message, optional, tag = "3")]
    exemplar: Option<Exemplar>,
}

#[derive(Clone, PartialEq, Message)]
struct BucketSpan {
    #[prost(sint32, optional, tag = "1")]
    offset: Option<i32>,
    #[prost(uint32, optional, tag = "2")]
    length: Option<u32>,
}

#[derive(Clone, PartialEq, Message)]
struct Exemplar {
    #[prost(message, repeated, tag = "1")]
    label: Vec<LabelPair>,
    #[prost(double, optional, tag = "2")]
    value: Option<f64>,
    #[prost(message, optional, tag = "3")]
    timestamp: Option<Timestamp>,
}

#[derive(Clone, PartialEq, Message)]
struct Timestamp {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

/// One message after another, each behind its length.
pub fn encode(families: &[Family]) -> Vec<u8> {
    (families.iter())
        .flat_map(|one| family(one).encode_length_delimited_to_vec())
        .collect()
}

fn family(Family { inner, histograms }: &Family) -> MetricFamily {
    let kind = match inner.get_field_type() {
        MetricType::COUNTER => COUNTER,
        MetricType::HISTOGRAM => HISTOGRAM,
        _ => GAUGE,
    };
    let metrics = inner.get_metric().iter();
    let with = |label: &[Label]| Metric {
        label: label.iter().map(|l| pair(l.name(), l.value())).collect(),
        ..Metric::default()
    };
    let value = |value: f64| Some(Value { value: Some(value) });
    let metric = match kind {
        COUNTER => metrics
            .map(|metric| Metric {
                counter: value(metric.get_counter().get_value()),
                ..with(metric.get_label())
            })
            .collect(),
        GAUGE => metrics
            .map(|metric| Metric {
                gauge: value(metric.get_gauge().get_value()),
                ..with(metric.get_label())
            })
            .collect(),
        _ => (histograms.iter())
            .map(|snapshot| Metric {
                histogram: Some(histogram(snapshot)),
                ..with(&snapshot.labels)
            })
            .collect(),
    };
    MetricFamily {
        name: Some(inner.name().to_owned()),
        help: Some(inner.help().to_owned()),
        kind: Some(kind),
        metric,
    }
}

fn pair(name: &str, value: &str) -> LabelPair {
    LabelPair {
        name: Some(name.to_owned()),
        value: Some(value.to_owned()),
    }
}

fn histogram(snapshot: &Snapshot) -> Histogram {
    let native = &snapshot.counted.native;
    let (runs, deltas) = native.runs();
    let buckets = snapshot.buckets().map(|(bound, below, seen)| Bucket {
        cumulative_count: Some(below),
        upper_bound: Some(bound),
        exemplar: seen.map(exemplar),
    });
    let spans = runs.iter().map(|run| BucketSpan {
        offset: Some(run.offset),
        length: Some(run.length),
    });
    Histogram {
        sample_count: Some(snapshot.count()),
        sample_sum: Some(snapshot.counted.sum),
        bucket: buckets.collect(),
        schema: Some(native.schema()),
        // Said even if nothing was observed yet: it tells a native histogram from a classic one.
        zero_threshold: Some(ZERO_THRESHOLD),
        zero_count: Some(native.zeros()),
        positive_span: spans.collect(),
        positive_delta: deltas,
    }
}

fn exemplar(Seen { value, trace, at }: &Seen) -> Exemplar {
    Exemplar {
        label: vec![pair("trace_id", &trace.to_string())],
        value: Some(*value),
        timestamp: Some(Timestamp {
            seconds: *at as i64,
            nanos: (at.fract() * 1e9) as i32,
        }),
    }
}
