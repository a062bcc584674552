//! A sequence looks for workers.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;

use super::Run;
use crate::api::RequestError;
use crate::dispatch::pairing::{Ask, Blocks};
use crate::dispatch::placement::{Placement, place};

impl Run {
    /// Finds workers, waiting for them if there are none.
    pub(super) async fn place(&mut self) -> Result<Placement, RequestError> {
        let tokens: Vec<u32> = self
            .job
            .prompt
            .iter()
            .chain(&self.output)
            .copied()
            .collect();
        let mut blocks = Blocks::default();
        let dispatcher = Arc::clone(&self.dispatcher);
        // Subscribed before the first look, so that no change between looks is missed.
        let mut changes = dispatcher.roster.changes();
        let give_up = self.patience.give_up_at(Instant::now());
        loop {
            let now = Instant::now();
            let not_decode = self.patience.not_decode(now);
            let max_tokens = self.job.sampling.max_tokens;
            let lacking = blocks.lacking(dispatcher.roster.lock().fleet.model_revisions());
            for model_revision in lacking {
                blocks.add(model_revision, &self.job.cache_salt, &tokens);
            }
            let ask = Ask {
                tokens: tokens.len() as u32,
                blocks: &blocks,
                max_output: max_tokens.saturating_sub(self.output.len() as u32),
                // Other weights are better than no answer.
                model: self.model.as_deref().filter(|_| now < give_up),
                not_decode: &not_decode,
                not_prefill: self.patience.not_prefill(),
            };
            if let Some(placement) = place(&dispatcher.roster, &ask, &dispatcher.metrics, now) {
                return Ok(placement);
            }
            if now >= give_up {
                let waited = dispatcher.limits.worker_wait;
                let message = format!(
                    "no decode worker was available for {waited:?}; start one or see its log"
                );
                return Err(RequestError::Unavailable { message });
            }
            // Woken by a change, when a worker that was left out may be tried again, or to give up.
            let wake = self
                .patience
                .next_return()
                .into_iter()
                .chain([give_up])
                .min();
            wait_for(&mut changes, wake.unwrap_or(give_up)).await;
        }
    }
}

/// Returns at a change or at `until`.
async fn wait_for(changes: &mut watch::Receiver<()>, until: Instant) {
    // The sender lives as long as the roster; if it is gone, the deadline is what is left.
    let change = async {
        if changes.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let _ = tokio::time::timeout_at(until.into(), change).await;
}
