use std::sync::Arc;

use super::super::target::Shape;
use super::super::target::tests::spec;
use super::*;
use crate::api::PoolAutoscaler;
use crate::fleet::{Counted, Worker};

fn target() -> Target {
    let shape = |ranks, gpus| Shape { ranks, gpus };
    Target {
        pools: ByRole::default(),
        shapes: ByRole {
            prefill: shape(8, 8),
            decode: shape(1, 2),
        },
        local_prefill_tokens: 16,
        rollout: false,
    }
}

fn asked(spec: &PoolAutoscalerSpec, target: &Target) -> Policy {
    policy(spec, &spec.profile.inline().unwrap(), target)
}

#[test]
fn what_a_spec_leaves_out_is_the_decisions_default() {
    let policy = asked(&spec(true), &target());
    assert_eq!(policy.behavior, policy::Behavior::default());
    assert_eq!(policy.objectives.quantile, 0.95);
    assert_eq!(policy.objectives.ttft_seconds, Some(1.0));
    assert_eq!(policy.objectives.itl_seconds, None);
    let pool = |min, max, ranks, gpus| policy::PoolPolicy {
        min,
        max,
        ranks,
        gpus,
    };
    assert_eq!(policy.pools.prefill, pool(2, 4, 8, 8));
    assert_eq!(policy.pools.decode, pool(1, 8, 1, 2));
    assert_eq!((policy.max_gpus, policy.scale_to_zero), (None, None));
    policy.validate().unwrap();
}

#[test]
fn the_sample_can_be_meant() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/millrace/samples");
    let text = std::fs::read_to_string(format!("{folder}/autoscaler.yaml")).unwrap();
    let sample: PoolAutoscaler = serde_saphyr::from_str(&text).unwrap();
    asked(&sample.spec, &target()).validate().unwrap();
}

#[test]
fn a_deployment_without_prefill_workers_has_none() {
    let policy = asked(&spec(false), &target());
    assert_eq!((policy.pools.prefill.min, policy.pools.prefill.max), (0, 0));
}

#[test]
fn days_and_times_are_those_of_the_spec() {
    let mut spec = spec(true);
    let hints = serde_json::json!([
        {"name": "office", "days": ["Mon", "Fri"], "from": "07:30", "until": "18:00", "decodeReplicas": 3},
        {"from": "23:00", "until": "01:00", "prefillReplicas": 2},
    ]);
    spec.schedule = serde_json::from_value(hints).unwrap();
    let hints = asked(&spec, &target()).schedule;
    assert_eq!(
        hints[0].days,
        [true, false, false, false, true, false, false]
    );
    assert_eq!((hints[0].from, hints[0].until), (27_000, 64_800));
    assert_eq!((hints[0].min.prefill, hints[0].min.decode), (0, 3));
    assert_eq!(hints[1].days, [true; 7]);
    assert_eq!((hints[1].from, hints[1].until), (82_800, 3_600));
}

#[test]
fn routers_that_are_not_heard_are_expected() {
    let heard = Counted {
        router: "r-0".into(),
        waiting: 3,
        traffic: wire::Traffic {
            incarnation: 7,
            arrived: 11,
            first_token_seconds: Some(wire::Distribution {
                bounds: vec![0.1],
                counts: vec![9, 2],
                sum: 1.5,
            }),
            ..wire::Traffic::default()
        },
    };
    let traffic = Traffic {
        counted: vec![heard],
        unheard: vec![Arc::from("r-1")],
    };
    let seen = observation(
        &target(),
        &traffic,
        None,
        Duration::from_secs(4),
        Duration::ZERO,
    );
    assert_eq!((seen.routers.len(), seen.routers_expected), (1, 2));
    let router = &seen.routers[0];
    assert_eq!((router.waiting, router.traffic.arrived), (3, 11));
    assert_eq!(router.traffic.first_token_seconds.counts, [9, 2]);
    assert_eq!(router.traffic.queue_seconds, Default::default());
    assert_eq!(seen.now, 4.0);
}

#[test]
fn workers_that_no_router_has_are_none() {
    let worker = |attached, routable| Worker {
        role: Some(Role::Decode),
        revision: String::new(),
        routable,
        attached,
        draining: false,
        running: 2,
        waiting: 0,
        waiting_tokens: 9,
        max_running: 8,
        kv_pages: 100,
        free_pages: 60,
        group: None,
        rank: 0,
    };
    let view = DeploymentView {
        workers: [
            ("open", worker(true, Routable::Yes)),
            ("new", worker(true, Routable::Unsettled)),
            ("refused", worker(false, Routable::No(String::new()))),
            ("starts", worker(true, Routable::No(String::new()))),
        ]
        .map(|(name, worker)| (name.to_owned(), worker))
        .into(),
        ..DeploymentView::default()
    };
    let none = Traffic::default();
    let zero = Duration::ZERO;
    let workers = observation(&target(), &none, Some(&view), zero, zero).workers;
    let available: Vec<bool> = workers.iter().map(|worker| worker.available).collect();
    assert_eq!(available, [true, true, false]);
    assert_eq!((workers[0].kv_pages, workers[0].free_pages), (100, 60));
}

/// Sums of a router at `second`, with `rate` sequences a second of which each waits for a turn.
fn counted(second: u64, rate: u64) -> Counted {
    let arrived = second * rate;
    let slow = |bounds: &[f64], counts: &[u64], sum: f64| wire::Distribution {
        bounds: bounds.to_vec(),
        counts: counts.to_vec(),
        sum,
    };
    let sequences = arrived as f64;
    let traffic = wire::Traffic {
        incarnation: 7,
        seconds: second as f64,
        arrived,
        refused: 0,
        prompt_tokens: 200 * arrived,
        cached_prompt_tokens: 0,
        generated_tokens: 100 * arrived,
        updates: 100 * arrived,
        queue_seconds: Some(slow(&[1.0, 4.0], &[0, arrived, 0], 3.0 * sequences)),
        first_token_seconds: Some(slow(&[1.0, 4.0], &[0, arrived, 0], 3.2 * sequences)),
        inter_token_seconds: Some(slow(&[0.02, 0.05], &[99 * arrived, 0, 0], 1.5 * sequences)),
        prompt_length: Some(slow(&[100.0, 500.0], &[0, arrived, 0], 200.0 * sequences)),
        generation_length: Some(slow(&[50.0, 200.0], &[0, arrived, 0], 100.0 * sequences)),
    };
    Counted {
        router: "r-0".into(),
        waiting: 3 * rate,
        traffic,
    }
}

#[test]
fn what_routers_counted_makes_the_decision_as_long_as_all_are_heard() {
    let mut target = target();
    for pool in [&mut target.pools.prefill, &mut target.pools.decode] {
        (pool.wanted, pool.ready, pool.existing) = (2, 2, 2);
    }
    let policy = asked(&spec(true), &target);
    let mut memory = millrace_autoscaler::Memory::default();
    let mut decide = |second: u64, gap: bool| {
        let traffic = Traffic {
            counted: vec![counted(second, 60)],
            unheard: gap.then(|| Arc::from("r-1")).into_iter().collect(),
        };
        let now = Duration::from_secs(second);
        let seen = observation(&target, &traffic, Some(&busy()), now, now);
        millrace_autoscaler::decide(&policy, &seen, &mut memory).unwrap()
    };
    let first = decide(0, false);
    assert!(!first.changes(), "nothing was seen yet");
    for second in (15..300).step_by(15) {
        let decision = decide(second, true);
        assert!(!decision.changes(), "a router is not heard");
    }
    let mut last = decide(300, false);
    for second in (315..600).step_by(15) {
        last = decide(second, false);
    }
    assert_eq!(
        last.status,
        millrace_autoscaler::Status::Active,
        "{}",
        last.message()
    );
    let groups = last.desired.prefill + last.desired.decode;
    assert!(
        groups > 4,
        "TTFT is three times its objective: {}",
        last.message()
    );
    let seen = last.seen.unwrap();
    assert!((seen.arrival_rate - 60.0).abs() < 1.0, "{seen:?}");
    assert_eq!((seen.mean_prompt, seen.mean_generation), (200.0, 100.0));
}

/// Two decode workers that run as many sequences as they may, and two prefill workers.
fn busy() -> DeploymentView {
    let worker = |role, running| Worker {
        role: Some(role),
        revision: String::new(),
        routable: Routable::Yes,
        attached: true,
        draining: false,
        running,
        waiting: 0,
        waiting_tokens: 0,
        max_running: 32,
        kv_pages: 2000,
        free_pages: 1000,
        group: None,
        rank: 0,
    };
    let workers = [
        ("d-0", worker(Role::Decode, 32)),
        ("d-1", worker(Role::Decode, 32)),
        ("p-0", worker(Role::Prefill, 4)),
        ("p-1", worker(Role::Prefill, 4)),
    ];
    DeploymentView {
        workers: workers
            .map(|(name, worker)| (name.to_owned(), worker))
            .into(),
        ..DeploymentView::default()
    }
}
