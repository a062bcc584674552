//! What the engine counts, read when somebody scrapes.

use prometheus::{
    Gauge, GaugeVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, core::Collector,
};

use millrace_engine::LocalPrefillReason;

use super::{
    Metrics,
    mirror::{Mirror, mirror},
};
use crate::engine::EngineState;

/// Reads an engine.
pub type EngineReader = Box<dyn Fn() -> EngineReading + Send + Sync>;

#[derive(Default)]
pub struct EngineReading {
    pub state: EngineState,
    /// Pages that are cached and can be had, read after the state.
    pub evictable: usize,
}

pub struct EngineCollector {
    read: EngineReader,
    running: IntGauge,
    waiting: IntGauge,
    remote: IntGauge,
    limit: IntGauge,
    waiting_tokens: IntGauge,
    usage: Gauge,
    pages: IntGaugeVec,
    info: GaugeVec,
    prompt_tokens: IntCounter,
    generation_tokens: IntCounter,
    cache_queries: IntCounter,
    cache_hits: IntCounter,
    preemptions: IntCounter,
    drafts: IntCounter,
    drafts_accepted: IntCounter,
    local_prefills: IntCounterVec,
    remote_prefills: IntCounter,
}

impl EngineCollector {
    pub fn new(
        metrics: &Metrics,
        read: EngineReader,
        page_tokens: usize,
        max_running: usize,
    ) -> Result<EngineCollector, prometheus::Error> {
        let gauge = |name, help| IntGauge::with_opts(metrics.opts(name, help));
        let counter = |name, help| IntCounter::with_opts(metrics.opts(name, help));
        let info = GaugeVec::new(
            metrics.opts(
                "cache_config_info",
                "The KV cache's shape: tokens a page and pages",
            ),
            &["block_size", "num_gpu_blocks"],
        )?;
        let pages = read().state.status.total_pages;
        info.with_label_values(&[&page_tokens.to_string(), &pages.to_string()])
            .set(1.0);
        let limit = gauge(
            "max_num_seqs",
            "The most sequences that may run, those at a peer included",
        )?;
        limit.set(max_running as i64);
        Ok(EngineCollector {
            read,
            limit,
            running: gauge("num_requests_running", "Sequences that take part in steps")?,
            waiting: gauge(
                "num_requests_waiting",
                "Sequences that wait for pages or a turn",
            )?,
            remote: gauge(
                "num_requests_remote_prefill",
                "Sequences that a prefill worker computes at this moment",
            )?,
            waiting_tokens: gauge(
                "waiting_tokens",
                "Tokens of running and waiting sequences that are yet to be computed",
            )?,
            usage: Gauge::with_opts(metrics.opts(
                "kv_cache_usage_perc",
                "KV pages that are neither free nor evictable, from 0 to 1",
            ))?,
            pages: IntGaugeVec::new(
                metrics.opts(
                    "kv_pages",
                    "KV pages: free, cached and evictable, used by sequences, leased to a peer",
                ),
                &["state"],
            )?,
            info,
            prompt_tokens: counter(
                "prompt_tokens_total",
                "Prompt tokens prefilled, here or by a peer; cached ones are not among them",
            )?,
            generation_tokens: counter("generation_tokens_total", "Tokens generated")?,
            cache_queries: counter(
                "prefix_cache_queries_total",
                "Tokens looked up in the prefix cache",
            )?,
            cache_hits: counter(
                "prefix_cache_hits_total",
                "Tokens found in the prefix cache",
            )?,
            preemptions: counter(
                "num_preemptions_total",
                "Sequences that gave their pages back to be computed again later",
            )?,
            drafts: counter(
                "spec_decode_num_drafts_total",
                "MTP drafts that the main model checked, of one token each",
            )?,
            drafts_accepted: counter(
                "spec_decode_num_accepted_tokens_total",
                "MTP drafts that were right",
            )?,
            local_prefills: IntCounterVec::new(
                metrics.opts(
                    "local_prefills_total",
                    "Requests prefilled by the decode worker itself, by reason",
                ),
                &["reason"],
            )?,
            remote_prefills: counter(
                "remote_prefills_total",
                "Requests prefilled by a prefill worker",
            )?,
        })
    }
}

impl Mirror for EngineCollector {
    fn update(&self) {
        let EngineReading { state, evictable } = (self.read)();
        let EngineState {
            status, counters, ..
        } = state;
        self.running.set(status.running as i64);
        self.waiting.set(status.waiting as i64);
        self.remote.set(status.remote as i64);
        self.waiting_tokens.set(status.waiting_tokens as i64);

        // Pages move between the two readings, so differences may be off by a few for a moment.
        let cached = evictable.min(status.free_pages);
        let held = status.total_pages.saturating_sub(status.free_pages);
        self.usage
            .set(held as f64 / status.total_pages.max(1) as f64);
        for (state, pages) in [
            ("free", status.free_pages - cached),
            ("cached", cached),
            ("used", held.saturating_sub(status.leased_pages)),
            ("leased", status.leased_pages),
        ] {
            self.pages.with_label_values(&[state]).set(pages as i64);
        }

        mirror(&self.prompt_tokens, counters.prompt_tokens);
        mirror(&self.generation_tokens, counters.generated_tokens);
        mirror(&self.cache_queries, counters.prefix_queries);
        mirror(&self.cache_hits, counters.prefix_hits);
        mirror(&self.preemptions, counters.preemptions);
        mirror(&self.drafts, counters.drafts);
        mirror(&self.drafts_accepted, counters.drafts_accepted);
        mirror(&self.remote_prefills, counters.remote_prefills);
        for reason in LocalPrefillReason::ALL {
            let count = counters.local_prefills[reason as usize];
            mirror(
                &self.local_prefills.with_label_values(&[reason.label()]),
                count,
            );
        }
    }

    fn metrics(&self) -> Vec<&dyn Collector> {
        vec![
            &self.running,
            &self.waiting,
            &self.remote,
            &self.limit,
            &self.waiting_tokens,
            &self.usage,
            &self.pages,
            &self.info,
            &self.prompt_tokens,
            &self.generation_tokens,
            &self.cache_queries,
            &self.cache_hits,
            &self.preemptions,
            &self.drafts,
            &self.drafts_accepted,
            &self.local_prefills,
            &self.remote_prefills,
        ]
    }
}
