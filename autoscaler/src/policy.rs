//! What is wanted of a deployment.

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

/// More replicas than anybody has, so that no search is long.
const MOST_REPLICAS: u32 = 65_536;

impl Policy {
    /// # Errors
    /// What [`crate::decide`] would refuse.
    pub fn validate(&self) -> Result<(), PolicyError> {
        for role in [Role::Prefill, Role::Decode] {
            let PoolPolicy { min, max, .. } = *self.pools.of(role);
            if min > max {
                return Err(PolicyError::Bounds { role, min, max });
            }
        }
        self.check_pools()?;
        self.check_times()?;
        self.check_model()?;
        let gpus = self.pools.map(|_, pool| u64::from(pool.gpus));
        let minimum = self.minimum();
        let needed =
            gpus.prefill * u64::from(minimum.prefill) + gpus.decode * u64::from(minimum.decode);
        match self.max_gpus {
            Some(max_gpus) if needed > u64::from(max_gpus) => {
                Err(PolicyError::Budget { needed, max_gpus })
            }
            _ => Ok(()),
        }
    }

    fn check_pools(&self) -> Result<(), PolicyError> {
        let PoolPolicy { max, .. } = self.pools.decode;
        let most = max.max(self.pools.prefill.max);
        check("decode max", f64::from(max), max >= 1, "at least 1")?;
        check(
            "max",
            f64::from(most),
            most <= MOST_REPLICAS,
            "at most 65536",
        )?;
        for pool in [self.pools.prefill, self.pools.decode] {
            check(
                "ranks",
                f64::from(pool.ranks),
                pool.ranks >= 1,
                "at least 1",
            )?;
            check("gpus", f64::from(pool.gpus), pool.gpus >= 1, "at least 1")?;
        }
        Ok(())
    }

    fn check_times(&self) -> Result<(), PolicyError> {
        let Objectives {
            quantile,
            ttft_seconds,
            itl_seconds,
            queue_seconds,
        } = self.objectives;
        check(
            "quantile",
            quantile,
            (0.5..=0.999).contains(&quantile),
            "0.5 to 0.999",
        )?;
        let objectives = [
            ("ttftSeconds", ttft_seconds),
            ("itlSeconds", itl_seconds),
            ("queueSeconds", queue_seconds),
        ];
        for (field, value) in objectives {
            if let Some(value) = value {
                check(field, value, value > 0.0 && value.is_finite(), "above 0")?;
            }
        }
        let Behavior {
            up,
            down,
            tolerance,
        } = self.behavior;
        check(
            "tolerance",
            tolerance,
            (0.0..=1.0).contains(&tolerance),
            "0 to 1",
        )?;
        for direction in [up, down] {
            let times = [
                ("stabilizationSeconds", direction.stabilization_seconds),
                ("periodSeconds", direction.period_seconds),
            ];
            for (field, value) in times {
                not_negative(field, value)?;
            }
            let step = direction.max_step;
            check("maxStep", f64::from(step), step >= 1, "at least 1")?;
        }
        not_negative("coldStartSeconds", self.cold_start_seconds)?;
        if let Some(zero) = self.scale_to_zero {
            not_negative("idleSeconds", zero.idle_seconds)?;
        }
        for hint in &self.schedule {
            let (from, until) = (f64::from(hint.from), f64::from(hint.until));
            check("from", from, from < 86_400.0, "below 86400")?;
            check("until", until, until <= 86_400.0, "at most 86400")?;
        }
        Ok(())
    }

    fn check_model(&self) -> Result<(), PolicyError> {
        let (prefill, decode) = (&self.model.prefill, &self.model.decode);
        let coefficients = [
            ("prefill.baseSeconds", prefill.base_seconds),
            ("prefill.secondsPerToken", prefill.seconds_per_token),
            (
                "prefill.secondsPerTokenContext",
                prefill.seconds_per_token_context,
            ),
            ("decode.baseSeconds", decode.base_seconds),
            ("decode.secondsPerSequence", decode.seconds_per_sequence),
            (
                "decode.secondsPerContextToken",
                decode.seconds_per_context_token,
            ),
        ];
        for (field, value) in coefficients {
            not_negative(field, value)?;
        }
        let something = prefill.base_seconds + prefill.seconds_per_token;
        check(
            "prefill.secondsPerToken",
            something,
            something > 0.0,
            "above 0",
        )?;
        check(
            "decode.baseSeconds",
            decode.base_seconds,
            decode.base_seconds > 0.0,
            "above 0",
        )?;
        let (running, tokens) = (self.model.max_running, self.model.kv_tokens);
        check("maxRunning", f64::from(running), running >= 1, "at least 1")?;
        check("kvTokens", tokens as f64, tokens >= 1, "at least 1")
    }

    /// Replicas there are at least while anything is served.
    pub(crate) fn minimum(&self) -> ByRole<u32> {
        let one = |pool: PoolPolicy| pool.min.max(1).min(pool.max);
        self.pools.map(|_, pool| one(*pool))
    }
}

fn check(
    field: &'static str,
    value: f64,
    holds: bool,
    must: &'static str,
) -> Result<(), PolicyError> {
    match holds {
        true => Ok(()),
        false => Err(PolicyError::Value { field, value, must }),
    }
}

fn not_negative(field: &'static str, value: f64) -> Result<(), PolicyError> {
    // Three years: longer is a mistake.
    let holds = (0.0..=1e8).contains(&value);
    check(field, value, holds, "0 to 100000000")
}
