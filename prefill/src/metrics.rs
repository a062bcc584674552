//! Durations of a prefill's stages.

use millrace_telemetry::{Histogram, buckets};
use millrace_worker::metrics::Metrics;

pub struct PrefillMetrics {
    pub queue_seconds: Histogram,
    pub prefill_seconds: Histogram,
    pub exposed_seconds: Histogram,
}

impl PrefillMetrics {
    pub fn new(metrics: &Metrics) -> Result<PrefillMetrics, prometheus::Error> {
        Ok(PrefillMetrics {
            queue_seconds: metrics.histogram(
                "request_queue_time_seconds",
                "From a prefill request's arrival to its first rows being computed",
                &buckets::SECONDS,
            )?,
            prefill_seconds: metrics.histogram(
                "request_prefill_time_seconds",
                "From its first rows being computed to its first token; other prompts share these steps",
                &buckets::SECONDS,
            )?,
            exposed_seconds: metrics.histogram(
                "transfer_exposed_seconds",
                "From the first token to the last page's acknowledgement: what transfer adds to the time to first token",
                &buckets::SHORT_SECONDS,
            )?,
        })
    }
}
