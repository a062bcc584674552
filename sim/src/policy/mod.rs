//! Who says how many replicas there should be.
//!
//! [`ours`] is the autoscaler as it is. The others are here to be compared with, and nowhere else.

mod fixed;
mod hpa;
mod ours;
mod planner;

use millrace_autoscaler::{ByRole, Observation, PerformanceModel, model};
use serde::{Deserialize, Serialize};

use crate::scenario::{Objectives, Scenario};

/// What decides on replicas, in the order of columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PolicyName {
    /// The project's autoscaler.
    #[default]
    Millrace,
    /// Kubernetes' HorizontalPodAutoscaler on what waits.
    Hpa,
    /// Prefill and decode each by themselves, from a profile, every so often: as NVIDIA Dynamo's planner.
    Planner,
    /// As many as the peak needs, always.
    Static,
}

impl PolicyName {
    pub const ALL: [PolicyName; 4] = [Self::Millrace, Self::Hpa, Self::Planner, Self::Static];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Millrace => "millrace",
            Self::Hpa => "hpa",
            Self::Planner => "planner",
            Self::Static => "static",
        }
    }
}

/// Bounds of both pools and how often they are looked at. Seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Scaling {
    /// Between two looks of `millrace`, as its operator has it: routers say something every 5 s.
    pub interval: f64,
    /// Between two looks of `hpa`: its controller's default.
    pub hpa_interval: f64,
    /// Fewest replicas of a role.
    pub min: u32,
    /// How long fewer must suffice before there are fewer: of `millrace`.
    pub down_stabilization: f64,
    /// Both pools go to 0 after so long without a request: of `millrace`.
    pub scale_to_zero: Option<f64>,
    /// What waits for each replica that the HPA aims at: prompts for prefill, sequences for decode.
    pub hpa_prefill_target: f64,
    pub hpa_decode_target: f64,
    /// Between two adjustments of `planner`.
    pub planner_interval: f64,
}

impl Default for Scaling {
    fn default() -> Scaling {
        Scaling {
            interval: 5.0,
            hpa_interval: 15.0,
            min: 1,
            down_stabilization: 300.0,
            scale_to_zero: None,
            hpa_prefill_target: 2.0,
            hpa_decode_target: 160.0,
            planner_interval: 180.0,
        }
    }
}

/// Everything that a policy may know beforehand.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    pub objectives: Objectives,
    pub scaling: Scaling,
    pub model: PerformanceModel,
    pub cold_start: f64,
    /// Workers, and GPUs, of a replica.
    pub replica: u32,
    pub gpus: u32,
    pub local_prefill_tokens: u32,
    pub peak: ByRole<u32>,
}

/// One decision a look; the replicas there should be.
pub trait Policy {
    /// Seconds between two looks.
    fn period(&self) -> f64;

    /// How many replicas of each role there should be, and what to note in the report.
    fn decide(&mut self, observation: &Observation) -> ByRole<u32>;
}

pub fn make(name: PolicyName, setup: Setup) -> Box<dyn Policy> {
    match name {
        PolicyName::Millrace => Box::new(ours::Ours::new(setup)),
        PolicyName::Hpa => Box::new(hpa::Hpa::new(setup)),
        PolicyName::Planner => Box::new(planner::Planner::new(setup)),
        PolicyName::Static => Box::new(fixed::Fixed(setup.peak)),
    }
}

impl Setup {
    pub fn of(scenario: &Scenario, peak: ByRole<u32>) -> Setup {
        let (profile, step) = (&scenario.profile, &scenario.profile.step);
        let model = PerformanceModel {
            prefill: model::PrefillModel {
                chunk_tokens: profile.prefill.max_batch_tokens as u32,
                base_seconds: step.prefill_base(),
                seconds_per_token: step.token,
                seconds_per_token_context: step.token_context,
            },
            decode: model::DecodeModel {
                base_seconds: step.base,
                seconds_per_sequence: step.sequence,
                seconds_per_context_token: step.context,
            },
            max_running: profile.decode.max_running as u32,
            kv_tokens: 64 * profile.decode.kv_pages as u64,
        };
        Setup {
            objectives: scenario.objectives,
            scaling: scenario.scaling,
            model,
            cold_start: profile.start,
            replica: scenario.replica_gpus(),
            gpus: scenario.gpus,
            local_prefill_tokens: profile.decode.local_prefill_tokens as u32,
            peak,
        }
    }

    /// Most replicas of one role: the other keeps its fewest.
    fn max(&self) -> u32 {
        (self.gpus / self.replica)
            .saturating_sub(self.scaling.min)
            .max(1)
    }

    /// Brings what is asked for within bounds. Where both together are too many, each gives up its part.
    fn bound(&self, wanted: ByRole<u32>) -> ByRole<u32> {
        let (min, max) = (self.scaling.min.max(1), self.max());
        let mut wanted = wanted.map(|_, &n| n.clamp(min, max));
        let room = self.gpus / self.replica;
        let all = wanted.prefill + wanted.decode;
        if all > room {
            let part = f64::from(wanted.prefill) * f64::from(room) / f64::from(all);
            wanted.prefill = (part.round() as u32).clamp(min, room - min);
            wanted.decode = room - wanted.prefill;
        }
        wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{StepTime, Work};

    #[test]
    fn policies_are_told_what_steps_take() {
        let mut scenario = Scenario::parse(include_str!("../../scenarios/step-up.yaml")).unwrap();
        let step = StepTime {
            prefill_base: Some(20e-3),
            ..scenario.profile.step.clone()
        };
        scenario.profile.step = step.clone();
        let model = Setup::of(&scenario, ByRole::default()).model;
        let (tokens, cached) = (1000, 500);
        let mut prefill = Work::default();
        prefill.chunk(tokens, cached);
        let told = model.prefill.seconds(tokens as f64, cached as f64);
        assert!((told / step.of(&prefill, 1) - 1.0).abs() < 1e-9);
        let decode = Work {
            decoding: 7,
            context: 7 * 300,
            ..Work::default()
        };
        let told = model.decode.step_seconds(7.0, 300.0);
        assert!((told / step.of(&decode, 1) - 1.0).abs() < 1e-9);
    }
}
