use super::*;
use crate::correction::Factors;
use crate::load::{Prompt, Shape};
use crate::model::{DecodeModel, PerformanceModel, PrefillModel};
use crate::policy::{Behavior, Objectives, PoolPolicy};

fn both(prefill: u32, decode: u32) -> ByRole<u32> {
    ByRole { prefill, decode }
}

fn policy(most: u32, ranks: u32) -> Policy {
    let pool = PoolPolicy {
        min: 1,
        max: most,
        ranks,
        gpus: ranks,
    };
    Policy {
        objectives: Objectives {
            quantile: 0.95,
            ttft_seconds: Some(2.0),
            itl_seconds: Some(0.05),
            queue_seconds: None,
        },
        pools: ByRole {
            prefill: pool,
            decode: pool,
        },
        max_gpus: None,
        behavior: Behavior::default(),
        scale_to_zero: None,
        schedule: Vec::new(),
        cold_start_seconds: 120.0,
        local_prefill_tokens: 0,
        model: PerformanceModel {
            prefill: PrefillModel {
                chunk_tokens: 2048,
                base_seconds: 0.02,
                seconds_per_token: 2e-4,
                seconds_per_token_context: 5e-9,
            },
            decode: DecodeModel {
                base_seconds: 0.014,
                seconds_per_sequence: 3e-4,
                seconds_per_context_token: 5e-8,
            },
            max_running: 64,
            kv_tokens: 400_000,
        },
    }
}

pub fn policy_of_tests() -> Policy {
    policy(14, 1)
}

fn shape() -> Shape {
    let prompt = |share, tokens| Prompt {
        share,
        tokens,
        cached: tokens / 2.0,
    };
    Shape {
        prompts: vec![prompt(0.6, 300.0), prompt(0.3, 1500.0), prompt(0.1, 4000.0)],
        generation: 250.0,
        generation_variation: 0.7,
        tokens_per_update: 1.6,
        context: 1500.0,
        turns: 64.0,
        fits: 200.0,
    }
}

fn predictor<'a>(policy: &'a Policy, shape: &'a Shape) -> Predictor<'a> {
    Predictor {
        policy,
        shape,
        factors: Factors::ONE,
        learned: ByRole::default(),
    }
}

#[test]
fn nothing_cheaper_meets_the_objectives() {
    let shape = shape();
    for gpus in [both(1, 1), both(1, 3), both(4, 1)] {
        let mut policy = policy(14, 1);
        (policy.pools.prefill.gpus, policy.pools.decode.gpus) = (gpus.prefill, gpus.decode);
        let predictor = predictor(&policy, &shape);
        let bounds = predictor.bounds();
        let room = Room::of(&policy, both(1, 1));
        for rate in (1..80).map(|i| f64::from(i) * 0.37) {
            let meets = |r| predictor.state(rate, r).meets(&bounds);
            let all = (1..=14).flat_map(|p| (1..=14).map(move |d| both(p, d)));
            let cheapest = all.filter(|&r| meets(r)).map(|r| room.cost(r)).min();
            let found = needed(&predictor, &bounds, rate, &room);
            match cheapest {
                Some(cost) => {
                    assert!(
                        meets(found.replicas) && found.short.is_none(),
                        "{rate}: {found:?}"
                    );
                    assert_eq!(room.cost(found.replicas), cost, "{rate}: {found:?}");
                }
                None => assert_eq!(found.short, Some(Short::Max), "{rate}"),
            }
        }
    }
}

#[test]
fn no_other_split_of_a_budget_misses_less() {
    let (policy, shape) = (policy(14, 1), shape());
    let predictor = predictor(&policy, &shape);
    let bounds = predictor.bounds();
    let mut room = Room::of(&policy, both(1, 1));
    let mut bound = 0;
    for budget in 3..12 {
        room.budget = budget;
        for rate in [5.0, 11.0, 17.0, 29.0] {
            let found = needed(&predictor, &bounds, rate, &room);
            assert!(room.cost(found.replicas) <= budget);
            if found.short != Some(Short::Budget) {
                continue;
            }
            bound += 1;
            let missed = |r| score(&predictor.state(rate, r), &bounds);
            let all = (1..=14).flat_map(|p| (1..=14).map(move |d| both(p, d)));
            let best = all
                .filter(|&r| room.cost(r) <= budget)
                .map(missed)
                .fold(f64::MAX, f64::min);
            assert!(
                missed(found.replicas) <= best * 1.001,
                "{budget} for {rate}: {found:?}"
            );
        }
    }
    assert!(bound > 10, "{bound}");
}

/// Ranks do not wait for each other's queues: what 32 single workers do, a group of 32 does.
#[test]
fn groups_of_ranks_are_as_many_workers() {
    let shape = shape();
    let (single, groups) = (policy(2000, 1), policy(60, 32));
    let of = |policy: &Policy, rate| {
        let predictor = predictor(policy, &shape);
        needed(
            &predictor,
            &predictor.bounds(),
            rate,
            &Room::of(policy, both(1, 1)),
        )
        .replicas
    };
    let rate = 900.0;
    let (one, many) = (of(&single, rate), of(&groups, rate));
    assert!(one.prefill > 100 && one.decode > 60, "{one:?}");
    assert_eq!(many.prefill, one.prefill.div_ceil(32));
    assert_eq!(many.decode, one.decode.div_ceil(32));
}

#[test]
fn decode_workers_that_prefill_need_the_time_for_it() {
    let shape = shape();
    let mut aggregated = policy(40, 1);
    aggregated.pools.prefill = PoolPolicy {
        min: 0,
        max: 0,
        ..aggregated.pools.prefill
    };
    let of = |policy: &Policy| {
        let predictor = predictor(policy, &shape);
        let room = Room::of(policy, policy.minimum());
        needed(&predictor, &predictor.bounds(), 10.0, &room).replicas
    };
    let (split, alone) = (of(&policy(40, 1)), of(&aggregated));
    assert_eq!(alone.prefill, 0);
    assert!(alone.decode > split.decode, "{alone:?} {split:?}");
    // The short prompts alone.
    let mut local = policy(40, 1);
    local.local_prefill_tokens = 512;
    assert!(of(&local).prefill <= split.prefill);
}

#[test]
fn a_budget_cuts_what_is_new_first() {
    let room = Room {
        low: both(1, 1),
        high: both(20, 20),
        gpus: both(1, 4),
        budget: 24,
    };
    assert_eq!(room.fit(both(4, 5), both(1, 1)), both(4, 5));
    assert_eq!(room.fit(both(8, 5), both(4, 5)), both(4, 5));
    assert_eq!(room.fit(both(30, 0), both(4, 1)), both(20, 1));
    // What is there is too much itself: both shrink towards what must be.
    let fit = room.fit(both(10, 10), both(10, 10));
    assert!(room.cost(fit) <= 24 && room.cost(fit) > 20, "{fit:?}");
}

#[test]
fn the_first_that_holds() {
    assert_eq!(first(1, 9, &|n| n >= 4), 4);
    assert_eq!(first(1, 9, &|n| n >= 1), 1);
    assert_eq!(first(3, 3, &|_| true), 3);
}
