//! Durations of a request's stages, and prefills that failed.

use prometheus::{Histogram, IntCounterVec};

use millrace_telemetry::buckets;
use millrace_worker::metrics::Metrics;

pub struct DecodeMetrics {
    pub queue_seconds: Histogram,
    pub prefill_seconds: Histogram,
    pub prefill_failures: IntCounterVec,
}

impl DecodeMetrics {
    pub fn new(metrics: &Metrics) -> Result<DecodeMetrics, prometheus::Error> {
        Ok(DecodeMetrics {
            queue_seconds: metrics.histogram(
                "request_queue_time_seconds",
                "From a request's arrival to its pages being reserved for a prefill worker",
                &buckets::SECONDS,
            )?,
            prefill_seconds: metrics.histogram(
                "request_prefill_time_seconds",
                "From then (for a local prefill, from its arrival) to its first token",
                &buckets::SECONDS,
            )?,
            prefill_failures: metrics.counters(
                "remote_prefill_failures_total",
                "Requests given back to the router because their prefill worker failed",
                "reason",
            )?,
        })
    }
}
