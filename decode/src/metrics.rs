//! Durations of a request's stages, and prefills that failed.

use prometheus::IntCounterVec;

use millrace_telemetry::{Histogram, buckets};
use millrace_worker::metrics::Metrics;

use crate::failure::PrefillFailure;

pub struct DecodeMetrics {
    pub queue_seconds: Histogram,
    pub local_prefill_seconds: Histogram,
    pub remote_prefill_seconds: Histogram,
    pub first_step_seconds: Histogram,
    pub prefill_failures: IntCounterVec,
}

impl DecodeMetrics {
    pub fn new(metrics: &Metrics) -> Result<DecodeMetrics, prometheus::Error> {
        let [local_prefill_seconds, remote_prefill_seconds] = metrics.histograms(
            "request_prefill_time_seconds",
            "From the end of a request's wait to its first token: computed here (local), or asked of a prefill worker (remote), with its wait, its computing, what transfer adds, and the call",
            &buckets::SECONDS,
            "prefill",
            ["local", "remote"],
        )?;
        Ok(DecodeMetrics {
            local_prefill_seconds,
            remote_prefill_seconds,
            queue_seconds: metrics.histogram(
                "request_queue_time_seconds",
                "From a request's arrival to its first rows being computed, or to its pages being reserved for a prefill worker",
                &buckets::SECONDS,
            )?,
            first_step_seconds: metrics.histogram(
                "request_first_step_time_seconds",
                "From a request's first token to its next: its wait for a decode step, and that step",
                &buckets::SHORT_SECONDS,
            )?,
            prefill_failures: metrics.counters(
                "remote_prefill_failures_total",
                "Requests given back to the router because their prefill worker failed",
                "reason",
                &PrefillFailure::LABELS,
            )?,
        })
    }
}
