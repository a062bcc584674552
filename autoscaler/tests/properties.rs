//! Whatever is observed: no panic, nothing outside of bounds and budget, no number that is none.

use millrace_autoscaler::model::{DecodeModel, PerformanceModel, PrefillModel};
use millrace_autoscaler::observation::{Distribution, Observation, Pool, Router, Traffic, Worker};
use millrace_autoscaler::policy::{
    Behavior, Direction, Hint, Objectives, Policy, PoolPolicy, ScaleToZero,
};
use millrace_autoscaler::{ByRole, Decision, Memory, Role, Status, decide};
use proptest::prelude::*;

/// Small, zero and huge.
fn count() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        0..50_u64,
        0..1_000_000_u64,
        Just(u64::MAX),
        any::<u64>()
    ]
}

fn small() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0), 0..20_u32, any::<u32>()]
}

fn number() -> impl Strategy<Value = f64> {
    prop_oneof![
        Just(0.0),
        0.0..100.0_f64,
        Just(f64::NAN),
        Just(f64::INFINITY),
        Just(-1.0),
        any::<f64>(),
    ]
}

fn distribution() -> impl Strategy<Value = Distribution> {
    let wild = (
        prop::collection::vec(number(), 0..5),
        prop::collection::vec(count(), 0..6),
        number(),
    )
        .prop_map(|(bounds, counts, sum)| Distribution {
            bounds,
            counts,
            sum,
        });
    let sane =
        (prop::collection::vec(count(), 5), 0.0..1e12_f64).prop_map(|(counts, sum)| Distribution {
            bounds: vec![0.01, 0.1, 1.0, 1000.0],
            counts,
            sum,
        });
    prop_oneof![1 => wild, 8 => sane, 1 => Just(Distribution::default())]
}

fn traffic() -> impl Strategy<Value = Traffic> {
    let counts = (count(), count(), count(), count(), count(), count());
    let distributions = (
        distribution(),
        distribution(),
        distribution(),
        distribution(),
        distribution(),
    );
    (0..3_u64, number(), counts, distributions).prop_map(|(incarnation, seconds, n, d)| Traffic {
        incarnation,
        seconds,
        arrived: n.0,
        refused: n.1,
        prompt_tokens: n.2,
        cached_prompt_tokens: n.3,
        generated_tokens: n.4,
        updates: n.5,
        queue_seconds: d.0,
        first_token_seconds: d.1,
        inter_token_seconds: d.2,
        prompt_length: d.3,
        generation_length: d.4,
    })
}

/// Traffic that could be: what comes on top from look to look.
fn growth() -> impl Strategy<Value = Traffic> {
    let counts = prop::collection::vec(0..300_u64, 5);
    let per = prop_oneof![Just(0_u64), 0..5000_u64, Just(u64::MAX / 1000)];
    (0..300_u64, per.clone(), per, counts).prop_map(|(arrived, prompt, tokens, counts)| {
        let distribution = Distribution {
            bounds: vec![0.01, 0.1, 1.0, 1000.0],
            sum: counts.iter().sum::<u64>() as f64 * 0.7,
            counts,
        };
        Traffic {
            incarnation: 7,
            seconds: 10.0,
            arrived,
            refused: arrived / 7,
            prompt_tokens: arrived.saturating_mul(prompt),
            cached_prompt_tokens: arrived.saturating_mul(prompt) / 2,
            generated_tokens: arrived.saturating_mul(tokens),
            updates: arrived.saturating_mul(tokens) / 2,
            queue_seconds: distribution.clone(),
            first_token_seconds: distribution.clone(),
            inter_token_seconds: distribution.clone(),
            prompt_length: distribution.clone(),
            generation_length: distribution,
        }
    })
}

fn add(to: &mut Traffic, more: &Traffic) {
    to.incarnation = more.incarnation;
    to.seconds += more.seconds;
    let counts = [
        (&mut to.arrived, more.arrived),
        (&mut to.refused, more.refused),
        (&mut to.prompt_tokens, more.prompt_tokens),
        (&mut to.cached_prompt_tokens, more.cached_prompt_tokens),
        (&mut to.generated_tokens, more.generated_tokens),
        (&mut to.updates, more.updates),
    ];
    for (to, more) in counts {
        *to = to.saturating_add(more);
    }
    let distributions = [
        (&mut to.queue_seconds, &more.queue_seconds),
        (&mut to.first_token_seconds, &more.first_token_seconds),
        (&mut to.inter_token_seconds, &more.inter_token_seconds),
        (&mut to.prompt_length, &more.prompt_length),
        (&mut to.generation_length, &more.generation_length),
    ];
    for (to, more) in distributions {
        to.bounds.clone_from(&more.bounds);
        to.counts.resize(more.counts.len(), 0);
        for (to, more) in to.counts.iter_mut().zip(&more.counts) {
            *to += more;
        }
        to.sum += more.sum;
    }
}

fn worker() -> impl Strategy<Value = Worker> {
    let role = prop_oneof![Just(Role::Prefill), Just(Role::Decode)];
    (
        role,
        any::<(bool, bool)>(),
        small(),
        small(),
        small(),
        count(),
        count(),
        count(),
    )
        .prop_map(
            |(role, (available, draining), running, waiting, max_running, tokens, pages, free)| {
                Worker {
                    role,
                    available,
                    draining,
                    running,
                    waiting,
                    max_running,
                    waiting_tokens: tokens,
                    kv_pages: pages,
                    free_pages: free,
                }
            },
        )
}

fn pool() -> impl Strategy<Value = Pool> {
    (small(), small(), small()).prop_map(|(wanted, ready, existing)| Pool {
        wanted,
        ready,
        existing,
    })
}

fn policy() -> impl Strategy<Value = Policy> {
    let pools = (0..4_u32, 0..9_u32, 1..9_u32, 1..9_u32);
    let objective = || prop::option::of(0.001..10.0_f64);
    let model = (
        0.0..1.0_f64,
        1e-6..1e-2_f64,
        1e-4..0.1_f64,
        0.0..1e-2_f64,
        1..500_u32,
    );
    let behaviour = (0.0..100.0_f64, 1..5_u32, 0.0..1.0_f64);
    let rest = (
        any::<bool>(),
        0..2000_u32,
        prop::option::of(1..100_u32),
        0.0..600.0_f64,
        any::<bool>(),
    );
    (
        (pools.clone(), pools),
        (objective(), objective(), objective()),
        (0.5..0.999_f64, model, behaviour, rest),
    )
        .prop_map(|((p, d), objectives, (quantile, model, behaviour, rest))| {
            let pool = |(min, more, ranks, gpus): (u32, u32, u32, u32)| PoolPolicy {
                min,
                max: min + more,
                ranks,
                gpus,
            };
            let mut decode = pool(d);
            decode.max = decode.max.max(1);
            let prefill = pool(p);
            let minimum = prefill.min.max(1).min(prefill.max) * prefill.gpus
                + decode.min.max(1) * decode.gpus;
            let direction = Direction {
                stabilization_seconds: behaviour.0,
                max_step: behaviour.1,
                period_seconds: 60.0,
            };
            Policy {
                objectives: Objectives {
                    quantile,
                    ttft_seconds: objectives.0,
                    itl_seconds: objectives.1,
                    queue_seconds: objectives.2,
                },
                pools: ByRole { prefill, decode },
                max_gpus: rest.2.map(|more| minimum + more),
                behavior: Behavior {
                    up: direction,
                    down: direction,
                    tolerance: behaviour.2,
                },
                scale_to_zero: rest.0.then_some(ScaleToZero { idle_seconds: 30.0 }),
                schedule: vec![Hint {
                    name: "always".to_owned(),
                    days: [rest.4; 7],
                    from: 0,
                    until: 0,
                    min: ByRole {
                        prefill: 3,
                        decode: 7,
                    },
                }],
                cold_start_seconds: rest.3,
                local_prefill_tokens: rest.1,
                model: PerformanceModel {
                    prefill: PrefillModel {
                        chunk_tokens: 512,
                        base_seconds: model.0,
                        seconds_per_token: model.1,
                        seconds_per_token_context: 1e-9,
                    },
                    decode: DecodeModel {
                        base_seconds: model.2,
                        seconds_per_sequence: model.3,
                        seconds_per_context_token: 1e-8,
                    },
                    max_running: model.4,
                    kv_tokens: 10_000,
                },
            }
        })
}

fn finite(number: Option<f64>) -> bool {
    number.is_none_or(f64::is_finite)
}

fn check(policy: &Policy, decision: &Decision) {
    let asleep = policy.scale_to_zero.is_some() && decision.desired == ByRole::default();
    let mut gpus = 0;
    for role in [Role::Prefill, Role::Decode] {
        let (desired, pool) = (*decision.desired.of(role), policy.pools.of(role));
        assert!(
            desired <= pool.max && (asleep || desired >= pool.min),
            "{decision:?}"
        );
        gpus += u64::from(desired) * u64::from(pool.gpus);
        let reasons = decision.pools.of(role);
        for other in [reasons.one_fewer, reasons.one_more].into_iter().flatten() {
            assert!(
                finite(other.predicted) && other.bound.is_finite(),
                "{decision:?}"
            );
        }
    }
    assert!(asleep || decision.desired.decode > 0);
    assert_eq!(gpus, decision.gpus);
    assert!(
        policy.max_gpus.is_none_or(|most| gpus <= u64::from(most)),
        "{decision:?}"
    );
    if let Some(seen) = decision.seen {
        let all = [
            seen.arrival_rate,
            seen.arrival_error,
            seen.arrival_trend,
            seen.refused,
            seen.mean_prompt,
            seen.mean_generation,
            seen.prefix_hit_rate,
            seen.tokens_per_update,
            seen.decoding,
        ];
        assert!(all.iter().all(|n| n.is_finite()), "{seen:?}");
        let times = [seen.ttft_seconds, seen.itl_seconds, seen.queue_seconds];
        let shares = [
            seen.ttft_attainment,
            seen.itl_attainment,
            seen.queue_attainment,
        ];
        assert!(times.into_iter().chain(shares).all(finite), "{seen:?}");
    }
    if let Some(predicted) = decision.predicted {
        let all = [
            predicted.prefill_utilization,
            predicted.decode_utilization,
            predicted.batch,
        ];
        assert!(all.iter().all(|n| n.is_finite()), "{predicted:?}");
        let times = [
            predicted.ttft_seconds,
            predicted.itl_seconds,
            predicted.queue_seconds,
        ];
        assert!(times.into_iter().all(finite), "{predicted:?}");
    }
    let learned = decision.correction;
    for factor in [learned.prefill, learned.decode, learned.ttft] {
        assert!((0.25..=4.0).contains(&factor), "{learned:?}");
    }
    assert!(
        !decision.message().contains("NaN"),
        "{}",
        decision.message()
    );
}

/// What one look adds: wild traffic and clocks, or such as could be.
#[derive(Debug, Clone)]
enum Look {
    Wild(f64, Vec<Traffic>, u32),
    Sane(Box<Traffic>),
}

fn look() -> impl Strategy<Value = Look> {
    prop_oneof![
        1 => (number(), prop::collection::vec(traffic(), 0..3), 0..3_u32)
            .prop_map(|(now, traffic, expected)| Look::Wild(now, traffic, expected)),
        9 => growth().prop_map(|more| Look::Sane(Box::new(more))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn decisions_are_within_bounds_and_numbers_are_finite(
        policy in policy(),
        looks in prop::collection::vec(
            (look(), prop::collection::vec(worker(), 0..4), pool(), pool(), any::<(bool, bool)>()),
            1..60,
        ),
    ) {
        let mut memory = Memory::default();
        let mut now = 0.0;
        let mut sum = Traffic::default();
        let mut replicas = ByRole { prefill: 1, decode: 1 };
        for (look, workers, prefill, decode, (obeys, rollout)) in looks {
            now += 10.0;
            let (at, routers, expected) = match look {
                Look::Wild(at, traffic, expected) => (at, traffic, expected),
                Look::Sane(more) => {
                    add(&mut sum, &more);
                    (now, vec![sum.clone()], 1)
                }
            };
            let routers = routers.into_iter().enumerate().map(|(i, traffic)| Router {
                name: format!("router-{i}"),
                waiting: traffic.arrived % 5,
                traffic,
            });
            let mut pools = ByRole { prefill, decode };
            if obeys {
                pools.prefill.wanted = replicas.prefill;
                pools.decode.wanted = replicas.decode;
            }
            let observation = Observation {
                now: at,
                unix_seconds: (now as u64).wrapping_mul(977),
                routers: routers.collect(),
                routers_expected: expected,
                workers,
                pools,
                rollout,
            };
            let decision = decide(&policy, &observation, &mut memory).expect("valid");
            check(&policy, &decision);
            replicas = decision.desired;
        }
    }
    /// What is there is left alone until enough was seen, whatever the first look shows.
    #[test]
    fn a_fresh_memory_changes_nothing(
        policy in policy(),
        traffic in traffic(),
        workers in prop::collection::vec(worker(), 0..4),
        more in (0..9_u32, 0..9_u32),
    ) {
        let mut policy = policy;
        policy.schedule.clear();
        policy.max_gpus = None;
        let of = |pool: PoolPolicy, more: u32| Pool {
            wanted: (pool.min.max(1) + more).min(pool.max),
            ..Pool::default()
        };
        let pools = ByRole {
            prefill: of(policy.pools.prefill, more.0),
            decode: of(policy.pools.decode, more.1),
        };
        let observation = Observation {
            now: 1.0,
            routers: vec![Router { name: "router-0".to_owned(), waiting: 9, traffic }],
            routers_expected: 1,
            workers,
            pools,
            ..Observation::default()
        };
        let decision = decide(&policy, &observation, &mut Memory::default()).expect("valid");
        assert!(!decision.changes(), "{decision:?}");
        assert_ne!(decision.status, Status::Active);
    }
}
