//! How often experts were chosen, read when somebody scrapes: a series a layer at most. How it is
//! spread over experts and ranks is the router's to show.

use prometheus::{IntCounterVec, core::Collector};

use super::{
    Metrics,
    mirror::{Mirror, mirror},
};

/// Reads what an engine has counted.
pub type ExpertReader = Box<dyn Fn() -> Vec<LayerSums> + Send + Sync>;

/// Of one MoE layer.
pub struct LayerSums {
    pub chosen: u64,
    pub computed: u64,
}

pub struct ExpertCollector {
    read: ExpertReader,
    chosen: IntCounterVec,
    computed: IntCounterVec,
}

impl ExpertCollector {
    pub fn new(
        metrics: &Metrics,
        read: ExpertReader,
    ) -> Result<ExpertCollector, prometheus::Error> {
        let counter = |name, help| IntCounterVec::new(metrics.opts(name, help), &["layer"]);
        Ok(ExpertCollector {
            read,
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
        for (layer, sums) in (self.read)().into_iter().enumerate() {
            let label = layer.to_string();
            let label = [label.as_str()];
            mirror(&self.chosen.with_label_values(&label), sums.chosen);
            mirror(&self.computed.with_label_values(&label), sums.computed);
        }
    }

    fn metrics(&self) -> Vec<&dyn Collector> {
        vec![&self.chosen, &self.computed]
    }
}
