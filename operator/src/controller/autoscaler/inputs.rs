//! What the decision is made on: the resource and the routers' words in the decision's own types. Pure.

use std::time::Duration;

use millrace_autoscaler as core;
use millrace_autoscaler::{
    ByRole, Observation, PerformanceModel, Policy, model, observation, policy,
};
use millrace_proto::worker::v1 as wire;

use super::target::Target;
use crate::api::{
    Day, PoolAutoscalerSpec, Profile, ReplicaBounds, Role, ScalingRules, ScheduledReplicas,
};
use crate::fleet::{DeploymentView, Routable, Traffic};

const DAYS: [Day; 7] = [
    Day::Mon,
    Day::Tue,
    Day::Wed,
    Day::Thu,
    Day::Fri,
    Day::Sat,
    Day::Sun,
];
const COLD_START_SECONDS: i32 = 60;

/// What a spec asks for of such a target, whose ranks take as long as `profile` says.
pub fn policy(spec: &PoolAutoscalerSpec, profile: &Profile, target: &Target) -> Policy {
    let defaults = policy::Behavior::default();
    let objectives = &spec.objectives;
    let seconds = |milliseconds: Option<i32>| milliseconds.map(|ms| f64::from(ms) / 1000.0);
    let pool = |role: core::Role, bounds: Option<&ReplicaBounds>| {
        let shape = target.shapes.of(role);
        policy::PoolPolicy {
            min: bounds.map_or(0, |bounds| count(bounds.min_replicas.unwrap_or(1))),
            max: bounds.map_or(0, |bounds| count(bounds.max_replicas)),
            ranks: shape.ranks.max(1),
            gpus: shape.gpus.max(1),
        }
    };
    let behavior = &spec.behavior;
    Policy {
        objectives: policy::Objectives {
            quantile: f64::from(objectives.percentile.unwrap_or(95)) / 100.0,
            ttft_seconds: seconds(objectives.ttft_milliseconds),
            itl_seconds: seconds(objectives.itl_milliseconds),
            queue_seconds: seconds(objectives.queue_milliseconds),
        },
        pools: ByRole {
            prefill: pool(core::Role::Prefill, spec.prefill.as_ref()),
            decode: pool(core::Role::Decode, Some(&spec.decode)),
        },
        max_gpus: spec.budget.map(|budget| count(budget.max_gpus)),
        behavior: policy::Behavior {
            up: direction(&behavior.scale_up, defaults.up),
            down: direction(&behavior.scale_down, defaults.down),
            tolerance: behavior
                .tolerance_percent
                .map_or(defaults.tolerance, |percent| f64::from(percent) / 100.0),
        },
        scale_to_zero: spec.scale_to_zero.map(|zero| policy::ScaleToZero {
            idle_seconds: f64::from(zero.idle_seconds),
        }),
        schedule: spec.schedule.iter().map(hint).collect(),
        cold_start_seconds: f64::from(spec.cold_start_seconds.unwrap_or(COLD_START_SECONDS)),
        local_prefill_tokens: target.local_prefill_tokens,
        model: model(profile),
    }
}

fn direction(rules: &ScalingRules, defaults: policy::Direction) -> policy::Direction {
    policy::Direction {
        stabilization_seconds: rules
            .stabilization_window_seconds
            .map_or(defaults.stabilization_seconds, f64::from),
        max_step: rules.max_step.map_or(defaults.max_step, count),
        period_seconds: rules
            .period_seconds
            .map_or(defaults.period_seconds, f64::from),
    }
}

fn hint(scheduled: &ScheduledReplicas) -> policy::Hint {
    policy::Hint {
        name: scheduled.name.clone(),
        days: DAYS.map(|day| scheduled.days.is_empty() || scheduled.days.contains(&day)),
        from: of_day(&scheduled.from),
        until: of_day(&scheduled.until),
        min: ByRole {
            prefill: count(scheduled.prefill_replicas.unwrap_or(0)),
            decode: count(scheduled.decode_replicas.unwrap_or(0)),
        },
    }
}

/// Seconds after midnight of `HH:MM`, which the definition has checked.
fn of_day(time: &str) -> u32 {
    let parts = time.split_once(':');
    let number = |text: &str| text.parse::<u32>().unwrap_or(0);
    parts.map_or(0, |(hours, minutes)| {
        number(hours) * 3600 + number(minutes) * 60
    })
}

pub fn model(profile: &Profile) -> PerformanceModel {
    let (prefill, decode) = (&profile.prefill, &profile.decode);
    PerformanceModel {
        prefill: model::PrefillModel {
            chunk_tokens: prefill.chunk_tokens,
            base_seconds: prefill.base_seconds,
            seconds_per_token: prefill.seconds_per_token,
            seconds_per_token_context: prefill.seconds_per_token_context,
        },
        decode: model::DecodeModel {
            base_seconds: decode.base_seconds,
            seconds_per_sequence: decode.seconds_per_sequence,
            seconds_per_context_token: decode.seconds_per_context_token,
        },
        max_running: profile.max_running,
        kv_tokens: profile.kv_tokens,
    }
}

/// What is seen now. `steady`: of a clock that never goes back; `unix`: since 1970.
pub fn observation(
    target: &Target,
    traffic: &Traffic,
    view: Option<&DeploymentView>,
    steady: Duration,
    unix: Duration,
) -> Observation {
    let routers: Vec<_> = traffic
        .counted
        .iter()
        .map(|counted| observation::Router {
            name: counted.router.to_string(),
            waiting: counted.waiting,
            traffic: sums(&counted.traffic),
        })
        .collect();
    let workers = view.into_iter().flat_map(|view| view.workers.values());
    Observation {
        now: steady.as_secs_f64(),
        unix_seconds: unix.as_secs(),
        routers_expected: narrow(traffic.counted.len() + traffic.unheard.len()),
        routers,
        workers: workers
            .filter(|worker| worker.attached)
            .filter_map(|worker| {
                Some(observation::Worker {
                    role: role(worker.role?),
                    // One that a new router has not found yet gets requests from the others.
                    available: !matches!(worker.routable, Routable::No(_)),
                    draining: worker.draining,
                    running: worker.running,
                    waiting: worker.waiting,
                    max_running: worker.max_running,
                    waiting_tokens: worker.waiting_tokens,
                    kv_pages: worker.kv_pages,
                    free_pages: worker.free_pages,
                })
            })
            .collect(),
        pools: target.pools,
        rollout: target.rollout,
    }
}

fn sums(traffic: &wire::Traffic) -> observation::Traffic {
    observation::Traffic {
        incarnation: traffic.incarnation,
        seconds: traffic.seconds,
        arrived: traffic.arrived,
        refused: traffic.refused,
        prompt_tokens: traffic.prompt_tokens,
        cached_prompt_tokens: traffic.cached_prompt_tokens,
        generated_tokens: traffic.generated_tokens,
        updates: traffic.updates,
        queue_seconds: distribution(traffic.queue_seconds.as_ref()),
        first_token_seconds: distribution(traffic.first_token_seconds.as_ref()),
        inter_token_seconds: distribution(traffic.inter_token_seconds.as_ref()),
        prompt_length: distribution(traffic.prompt_length.as_ref()),
        generation_length: distribution(traffic.generation_length.as_ref()),
    }
}

fn distribution(seen: Option<&wire::Distribution>) -> observation::Distribution {
    seen.map_or_else(observation::Distribution::default, |seen| {
        observation::Distribution {
            bounds: seen.bounds.clone(),
            counts: seen.counts.clone(),
            sum: seen.sum,
        }
    })
}

pub fn role(role: Role) -> core::Role {
    match role {
        Role::Prefill => core::Role::Prefill,
        Role::Decode => core::Role::Decode,
    }
}

fn count(n: i32) -> u32 {
    u32::try_from(n).unwrap_or(0)
}

fn narrow(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[path = "inputs_tests.rs"]
mod tests;
