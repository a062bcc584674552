//! OpenMetrics' text, with exemplars.
//!
//! <https://github.com/prometheus/OpenMetrics/blob/main/specification/OpenMetrics.md>

use std::fmt::Write as _;

use prometheus::proto::{LabelPair, MetricType};

use super::Family;
use crate::histogram::{Exemplar, Snapshot};

pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub fn encode(families: &[Family]) -> String {
    let mut text = String::new();
    for family in families {
        // Writing to a string cannot fail.
        let _ = write_family(&mut text, family);
    }
    text + "# EOF\n"
}

fn write_family(text: &mut String, family: &Family) -> std::fmt::Result {
    let Family { inner, histograms } = family;
    let (name, kind) = match inner.get_field_type() {
        // The name of a counter is without what its samples end in.
        MetricType::COUNTER => (inner.name().trim_end_matches("_total"), "counter"),
        MetricType::HISTOGRAM => (inner.name(), "histogram"),
        _ => (inner.name(), "gauge"),
    };
    writeln!(text, "# HELP {name} {}", escaped(inner.help()))?;
    writeln!(text, "# TYPE {name} {kind}")?;
    for metric in inner.get_metric() {
        let labels = metric.get_label();
        match kind {
            "counter" => {
                let value = metric.get_counter().get_value();
                writeln!(text, "{name}_total{} {value}", Labels(labels, None))?;
            }
            "gauge" => {
                let value = metric.get_gauge().get_value();
                writeln!(text, "{name}{} {value}", Labels(labels, None))?;
            }
            _ => {}
        }
    }
    for histogram in histograms {
        write_histogram(text, name, histogram)?;
    }
    Ok(())
}

fn write_histogram(text: &mut String, name: &str, histogram: &Snapshot) -> std::fmt::Result {
    let labels = &histogram.labels;
    for (bound, below, exemplar) in histogram.buckets() {
        let with = Labels(labels, Some(bound));
        write!(text, "{name}_bucket{with} {below}")?;
        if let Some(Exemplar { value, trace, at }) = exemplar {
            write!(text, " # {{trace_id=\"{trace}\"}} {value} {at:.3}")?;
        }
        text.push('\n');
    }
    let (labels, count) = (Labels(labels, None), histogram.count());
    writeln!(text, "{name}_sum{labels} {}", histogram.counted.sum)?;
    writeln!(text, "{name}_count{labels} {count}")
}

/// `{name="value"}`, and of a bucket its bound.
struct Labels<'a>(&'a [LabelPair], Option<f64>);

impl std::fmt::Display for Labels<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Labels(pairs, bound) = self;
        if pairs.is_empty() && bound.is_none() {
            return Ok(());
        }
        let mut before = '{';
        for pair in *pairs {
            write!(f, "{before}{}=\"{}\"", pair.name(), escaped(pair.value()))?;
            before = ',';
        }
        if let Some(bound) = bound {
            write!(f, "{before}le=\"{}\"", canonical(*bound))?;
        }
        f.write_str("}")
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', r"\\")
        .replace('\n', r"\n")
        .replace('"', "\\\"")
}

/// A bound as OpenMetrics wants it, and as Prometheus 3 calls it whichever way it was told: what it
/// is written like is part of the series' name.
fn canonical(bound: f64) -> String {
    if bound.is_infinite() {
        return "+Inf".to_owned();
    }
    if bound != 0.0 && bound.abs() < 1e-4 {
        let scientific = format!("{bound:e}");
        let (digits, power) = scientific.split_once("e-").unwrap_or((&scientific, "0"));
        return format!("{digits}e-{power:0>2}");
    }
    // With a point always.
    format!("{bound:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_canonical() {
        let written = [
            0.00001,
            0.00003,
            0.0001,
            0.0025,
            1.0,
            131072.0,
            f64::INFINITY,
        ];
        let written = written.map(canonical);
        let canonical = [
            "1e-05", "3e-05", "0.0001", "0.0025", "1.0", "131072.0", "+Inf",
        ];
        assert_eq!(written, canonical);
    }
}
