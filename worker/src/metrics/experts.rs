//! How often experts were chosen, read when somebody scrapes: a series a layer at most. How it is
//! spread over experts and ranks is the router's to show.

use std::sync::Arc;

use prometheus::{IntCounterVec, core::Collector};

use millrace_engine::ExpertCounts;

use super::{
    Metrics,
    mirror::{Mirror, mirror},
};

pub struct ExpertCollector {
    counts: Arc<ExpertCounts>,
    chosen: IntCounterVec,
    computed: IntCounterVec,
}

impl ExpertCollector {
    pub fn new(
        metrics: &Metrics,
        counts: Arc<ExpertCounts>,
    ) -> Result<ExpertCollector, prometheus::Error> {
        let counter = |name, help| IntCounterVec::new(metrics.opts(name, help), &["layer"]);
        Ok(ExpertCollector {
            counts,
            chosen: counter(
                "expert_choices_total",
                "Experts that the gate of each MoE layer chose for this worker's own rows",
            )?,
            computed: counter(
                "expert_products_total",
                "Rows times experts that this worker computed in each MoE layer, for any rank",
            )?,
        })
    }
}

impl Mirror for ExpertCollector {
    fn update(&self) {
        let chosen = self.counts.chosen();
        let computed = self.counts.computed();
        for (layer, computed) in computed.into_iter().enumerate() {
            let label = layer.to_string();
            let label = [label.as_str()];
            let chosen = chosen.layer(layer).iter().sum();
            mirror(&self.chosen.with_label_values(&label), chosen);
            mirror(&self.computed.with_label_values(&label), computed);
        }
    }

    fn metrics(&self) -> Vec<&dyn Collector> {
        vec![&self.chosen, &self.computed]
    }
}
