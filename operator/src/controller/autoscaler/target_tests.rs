use super::*;
use crate::api::ModelDeployment;
use crate::build::{self, Defaults};
use crate::controller::deployment::PoolFacts;
use crate::rollout;

pub fn spec(prefill: bool) -> PoolAutoscalerSpec {
    let mut spec = serde_json::json!({
        "target": {"name": "m"},
        "objectives": {"ttftMilliseconds": 1000},
        "decode": {"maxReplicas": 8},
        "profile": {
            "prefill": {"chunkTokens": 512, "baseSeconds": 0.01, "secondsPerToken": 1e-4, "secondsPerTokenContext": 1e-8},
            "decode": {"baseSeconds": 0.01, "secondsPerSequence": 1e-4, "secondsPerContextToken": 1e-7},
            "maxRunning": 32, "kvTokens": 100_000,
        },
    });
    if prefill {
        spec["prefill"] = serde_json::json!({"minReplicas": 2, "maxReplicas": 4});
    }
    serde_json::from_value(spec).unwrap()
}

fn resolved(pools: serde_json::Value) -> Resolved {
    let mut spec = pools;
    spec["model"] = serde_json::json!({"source": {"builtin": "tiny-r1"}});
    let json = serde_json::json!({
        "apiVersion": "serving.millrace.dev/v1alpha1", "kind": "ModelDeployment",
        "metadata": {"name": "m", "namespace": "n", "uid": "u"}, "spec": spec,
    });
    let deployment: ModelDeployment = serde_json::from_value(json).unwrap();
    let defaults = Defaults {
        image: "i".to_owned(),
        etcd: vec!["etcd:2379".to_owned()],
        operator_namespace: "o".to_owned(),
    };
    build::resolve(&deployment, &defaults).unwrap()
}

fn split() -> Resolved {
    resolved(serde_json::json!({
        "prefill": {"device": "cuda", "ranks": 8},
        "decode": {"device": "cuda", "resources": {"limits": {"nvidia.com/gpu": "2"}}, "engine": {"localPrefillTokens": 64}},
    }))
}

fn there(pools: &[(&str, Role, u32, u32, u32)]) -> There {
    let pools = pools
        .iter()
        .map(|&(revision, role, replicas, groups, ready)| PoolFacts {
            revision: revision.to_owned(),
            role,
            pool: rollout::Pool {
                replicas,
                groups,
                ready,
                ..rollout::Pool::default()
            },
            fresh: false,
            running: 0,
            groups: Default::default(),
            waits: None,
        });
    There {
        pools: pools.collect(),
        ..There::default()
    }
}

fn pool(wanted: u32, ready: u32, existing: u32) -> Pool {
    Pool {
        wanted,
        ready,
        existing,
    }
}

#[test]
fn one_pool_of_a_role_says_how_many_there_are() {
    let resolved = split();
    let revision = resolved.revision.as_str();
    let there = there(&[
        (revision, Role::Prefill, 2, 3, 2),
        (revision, Role::Decode, 4, 4, 1),
    ]);
    let target = target(&spec(true), &resolved, &there, &Default::default()).unwrap();
    assert_eq!(target.pools.prefill, pool(2, 2, 3));
    assert_eq!(target.pools.decode, pool(4, 1, 4));
    assert!(!target.rollout);
    let shape = |ranks, gpus| Shape { ranks, gpus };
    assert_eq!(target.shapes.prefill, shape(8, 8));
    assert_eq!(target.shapes.decode, shape(1, 2));
    assert_eq!(target.local_prefill_tokens, 64);
}

#[test]
fn the_surge_of_a_rollout_does_not_count() {
    let resolved = split();
    let revision = resolved.revision.as_str();
    let there = there(&[
        ("old", Role::Prefill, 2, 2, 2),
        (revision, Role::Prefill, 1, 1, 1),
        ("old", Role::Decode, 3, 4, 4),
        (revision, Role::Decode, 2, 2, 0),
    ]);
    let counts = |wanted| PoolCounts {
        wanted,
        ..PoolCounts::default()
    };
    let status = DeploymentStatus {
        prefill: counts(2),
        decode: counts(4),
        ..DeploymentStatus::default()
    };
    let target = target(&spec(true), &resolved, &there, &status).unwrap();
    assert!(target.rollout);
    assert_eq!(target.pools.prefill, pool(2, 3, 3));
    assert_eq!(target.pools.decode, pool(4, 3, 6));
}

#[test]
fn what_must_not_be_scaled_says_why() {
    let barred = |spec: &PoolAutoscalerSpec, resolved: &Resolved, there: &There| {
        target(spec, resolved, there, &Default::default()).unwrap_err()
    };
    let split = split();
    let none = There::default();
    assert_eq!(barred(&spec(false), &split, &none), Barred::Prefill);
    assert_eq!(barred(&spec(true), &split, &none), Barred::NoPools);
    let mut fresh = there(&[
        (split.revision.as_str(), Role::Prefill, 1, 1, 1),
        (split.revision.as_str(), Role::Decode, 0, 0, 0),
    ]);
    fresh.pools[1].fresh = true;
    assert_eq!(barred(&spec(true), &split, &fresh), Barred::NoPools);
    let aggregated = resolved(serde_json::json!({"decode": {}}));
    assert_eq!(barred(&spec(true), &aggregated, &none), Barred::NoPrefill);
    let declared = resolved(serde_json::json!({"decode": {"replicas": 2}}));
    let said = barred(&spec(false), &declared, &none);
    assert_eq!(said, Barred::Declared(Role::Decode));
    assert!(said.to_string().starts_with("spec.decode.replicas"));
}

#[test]
fn without_prefill_workers_there_is_one_pool() {
    let aggregated = resolved(serde_json::json!({"decode": {}}));
    let there = there(&[(aggregated.revision.as_str(), Role::Decode, 1, 1, 1)]);
    let target = target(&spec(false), &aggregated, &there, &Default::default()).unwrap();
    assert_eq!(target.pools.prefill, Pool::default());
    assert_eq!(target.shapes.prefill, Shape::default());
    assert_eq!(target.shapes.decode, Shape { ranks: 1, gpus: 1 });
    assert_eq!(target.local_prefill_tokens, LOCAL_PREFILL_TOKENS);
}
