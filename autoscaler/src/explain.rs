//! A decision with its reasons, in numbers and in words.

use crate::Role;
use crate::choose::{Room, needed};
use crate::decision::{
    Alternative, Bottleneck, Cause, Decision, Frozen, Limit, Objective, Reasons, Seen, Status,
};
use crate::histogram::Histogram;
use crate::load::Shape;
use crate::memory::{Draft, Memory};
use crate::policy::Policy;
use crate::predict::{Bounds, Predictor, State};
use crate::weigh::Look;
use crate::window::MIDDLE;

/// Below this part of every bound, nothing is scarce.
const EASE: f64 = 0.5;
const ROLES: [Role; 2] = [Role::Prefill, Role::Decode];

pub(crate) fn explain(memory: &Memory, look: &Look<'_>, draft: Draft) -> Decision {
    let Look {
        policy,
        observation,
        room,
        rate,
        ..
    } = *look;
    let desired = draft.target;
    let mut decision = Decision {
        desired,
        present: observation.pools.map(|_, pool| pool.wanted),
        status: draft.status,
        limits: draft.limits,
        pools: draft.causes.map(|_, &cause| Reasons {
            cause,
            needed: None,
            one_fewer: None,
            one_more: None,
        }),
        bottleneck: Bottleneck::None,
        seen: None,
        predicted: None,
        correction: memory.learned.told(),
        gpus: room.cost(desired),
    };
    if let Some(shape) = look.shape {
        let predictor = memory.predictor(policy, shape, memory.learned.believed());
        let bounds = predictor.bounds();
        let asked = rate.likely(policy) * (1.0 + policy.behavior.tolerance);
        decision.seen = Some(seen(memory, look, shape));
        predict(&mut decision, policy, room, &predictor, &bounds, asked);
    }
    decision.limits.sort_by_key(|limit| format!("{limit:?}"));
    decision.limits.dedup();
    decision
}

fn predict(
    decision: &mut Decision,
    policy: &Policy,
    room: &Room,
    predictor: &Predictor<'_>,
    bounds: &Bounds,
    rate: f64,
) {
    let desired = decision.desired;
    let anything = policy.pools.map(|_, pool| pool.max.min(1));
    let free = Room {
        low: anything,
        budget: u64::MAX,
        ..*room
    };
    let alone = needed(predictor, bounds, rate, &free).replicas;
    let active = decision.status == Status::Active;
    let hints = room.low.map(|role, low| *low > *policy.minimum().of(role));
    for role in ROLES {
        let (now, needed) = (*desired.of(role), *alone.of(role));
        let with = |replicas: u32| {
            let mut other = desired;
            *other.of_mut(role) = replicas;
            predictor.state(rate, other).worst(bounds, replicas)
        };
        let reasons = decision.pools.of_mut(role);
        reasons.needed = Some(needed);
        reasons.one_fewer = (now > 1).then(|| with(now - 1));
        reasons.one_more = (now > 0 && now < room.high.of(role).max(&now).saturating_add(1))
            .then(|| with(now.saturating_add(1)));
        if active && now > needed && now == *room.low.of(role) {
            decision.limits.push(match *hints.of(role) {
                true => Limit::Schedule(role),
                false => Limit::Min(role),
            });
        }
    }
    let bounds_raised = [(Objective::Ttft, bounds.ttft), (Objective::Itl, bounds.itl)];
    for (objective, bound) in bounds_raised {
        if bound.is_some_and(|bound| !bound.attainable) {
            decision.limits.push(Limit::Unattainable(objective));
        }
    }
    if desired.decode > 0 {
        let state = predictor.state(rate, desired);
        decision.predicted = Some(state.told(policy.objectives.quantile));
    }
    if decision.present.decode > 0 {
        let state = predictor.state(rate, decision.present);
        decision.bottleneck = bottleneck(&state, bounds);
    }
}

fn bottleneck(state: &State, bounds: &Bounds) -> Bottleneck {
    let worst = state.worst(bounds, 0);
    let turns = turns(state.kv_bound());
    match worst.objective {
        _ if state.severity(worst.predicted, worst.bound) < EASE => Bottleneck::None,
        Objective::Ttft if state.waits_for_turns() => turns,
        Objective::Ttft | Objective::PrefillUtilization => Bottleneck::PrefillCompute,
        Objective::Itl => Bottleneck::DecodeStepTime,
        Objective::Queue | Objective::DecodeUtilization => turns,
    }
}

fn turns(kv_bound: bool) -> Bottleneck {
    match kv_bound {
        true => Bottleneck::KvCapacity,
        false => Bottleneck::RouterQueue,
    }
}

fn seen(memory: &Memory, look: &Look<'_>, shape: &Shape) -> Seen {
    let Look {
        policy,
        observation,
        rate,
        ..
    } = *look;
    let totals = memory.window.totals(MIDDLE, f64::MIN);
    let (sums, fleet) = (&totals.sums, &totals.fleet);
    let objectives = &policy.objectives;
    let quantile = |of: &Histogram| of.quantile(objectives.quantile);
    let share = |of: &Histogram, bound: Option<f64>| bound.and_then(|b| of.share_within(b));
    let part = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
    let prompts = |of: fn(&crate::load::Prompt) -> f64| {
        shape.prompts.iter().map(|p| p.share * of(p)).sum::<f64>()
    };
    let mean_prompt = prompts(|p| p.tokens + p.cached);
    Seen {
        window_seconds: totals.seconds,
        arrivals: sums.arrived,
        arrival_rate: rate.mean,
        arrival_error: part(rate.error, rate.mean),
        arrival_trend: rate.trend,
        refused: part(sums.refused as f64, sums.arrived as f64),
        mean_prompt,
        mean_generation: shape.generation,
        prefix_hit_rate: part(prompts(|p| p.cached), mean_prompt),
        tokens_per_update: shape.tokens_per_update,
        decoding: part(fleet.decoding, fleet.decode_seen)
            * observation
                .workers
                .iter()
                .filter(|w| w.role == Role::Decode)
                .count() as f64,
        waiting: observation
            .routers
            .iter()
            .fold(0, |sum, r| r.waiting.saturating_add(sum)),
        ttft_seconds: quantile(&sums.ttft),
        itl_seconds: quantile(&sums.itl),
        queue_seconds: quantile(&sums.queue),
        ttft_attainment: share(&sums.ttft, objectives.ttft_seconds),
        itl_attainment: share(&sums.itl, objectives.itl_seconds),
        queue_attainment: share(&sums.queue, objectives.queue_seconds),
    }
}

pub(crate) fn message(decision: &Decision) -> String {
    let pools = ROLES.map(|role| pool(decision, role));
    let mut message = match decision.status {
        Status::Active => String::new(),
        Status::Frozen(Frozen::NoRouters) => "Frozen: there is no router. ".to_owned(),
        Status::Frozen(Frozen::MetricsGap) => {
            "Frozen: a router was not heard, or its numbers stand still. ".to_owned()
        }
        Status::Frozen(Frozen::Warming) => "Frozen: too little was seen yet. ".to_owned(),
    };
    message.push_str(&pools.join("; "));
    message.push('.');
    for limit in &decision.limits {
        message.push(' ');
        message.push_str(&limited(limit));
    }
    if let Some(seen) = &decision.seen {
        message.push_str(&format!(
            " Seen in {:.0} s: {:.2} sequences/s of {:.0} + {:.0} tokens, {:.0}% of prompts cached.",
            seen.window_seconds,
            seen.arrival_rate,
            seen.mean_prompt,
            seen.mean_generation,
            100.0 * seen.prefix_hit_rate,
        ));
    }
    message
}

fn pool(decision: &Decision, role: Role) -> String {
    let (from, to) = (*decision.present.of(role), *decision.desired.of(role));
    let reasons = decision.pools.of(role);
    let name = name(role);
    let cause = cause(reasons.cause);
    let mut text = match from == to {
        true => format!("{name} stays at {to}: {cause}"),
        false => format!("{name} from {from} to {to}: {cause}"),
    };
    if let Some(fewer) = reasons.one_fewer.filter(|fewer| !fewer.meets) {
        text.push_str(&format!(
            ", with {} {}",
            fewer.replicas,
            alternative(&fewer)
        ));
    }
    text
}

fn alternative(other: &Alternative) -> String {
    let (what, scale, unit) = match other.objective {
        Objective::Ttft => ("TTFT", 1.0, "s"),
        Objective::Itl => ("ITL", 1000.0, "ms"),
        Objective::Queue => ("queueing", 1.0, "s"),
        Objective::PrefillUtilization => ("prefill utilisation", 100.0, "%"),
        Objective::DecodeUtilization => ("decode utilisation", 100.0, "%"),
    };
    let bound = other.bound * scale;
    match other.predicted {
        Some(predicted) => {
            format!(
                "{what} would be {:.2} {unit}, bound {bound:.2} {unit}",
                predicted * scale
            )
        }
        None => format!("{what} would grow without bound"),
    }
}

fn cause(cause: Cause) -> &'static str {
    match cause {
        Cause::Enough => "that is enough",
        Cause::Demand => "demand is surely above what there is",
        Cause::Violated => "an objective is violated whatever was predicted",
        Cause::Backlog => "work piled up",
        Cause::Surplus => "fewer have sufficed for long enough",
        Cause::Stabilizing => "a change is not sure for long enough",
        Cause::Starting => "some are starting",
        Cause::Draining => "others still drain",
        Cause::Rollout => "a rollout is under way",
        Cause::Bounds => "bounds or budget",
        Cause::Idle => "nothing came for long enough",
        Cause::Wake => "there are none",
        Cause::Frozen => "nothing is decided",
    }
}

fn name(role: Role) -> &'static str {
    match role {
        Role::Prefill => "prefill",
        Role::Decode => "decode",
    }
}

fn limited(limit: &Limit) -> String {
    match limit {
        Limit::Min(role) => format!("Fewer {} would do, but for the minimum.", name(*role)),
        Limit::Max(role) => format!("More {} are needed than the maximum.", name(*role)),
        Limit::Budget => "More GPUs are needed than the budget has.".to_owned(),
        Limit::Schedule(role) => format!("The schedule asks for so many {}.", name(*role)),
        Limit::Step(role) => format!("{} changes step by step.", name(*role)),
        Limit::Unattainable(objective) => {
            format!("Not even an empty pool would surely meet the objective of {objective:?}.")
        }
    }
}
