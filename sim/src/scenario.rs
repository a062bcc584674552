//! What a run is asked for: a file in YAML.

use serde::{Deserialize, Serialize};

use crate::faults::Fault;
use crate::policy::{PolicyName, Scaling};
use crate::profile::Profile;
use crate::trace::Workload;

/// Times in seconds. Everything that has to do with size is given for each GPU or as a share of them, so that a
/// scenario means the same for 32 and for 2,000.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    pub name: String,
    /// For people: what it is about.
    #[serde(default)]
    pub about: String,
    /// GPUs of the cluster. A worker has one.
    #[serde(default = "default_gpus")]
    pub gpus: u32,
    /// Workers of a replica, of either role. `None`: 2 up to 64 GPUs, 8 up to 640, 32 above.
    #[serde(default)]
    pub replica: Option<u32>,
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// Arrivals stop then; what is with the workers then counts as running.
    pub duration: f64,
    /// What comes in before counts for nothing but the load it makes: an empty cluster is fast.
    #[serde(default)]
    pub warmup: f64,
    pub workload: Workload,
    pub objectives: Objectives,
    /// GPUs at the start, as shares of the cluster's.
    pub start: Shares,
    /// What the static policy has from the start on: enough for the peak.
    pub peak: Shares,
    #[serde(default)]
    pub policy: PolicyName,
    #[serde(default)]
    pub scaling: Scaling,
    #[serde(default)]
    pub profile: Profile,
    #[serde(default)]
    pub admission: Admission,
    #[serde(default)]
    pub faults: Vec<Fault>,
    /// The longest sequence, in tokens.
    #[serde(default = "default_max_model_len")]
    pub max_model_len: u32,
}

/// A request attains them if its first token and its mean time between tokens are within them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Objectives {
    pub ttft: f64,
    pub itl: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shares {
    pub prefill: f64,
    pub decode: f64,
}

/// The router's bounds, for each GPU of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admission {
    pub max_running: u32,
    pub max_waiting: u32,
    pub max_waiting_tokens: u64,
}

impl Default for Admission {
    fn default() -> Admission {
        Admission {
            max_running: 64,
            max_waiting: 16,
            max_waiting_tokens: 256 << 10,
        }
    }
}

fn default_gpus() -> u32 {
    32
}

fn default_seed() -> u64 {
    1
}

fn default_max_model_len() -> u32 {
    32_768
}

/// What is wrong with a scenario.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    #[error("cannot be read: {0}")]
    Yaml(Box<serde_saphyr::Error>),
    #[error("{field}: {problem}")]
    Value {
        field: &'static str,
        problem: &'static str,
    },
}

impl ScenarioError {
    /// Reads YAML, and thus JSON.
    pub(crate) fn read<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, ScenarioError> {
        serde_saphyr::from_str(text).map_err(|error| ScenarioError::Yaml(Box::new(error)))
    }
}

impl Scenario {
    /// # Errors
    /// Says where the text is no scenario, or which value is none.
    pub fn parse(yaml: &str) -> Result<Scenario, ScenarioError> {
        let scenario: Scenario = ScenarioError::read(yaml)?;
        scenario.check()?;
        Ok(scenario)
    }

    /// # Errors
    /// Names the first value that cannot be run.
    pub fn check(&self) -> Result<(), ScenarioError> {
        let value = |field, problem| Err(ScenarioError::Value { field, problem });
        let workload = &self.workload;
        if self.duration <= 0.0 || self.warmup < 0.0 || self.warmup >= self.duration {
            return value("duration", "must be positive, and longer than warmup");
        }
        let recorded = &workload.requests;
        if recorded.is_empty() && workload.shape.is_none() && workload.lengths.is_none() {
            return value("workload", "needs a shape, lengths or requests");
        }
        if recorded.is_empty() && workload.rate.points.is_empty() {
            return value("workload.rate.points", "needs at least one [seconds, rate]");
        }
        if !recorded.is_empty()
            && (workload.sessions().is_some() || !workload.rate.points.is_empty())
        {
            return value("workload.requests", "stand instead of a rate and sessions");
        }
        let times = || recorded.iter().map(|&(at, ..)| at);
        if !times().all(|at| at >= 0.0 && at.is_finite()) || !times().is_sorted() {
            return value("workload.requests", "must be in order of time, from 0 on");
        }
        let times = workload.rate.points.windows(2);
        if times.into_iter().any(|pair| pair[1].0 < pair[0].0) {
            return value("workload.rate.points", "must be in order of time");
        }
        if workload
            .rate
            .points
            .iter()
            .any(|&(_, rate)| !(rate >= 0.0 && rate.is_finite()))
        {
            return value("workload.rate.points", "rates must not be negative");
        }
        if workload.sessions.is_some_and(|s| s.turns < 1.0) {
            return value("workload.sessions.turns", "must be at least 1");
        }
        for engine in [&self.profile.prefill, &self.profile.decode] {
            let pages = (self.max_model_len as usize).div_ceil(64);
            if engine.kv_pages < pages {
                return value("kv_pages", "must hold one sequence of max_model_len");
            }
            if engine.max_running == 0 || engine.max_batch_tokens == 0 {
                return value("max_running, max_batch_tokens", "must be at least 1");
            }
        }
        let batch = &self.profile.step.batch;
        let mut times = batch.iter();
        if !times.all(|[number, seconds]| *number >= 1.0 && *seconds >= 0.0)
            || !batch.windows(2).all(|pair| pair[0][0] < pair[1][0])
        {
            return value(
                "profile.step.batch",
                "must be [sequences, seconds] by number, from 1 on",
            );
        }
        if self.gpus < 2 * self.replica_gpus() {
            return value("gpus", "must be enough for a replica of each role");
        }
        for shares in [self.start, self.peak] {
            let sum = shares.prefill + shares.decode;
            if shares.prefill < 0.0 || shares.decode < 0.0 || sum > 1.0 + 1e-9 {
                return value(
                    "start, peak",
                    "must be shares of the cluster's GPUs, 1 in all at most",
                );
            }
        }
        let scaling = &self.scaling;
        for (name, seconds) in [
            ("scaling.interval", scaling.interval),
            ("scaling.hpa_interval", scaling.hpa_interval),
            ("scaling.planner_interval", scaling.planner_interval),
        ] {
            if seconds <= 0.0 {
                return value(name, "must be positive");
            }
        }
        Ok(())
    }

    /// The same load and faults, `times` as fast and for as much shorter: a run of thousands of GPUs has requests
    /// enough in a fraction of the time. Starts, drains, policies and clients take as long as ever, so that whoever
    /// follows the load has it harder. The name says so.
    ///
    /// # Panics
    /// If `times` is not positive.
    pub fn faster(mut self, times: f64) -> Scenario {
        assert!(times > 0.0, "{times} times as fast");
        if times == 1.0 {
            return self;
        }
        let recorded = self.workload.requests.iter_mut().map(|(at, ..)| at);
        let rate = &mut self.workload.rate;
        let wave = rate.wave.iter_mut().map(|wave| &mut wave.period);
        let bursts = rate.bursts.iter_mut();
        let bursts = bursts.flat_map(|bursts| [&mut bursts.every, &mut bursts.length]);
        let faults = self.faults.iter_mut();
        let faults = faults.flat_map(|fault| [&mut fault.at, &mut fault.lasts]);
        [&mut self.duration, &mut self.warmup]
            .into_iter()
            .chain(recorded)
            .chain(rate.points.iter_mut().map(|(at, _)| at))
            .chain(wave)
            .chain(bursts)
            .chain(faults)
            .for_each(|seconds| *seconds /= times);
        self.name = format!("{}-x{times}", self.name);
        self
    }

    /// GPUs, and thus workers, of a replica.
    pub fn replica_gpus(&self) -> u32 {
        let by_size = match self.gpus {
            0..=64 => 2,
            65..=640 => 8,
            _ => 32,
        };
        self.replica.unwrap_or(by_size).max(1)
    }
}
