//! The autoscaler, as the operator asks it.

use millrace_autoscaler::policy::{Behavior, Direction, Objectives, PoolPolicy, ScaleToZero};
use millrace_autoscaler::{ByRole, Memory, Observation, Policy as Rules, decide};

use super::{Policy, Setup};

pub(super) struct Ours {
    rules: Rules,
    memory: Memory,
    interval: f64,
}

impl Ours {
    pub(super) fn new(setup: Setup) -> Ours {
        let pool = PoolPolicy {
            min: setup.scaling.min,
            max: setup.max(),
            ranks: setup.replica,
            gpus: setup.replica,
        };
        let behavior = Behavior::default();
        let scaling = setup.scaling;
        let rules = Rules {
            objectives: Objectives {
                ttft_seconds: Some(setup.objectives.ttft),
                itl_seconds: Some(setup.objectives.itl),
                ..Objectives::default()
            },
            pools: ByRole {
                prefill: pool,
                decode: pool,
            },
            max_gpus: Some(setup.gpus),
            behavior: Behavior {
                down: Direction {
                    stabilization_seconds: scaling.down_stabilization,
                    ..behavior.down
                },
                ..behavior
            },
            scale_to_zero: scaling
                .scale_to_zero
                .map(|idle_seconds| ScaleToZero { idle_seconds }),
            schedule: Vec::new(),
            cold_start_seconds: setup.cold_start,
            local_prefill_tokens: setup.local_prefill_tokens,
            model: setup.model,
        };
        Ours {
            rules,
            memory: Memory::default(),
            interval: scaling.interval,
        }
    }
}

impl Policy for Ours {
    fn period(&self) -> f64 {
        self.interval
    }

    fn decide(&mut self, observation: &Observation) -> ByRole<u32> {
        match decide(&self.rules, observation, &mut self.memory) {
            Ok(decision) => decision.desired,
            // Bounds come from the scenario's size alone, and its check would have refused these.
            Err(refused) => panic!("the autoscaler refuses the scenario's policy: {refused}"),
        }
    }
}
