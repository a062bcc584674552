//! What is wanted of a deployment.

mod validate;

use serde::{Deserialize, Serialize};

use crate::{ByRole, PerformanceModel, Role};

/// All times in seconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    pub objectives: Objectives,
    pub pools: ByRole<PoolPolicy>,
    /// Most GPUs of both pools together. `None`: only the pools' own maxima count.
    pub max_gpus: Option<u32>,
    pub behavior: Behavior,
    /// `None`: the minima hold always.
    pub scale_to_zero: Option<ScaleToZero>,
    pub schedule: Vec<Hint>,
    /// From the decision for one more replica until it takes requests. Load that grows is scaled for as
    /// it will be then, and hints take effect so much earlier.
    pub cold_start_seconds: f64,
    /// Prompts with at most so many tokens to compute are computed by decode workers themselves.
    pub local_prefill_tokens: u32,
    pub model: PerformanceModel,
}

/// Each is met if at least `quantile` of all is at or below it. `None`: not looked at. Those that are
/// bounds of the routers' buckets are judged exactly; between two bounds a little is left to guess.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Objectives {
    /// Of all three, 0.5 to 0.999. Usually 0.95.
    pub quantile: f64,
    /// Time to first token.
    pub ttft_seconds: Option<f64>,
    /// Inter-token latency.
    pub itl_seconds: Option<f64>,
    /// Waiting at the router.
    pub queue_seconds: Option<f64>,
}

/// Prefill with `max` 0 is an aggregated deployment: decode workers compute all prompts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolPolicy {
    pub min: u32,
    pub max: u32,
    /// Workers that one replica is made of: 1, or the ranks of a group.
    pub ranks: u32,
    /// That one replica takes.
    pub gpus: u32,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Behavior {
    pub up: Direction,
    pub down: Direction,
    /// The share by which demand may be off without a change: the predicted objectives hold with so much
    /// more than was seen. 0 to 1, usually 0.1.
    pub tolerance: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Direction {
    /// A change is made only if every look of the last so many seconds wanted it.
    pub stabilization_seconds: f64,
    /// Most replicas a pool changes by within `period_seconds`.
    pub max_step: u32,
    pub period_seconds: f64,
}

/// Both pools go to 0 after so long without a sequence, whatever their minima; the first sequence brings
/// them back and waits for a cold start.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScaleToZero {
    pub idle_seconds: f64,
}

/// At some times there are at least so many replicas, as far as maxima and budget allow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hint {
    /// For people.
    pub name: String,
    /// Monday first.
    pub days: [bool; 7],
    /// Seconds after midnight UTC, of one of `days`.
    pub from: u32,
    /// If it is not after `from`, it is of the day after.
    pub until: u32,
    pub min: ByRole<u32>,
}

impl Default for Objectives {
    fn default() -> Self {
        Objectives {
            quantile: 0.95,
            ttft_seconds: None,
            itl_seconds: None,
            queue_seconds: None,
        }
    }
}

impl Default for Behavior {
    fn default() -> Self {
        Behavior {
            up: Direction {
                stabilization_seconds: 0.0,
                max_step: u32::MAX,
                period_seconds: 60.0,
            },
            down: Direction {
                stabilization_seconds: 600.0,
                max_step: u32::MAX,
                period_seconds: 60.0,
            },
            tolerance: 0.1,
        }
    }
}

/// A policy that contradicts itself or holds a number that means nothing.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PolicyError {
    #[error("{role:?}: min {min} is above max {max}; lower min or raise max")]
    Bounds { role: Role, min: u32, max: u32 },
    #[error("the minima of both pools take {needed} GPUs, but maxGpus is {max_gpus}; raise it")]
    Budget { needed: u64, max_gpus: u32 },
    #[error("{field} is {value}, but must be {must}")]
    Value {
        field: &'static str,
        value: f64,
        must: &'static str,
    },
}

impl Policy {
    /// Replicas there are at least while anything is served.
    pub(crate) fn minimum(&self) -> ByRole<u32> {
        let one = |pool: PoolPolicy| pool.min.max(1).min(pool.max);
        self.pools.map(|_, pool| one(*pool))
    }
}
