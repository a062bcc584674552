//! Files that may be replaced while the router runs: certificates and keys.
//!
//! Their content is read every few seconds and compared. That needs no notification, which volumes
//! of Kubernetes do not give reliably: an update of a Secret swaps a link, and on the file that was
//! watched nothing happens.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::metrics::Metrics;

/// Something that is read from files as a whole.
pub trait Source: Send + Sync + 'static {
    /// Equal if and only if the files say the same.
    type Value: Clone + PartialEq + Send;
    type Error: std::error::Error + Send;
    /// In logs and metrics.
    const NAME: &'static str;

    /// Reads the files; blocks.
    fn load(&self) -> Result<Self::Value, Self::Error>;
    /// From now on `value` counts.
    fn adopt(&self, value: Self::Value);
}

/// Looks every `interval` and adopts what is new. What cannot be used is logged once and counted each
/// time, and what was adopted last goes on.
pub async fn follow<S: Source>(
    source: Arc<S>,
    mut current: S::Value,
    interval: Duration,
    metrics: Arc<Metrics>,
) {
    let mut looks = interval_at(Instant::now() + interval, interval);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut said = None;
    loop {
        looks.tick().await;
        let from = Arc::clone(&source);
        // The files may lie on a volume that does not answer.
        let Ok(loaded) = tokio::task::spawn_blocking(move || from.load()).await else {
            continue;
        };
        match loaded {
            Ok(value) => {
                if said.take().is_some() {
                    tracing::info!("{} can be read again", S::NAME);
                }
                if value != current {
                    source.adopt(value.clone());
                    current = value;
                    metrics.reloaded(S::NAME, true);
                    tracing::info!("{} were replaced", S::NAME);
                }
            }
            Err(error) => {
                metrics.reloaded(S::NAME, false);
                let text = error.to_string();
                if said.as_ref() != Some(&text) {
                    tracing::error!(
                        error = text,
                        "new {} are not used, the old ones are",
                        S::NAME
                    );
                    said = Some(text);
                }
            }
        }
    }
}
