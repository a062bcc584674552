//! What goes wrong, and when.

use serde::{Deserialize, Serialize};

/// Times in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    pub at: f64,
    pub what: What,
    /// How long. Of a death: until the worker is back, empty. Of a restart: until the router is back.
    #[serde(rename = "for")]
    pub lasts: f64,
    /// Share of the workers that it hits, at least one.
    #[serde(default)]
    pub share: f64,
    /// How many times as long a slow worker's steps take.
    #[serde(default = "default_factor")]
    pub factor: f64,
}

fn default_factor() -> f64 {
    3.0
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    PrefillDeath,
    DecodeDeath,
    PrefillSlow,
    DecodeSlow,
    /// The autoscaler hears of no router.
    MetricsGap,
    /// All connections break. Requests on their way are lost, and workers attach again.
    RouterRestart,
}
