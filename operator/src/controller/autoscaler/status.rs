//! What a PoolAutoscaler's status says. Pure.
//!
//! - `Active`: there is a ModelDeployment, and nothing else says how many groups it has.
//! - `Frozen`: it is active, and knows too little to decide; groups stay as they are.
//! - `Limited`: other numbers than demand alone would ask for, and why.

use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use millrace_autoscaler::decision::{Frozen, Predicted, Seen as Numbers};
use millrace_autoscaler::{Decision, Role as Half, Status};

use super::target::{Barred, Target};
use super::words;
use crate::api::{
    AutoscalerStatus, Condition, Measured, PoolAutoscalerSpec, ScaledPool, SeenTraffic,
    set_condition,
};
use crate::fleet::Traffic;

/// Numbers alone are written so often.
const WRITTEN_EVERY: SignedDuration = SignedDuration::from_secs(60);

/// All that a status is made of, besides the previous one.
pub struct Seen<'a> {
    pub spec: &'a PoolAutoscalerSpec,
    pub target: &'a Target,
    pub decision: &'a Decision,
    pub traffic: &'a Traffic,
}

pub fn status(
    previous: &AutoscalerStatus,
    generation: Option<i64>,
    seen: &Seen<'_>,
    now: Timestamp,
) -> AutoscalerStatus {
    let decision = seen.decision;
    let numbers = decision.seen.as_ref();
    let objective = |milliseconds: Option<i32>,
                     measured: fn(&Numbers) -> Option<f64>,
                     predicted: fn(&Predicted) -> Option<f64>| {
        milliseconds.map(|milliseconds| {
            Measured::new(
                milliseconds,
                numbers.and_then(measured),
                decision.predicted.as_ref().and_then(predicted),
            )
        })
    };
    let objectives = &seen.spec.objectives;
    let mut next = AutoscalerStatus {
        observed_generation: generation,
        prefill: seen.spec.prefill.map(|_| pool(seen, Half::Prefill)),
        decode: pool(seen, Half::Decode),
        ttft: objective(
            objectives.ttft_milliseconds,
            |n| n.ttft_seconds,
            |p| p.ttft_seconds,
        ),
        itl: objective(
            objectives.itl_milliseconds,
            |n| n.itl_seconds,
            |p| p.itl_seconds,
        ),
        queue_time: objective(
            objectives.queue_milliseconds,
            |n| n.queue_seconds,
            |p| p.queue_seconds,
        ),
        traffic: numbers.map(traffic),
        bottleneck: words::bottleneck(decision.bottleneck).to_owned(),
        message: decision.message(),
        last_scale_time: match decision.changes() {
            true => Some(meta::Time(now)),
            false => previous.last_scale_time.clone(),
        },
        update_time: Some(meta::Time(now)),
        conditions: previous.conditions.clone(),
    };
    for condition in [
        active(decision),
        frozen(decision, seen.traffic),
        limited(decision),
    ] {
        set_condition(&mut next.conditions, condition, generation, now);
    }
    next
}

/// It must not scale: what was said of groups stays, as they do.
pub fn barred(
    previous: &AutoscalerStatus,
    generation: Option<i64>,
    barred: &Barred,
    now: Timestamp,
) -> AutoscalerStatus {
    let message = format!("{barred}. Groups stay as they are");
    let mut next = AutoscalerStatus {
        observed_generation: generation,
        prefill: previous.prefill.clone(),
        decode: previous.decode.clone(),
        message: message.clone(),
        last_scale_time: previous.last_scale_time.clone(),
        update_time: Some(meta::Time(now)),
        conditions: previous.conditions.clone(),
        ..AutoscalerStatus::default()
    };
    let condition = |kind, status| Condition {
        kind,
        status,
        reason: barred.reason(),
        message: message.clone(),
    };
    for condition in [
        condition("Active", Some(false)),
        condition("Frozen", None),
        condition("Limited", None),
    ] {
        set_condition(&mut next.conditions, condition, generation, now);
    }
    next
}

/// Something else than numbers changed, or the numbers are old.
pub fn worth_writing(said: &AutoscalerStatus, next: &AutoscalerStatus) -> bool {
    let at = |status: &AutoscalerStatus| status.update_time.as_ref().map(|time| time.0);
    let old = match (at(said), at(next)) {
        (Some(said), Some(next)) => next.duration_since(said) >= WRITTEN_EVERY,
        _ => true,
    };
    old || decided(said) != decided(next)
}

/// What is not a mere number.
fn decided(status: &AutoscalerStatus) -> impl PartialEq {
    let pool = |pool: &ScaledPool| (pool.ready, pool.current, pool.desired);
    let conditions = status.conditions.iter();
    let conditions: Vec<_> = conditions
        .map(|c| (c.type_.clone(), c.status.clone(), c.reason.clone()))
        .collect();
    (
        status.observed_generation,
        status.prefill.as_ref().map(pool),
        pool(&status.decode),
        conditions,
    )
}

pub fn find<'a>(status: &'a AutoscalerStatus, kind: &str) -> Option<&'a meta::Condition> {
    status.conditions.iter().find(|c| c.type_ == kind)
}

fn active(decision: &Decision) -> Condition {
    Condition {
        kind: "Active",
        status: Some(true),
        reason: "InCharge",
        message: decision.message(),
    }
}

fn frozen(decision: &Decision, traffic: &Traffic) -> Condition {
    let heard = traffic.counted.len();
    let (status, reason, message) = match decision.status {
        Status::Active => (false, "Heard", format!("all {heard} routers are heard")),
        Status::Frozen(Frozen::NoRouters) => (
            true,
            "NoRouters",
            "no router is heard; groups stay as they are until one is".to_owned(),
        ),
        Status::Frozen(Frozen::MetricsGap) => {
            let who = match traffic.unheard.first() {
                Some(router) => format!("{router} is not heard"),
                None => "a router's numbers stand still".to_owned(),
            };
            let message = format!("{who}; groups stay as they are until all routers are heard");
            (true, "MetricsGap", message)
        }
        Status::Frozen(Frozen::Warming) => (
            true,
            "Warming",
            "too little was seen since the start or the last gap".to_owned(),
        ),
    };
    Condition {
        kind: "Frozen",
        status: Some(status),
        reason,
        message,
    }
}

fn limited(decision: &Decision) -> Condition {
    let (status, reason, message) = match words::limited(&decision.limits) {
        Some((reason, message)) => (true, reason, message),
        None => (
            false,
            "Demand",
            "there are as many groups as demand asks for".to_owned(),
        ),
    };
    Condition {
        kind: "Limited",
        status: Some(status),
        reason,
        message,
    }
}

fn pool(seen: &Seen<'_>, half: Half) -> ScaledPool {
    let decision = seen.decision;
    let reasons = decision.pools.of(half);
    let desired = *decision.desired.of(half);
    let mut pool = ScaledPool {
        ready: number(seen.target.pools.of(half).ready.into()),
        current: number((*decision.present.of(half)).into()),
        desired: number(desired.into()),
        summary: String::new(),
        cause: words::cause(reasons.cause).to_owned(),
        why_not_fewer: words::why_not_fewer(reasons, desired),
        why_not_more: words::why_not_more(reasons, desired),
    };
    pool.summary = format!("{}/{}", pool.ready, pool.desired);
    pool
}

impl Measured {
    fn new(objective_milliseconds: i32, measured: Option<f64>, predicted: Option<f64>) -> Measured {
        let milliseconds = |seconds: f64| number(seconds * 1000.0);
        let measured = measured.map(milliseconds);
        let said = measured.map_or_else(|| "-".to_owned(), |ms| ms.to_string());
        Measured {
            objective_milliseconds,
            measured_milliseconds: measured,
            predicted_milliseconds: predicted.map(milliseconds),
            summary: format!("{said}/{objective_milliseconds}ms"),
        }
    }
}

fn traffic(seen: &Numbers) -> SeenTraffic {
    let percent = |share: f64| number(share * 100.0);
    SeenTraffic {
        window_seconds: number(seen.window_seconds),
        requests_per_minute: number(seen.arrival_rate * 60.0),
        prompt_tokens: number(seen.mean_prompt),
        cached_percent: percent(seen.prefix_hit_rate),
        generated_tokens: number(seen.mean_generation),
        tokens_per_step_percent: percent(seen.tokens_per_update),
        decoding: number(seen.decoding),
        waiting: i32::try_from(seen.waiting).unwrap_or(i32::MAX),
    }
}

/// To the next whole one; one that is too large, or none, to the end of the range.
fn number(value: f64) -> i32 {
    value.round() as i32
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
