//! How often experts were chosen, told to one router.

use std::{sync::Arc, time::Duration};

use tokio::time::{Interval, MissedTickBehavior, interval};

use millrace_engine::ExpertCounts;
use millrace_proto::worker::v1 as wire;

use super::messages::{counts_message, expert_counts};

/// Counts only tell how load shifts, which takes many seconds.
const PERIOD: Duration = Duration::from_secs(1);

/// Sums, whenever they have changed, once a period.
pub struct ExpertReports {
    counts: Option<Arc<ExpertCounts>>,
    told: wire::ExpertCounts,
    period: Interval,
}

impl ExpertReports {
    /// `None`: the model has no experts, and nothing is told.
    pub fn new(counts: Option<Arc<ExpertCounts>>) -> ExpertReports {
        let mut period = interval(PERIOD);
        period.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ExpertReports {
            // A router takes sums for zero until it is told of others.
            told: counts.as_deref().map(zeros).unwrap_or_default(),
            counts,
            period,
        }
    }

    /// May be dropped and called again: nothing is lost with it.
    pub async fn next(&mut self) -> wire::WorkerMessage {
        let Some(counts) = &self.counts else {
            return std::future::pending().await;
        };
        loop {
            self.period.tick().await;
            let now = expert_counts(counts);
            if now != self.told {
                self.told.clone_from(&now);
                return counts_message(now);
            }
        }
    }
}

fn zeros(counts: &ExpertCounts) -> wire::ExpertCounts {
    let counts = expert_counts(counts);
    wire::ExpertCounts {
        chosen: vec![0; counts.chosen.len()],
        computed: vec![0; counts.computed.len()],
    }
}
