//! A decision in words. Pure.

use millrace_autoscaler::decision::{Alternative, Bottleneck, Cause, Limit, Objective, Reasons};

use crate::api::Role;

/// What is used up first; empty: nothing.
pub fn bottleneck(bottleneck: Bottleneck) -> &'static str {
    match bottleneck {
        Bottleneck::None => "",
        Bottleneck::PrefillCompute => "PrefillCompute",
        Bottleneck::DecodeStepTime => "DecodeStepTime",
        Bottleneck::KvCapacity => "KvCapacity",
        Bottleneck::RouterQueue => "RouterQueue",
    }
}

/// One word for why a pool has the groups that it should have.
pub fn cause(cause: Cause) -> &'static str {
    match cause {
        Cause::Enough => "Enough",
        Cause::Demand => "Demand",
        Cause::Violated => "Violated",
        Cause::Backlog => "Backlog",
        Cause::Surplus => "Surplus",
        Cause::Stabilizing => "Stabilizing",
        Cause::Starting => "Starting",
        Cause::Draining => "Draining",
        Cause::Rollout => "Rollout",
        Cause::Bounds => "Bounds",
        Cause::Idle => "Idle",
        Cause::Wake => "Wake",
        Cause::Frozen => "Frozen",
    }
}

/// A reason and a message for what keeps a decision from what demand asks for, the hardest first.
pub fn limited(limits: &[Limit]) -> Option<(&'static str, String)> {
    let rank = |limit: &Limit| match limit {
        Limit::Budget => 0,
        Limit::Max(_) => 1,
        Limit::Unattainable(_) => 2,
        Limit::Step(_) => 3,
        Limit::Schedule(_) => 4,
        Limit::Min(_) => 5,
    };
    let mut limits = limits.to_vec();
    limits.sort_by_key(rank);
    let reason = match limits.first()? {
        Limit::Budget => "BudgetReached",
        Limit::Max(_) => "MaxReplicas",
        Limit::Unattainable(_) => "Unattainable",
        Limit::Step(_) => "MaxStep",
        Limit::Schedule(_) => "Schedule",
        Limit::Min(_) => "MinReplicas",
    };
    let all: Vec<String> = limits.iter().map(limit).collect();
    Some((reason, all.join("; ")))
}

fn limit(limit: &Limit) -> String {
    match limit {
        Limit::Budget => "more GPUs are needed than budget.maxGpus".to_owned(),
        Limit::Max(role) => format!("more are needed than {}.maxReplicas", name(*role)),
        Limit::Step(role) => format!("{}: behavior.maxStep allows no more at once", name(*role)),
        Limit::Schedule(role) => format!(
            "{}: fewer would do, but the schedule asks for these now",
            name(*role)
        ),
        Limit::Unattainable(objective) => format!(
            "no number of groups brings {} below its objective; raise it",
            latency(*objective)
        ),
        Limit::Min(role) => format!("fewer would do than {}.minReplicas", name(*role)),
    }
}

fn name(role: millrace_autoscaler::Role) -> Role {
    match role {
        millrace_autoscaler::Role::Prefill => Role::Prefill,
        millrace_autoscaler::Role::Decode => Role::Decode,
    }
}

/// Why a pool is not to have one group less.
pub fn why_not_fewer(reasons: &Reasons, desired: u32) -> String {
    let Some(fewer) = &reasons.one_fewer else {
        return match desired {
            0 => "there are none".to_owned(),
            _ => "too little was seen to tell".to_owned(),
        };
    };
    let with = with(fewer);
    if !fewer.meets {
        return with;
    }
    let but = match reasons.cause {
        Cause::Stabilizing => "but not for long enough yet",
        Cause::Draining => "but others still drain",
        Cause::Rollout => "but a rollout is under way",
        Cause::Bounds => "but minReplicas or the schedule asks for more",
        Cause::Starting => "but others are only starting",
        Cause::Frozen => "but nothing is decided now",
        _ => "but not surely: demand is too close to it",
    };
    format!("{with}, {but}")
}

/// Why a pool is not to have one group more.
pub fn why_not_more(reasons: &Reasons, desired: u32) -> String {
    match reasons.needed {
        None => "too little was seen to tell".to_owned(),
        Some(needed) if needed <= desired => format!("{needed} would do"),
        Some(needed) => {
            let but = match reasons.cause {
                Cause::Starting => "but those that are starting come first",
                Cause::Bounds => "but maxReplicas or the budget allows no more",
                Cause::Frozen => "but nothing is decided now",
                _ => "but not surely, or not at once",
            };
            let more = reasons.one_more.as_ref().map(with);
            let more = more.map_or(String::new(), |more| format!("; {more}"));
            format!("{needed} are needed, {but}{more}")
        }
    }
}

fn latency(objective: Objective) -> &'static str {
    match objective {
        Objective::Ttft => "TTFT",
        Objective::Itl => "ITL",
        Objective::Queue => "queue time",
        Objective::PrefillUtilization => "prefill utilization",
        Objective::DecodeUtilization => "decode utilization",
    }
}

/// `with 2, TTFT would be 2.50 s of 2.00 s`.
fn with(alternative: &Alternative) -> String {
    let what = latency(alternative.objective);
    let percent = matches!(
        alternative.objective,
        Objective::PrefillUtilization | Objective::DecodeUtilization
    );
    let value = |value: f64| match percent {
        true => format!("{:.0}%", value * 100.0),
        false if value < 1.0 => format!("{:.0} ms", value * 1000.0),
        false => format!("{value:.2} s"),
    };
    let replicas = alternative.replicas;
    let bound = value(alternative.bound);
    match alternative.predicted {
        Some(predicted) => format!(
            "with {replicas}, {what} would be {} of {bound}",
            value(predicted)
        ),
        None => format!("with {replicas}, work would pile up"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reasons(cause: Cause, meets: bool) -> Reasons {
        Reasons {
            cause,
            needed: Some(3),
            one_fewer: Some(Alternative {
                replicas: 1,
                objective: Objective::Ttft,
                predicted: Some(2.5),
                bound: 2.0,
                meets,
            }),
            one_more: None,
        }
    }

    #[test]
    fn both_directions_are_told() {
        let short = reasons(Cause::Starting, false);
        assert_eq!(
            why_not_fewer(&short, 2),
            "with 1, TTFT would be 2.50 s of 2.00 s"
        );
        assert_eq!(
            why_not_more(&short, 2),
            "3 are needed, but those that are starting come first"
        );
        assert_eq!(why_not_more(&short, 3), "3 would do");
        let surplus = reasons(Cause::Stabilizing, true);
        assert!(why_not_fewer(&surplus, 2).ends_with("but not for long enough yet"));
        let piles = Alternative {
            predicted: None,
            ..short.one_fewer.unwrap()
        };
        assert_eq!(with(&piles), "with 1, work would pile up");
    }

    #[test]
    fn the_hardest_limit_is_the_reason() {
        use millrace_autoscaler::Role::{Decode, Prefill};
        let (reason, message) = limited(&[Limit::Min(Prefill), Limit::Max(Decode)]).unwrap();
        assert_eq!(reason, "MaxReplicas");
        assert_eq!(
            message,
            "more are needed than decode.maxReplicas; fewer would do than prefill.minReplicas"
        );
        assert_eq!(limited(&[]), None);
    }
}
