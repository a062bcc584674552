use millrace_autoscaler::ByRole;
use millrace_autoscaler::decision::{Bottleneck, Cause, Correction, Limit, Reasons};
use millrace_autoscaler::observation::Pool;

use super::super::news::between;
use super::super::target::Shape;
use super::super::target::tests::spec;
use super::*;
use crate::api::Role;

fn target(ready: u32) -> Target {
    let pool = Pool {
        wanted: 2,
        ready,
        existing: 2,
    };
    Target {
        pools: ByRole {
            prefill: pool,
            decode: pool,
        },
        shapes: ByRole {
            prefill: Shape::default(),
            decode: Shape::default(),
        },
        local_prefill_tokens: 16,
        rollout: false,
    }
}

fn decision(desired: u32, state: Status, limits: &[Limit]) -> Decision {
    let both = |n| ByRole {
        prefill: 2,
        decode: n,
    };
    let reasons = Reasons {
        cause: Cause::Demand,
        needed: None,
        one_fewer: None,
        one_more: None,
    };
    Decision {
        desired: both(desired),
        present: both(2),
        status: state,
        limits: limits.to_vec(),
        pools: ByRole {
            prefill: reasons.clone(),
            decode: reasons,
        },
        bottleneck: Bottleneck::DecodeStepTime,
        seen: None,
        predicted: None,
        correction: Correction {
            prefill: 1.0,
            decode: 1.0,
            ttft: 1.0,
        },
        gpus: 4,
    }
}

/// A PoolAutoscaler, what was last written of it, and how often something was.
struct Said {
    status: AutoscalerStatus,
    writes: usize,
}

impl Said {
    fn new() -> Said {
        Said {
            status: AutoscalerStatus::default(),
            writes: 0,
        }
    }

    /// What is new.
    fn say(&mut self, second: i64, decision: &Decision) -> Vec<&'static str> {
        let seen = Seen {
            spec: &spec(true),
            target: &target(2),
            decision,
            traffic: &Traffic::default(),
        };
        let next = status(&self.status, Some(1), &seen, at(second));
        self.write(next)
    }

    fn bar(&mut self, second: i64, why: &Barred) -> Vec<&'static str> {
        let next = barred(&self.status, Some(1), why, at(second));
        self.write(next)
    }

    fn write(&mut self, next: AutoscalerStatus) -> Vec<&'static str> {
        if !worth_writing(&self.status, &next) {
            return Vec::new();
        }
        let news = between(&self.status, &next);
        self.status = next;
        self.writes += 1;
        news.into_iter().map(|news| news.reason).collect()
    }

    fn condition(&self, kind: &str) -> (&str, &str) {
        let found = find(&self.status, kind).unwrap();
        (&found.status, &found.reason)
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

const GAP: Status = Status::Frozen(Frozen::MetricsGap);
const WARMING: Status = Status::Frozen(Frozen::Warming);

#[test]
fn numbers_alone_are_written_once_a_minute() {
    let mut said = Said::new();
    let steady = decision(2, Status::Active, &[]);
    for second in (0..180).step_by(15) {
        said.say(second, &steady);
    }
    assert_eq!(said.writes, 3);
    said.say(181, &decision(3, Status::Active, &[]));
    assert_eq!(said.writes, 4);
}

#[test]
fn a_change_is_told_once() {
    let mut said = Said::new();
    said.say(0, &decision(2, Status::Active, &[]));
    let up = decision(3, Status::Active, &[]);
    assert_eq!(said.say(15, &up), ["ScaledUp"]);
    assert!(said.say(16, &up).is_empty(), "the watch is behind");
    let pool = &said.status.decode;
    assert_eq!(
        (pool.current, pool.desired, pool.summary.as_str()),
        (2, 3, "2/3")
    );
    assert_eq!(said.status.last_scale_time, Some(meta::Time(at(15))));
    assert_eq!(
        said.say(30, &decision(1, Status::Active, &[])),
        ["ScaledDown"]
    );
}

#[test]
fn a_gap_is_told_and_so_is_its_end() {
    let mut said = Said::new();
    assert_eq!(said.say(0, &decision(2, WARMING, &[])), ["Active"]);
    assert_eq!(
        said.say(15, &decision(2, Status::Active, &[])),
        ["Unfrozen"]
    );
    assert_eq!(said.say(30, &decision(2, GAP, &[])), ["Frozen"]);
    assert_eq!(said.condition("Frozen"), ("True", "MetricsGap"));
    assert!(said.say(45, &decision(2, WARMING, &[])).is_empty());
    assert_eq!(
        said.say(60, &decision(2, Status::Active, &[])),
        ["Unfrozen"]
    );
}

#[test]
fn a_router_that_is_not_heard_is_named() {
    let traffic = Traffic {
        unheard: vec!["m-router-x".into()],
        ..Traffic::default()
    };
    let condition = frozen(&decision(2, GAP, &[]), &traffic);
    assert!(condition.message.starts_with("m-router-x is not heard"));
}

#[test]
fn a_bound_that_is_too_low_is_a_warning_and_one_that_is_too_high_is_none() {
    use millrace_autoscaler::Role::Decode;
    let mut said = Said::new();
    said.say(0, &decision(2, Status::Active, &[Limit::Min(Decode)]));
    assert_eq!(said.condition("Limited"), ("True", "MinReplicas"));
    let max = decision(2, Status::Active, &[Limit::Max(Decode)]);
    assert_eq!(said.say(15, &max), ["Limited"]);
    assert!(said.say(90, &max).is_empty());
    said.say(105, &decision(2, Status::Active, &[]));
    assert_eq!(said.condition("Limited"), ("False", "Demand"));
}

#[test]
fn one_that_may_not_scale_says_why_and_keeps_its_numbers() {
    let mut said = Said::new();
    said.say(0, &decision(2, Status::Active, &[]));
    let declared = Barred::Declared(Role::Decode);
    assert_eq!(said.bar(15, &declared), ["Inactive"]);
    assert_eq!(said.condition("Active"), ("False", "ReplicasDeclared"));
    assert_eq!(said.condition("Frozen").0, "Unknown");
    assert_eq!(said.status.decode.desired, 2);
    assert!(said.status.message.contains("leave it out there"));
    assert!(said.bar(30, &declared).is_empty());
    assert_eq!(said.say(45, &decision(2, WARMING, &[])), ["Active"]);
}

#[test]
fn objectives_are_columns() {
    let measured = Measured::new(1000, Some(0.8404), Some(f64::INFINITY));
    assert_eq!(measured.summary, "840/1000ms");
    assert_eq!(measured.predicted_milliseconds, Some(i32::MAX));
    assert_eq!(Measured::new(1000, None, None).summary, "-/1000ms");
}
