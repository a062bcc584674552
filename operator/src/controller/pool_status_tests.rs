use std::collections::BTreeMap;

use super::*;

fn pool(replicas: i32, ranks: i32) -> WorkerPool {
    let pool = serde_json::json!({
        "apiVersion": "serving.millrace.dev/v1alpha1", "kind": "WorkerPool",
        "metadata": {"name": "m-0-decode", "namespace": "n", "generation": 7},
        "spec": {"deployment": "m", "role": "decode", "revision": "0", "replicas": replicas,
            "worker": {"image": "i", "model": {"source": {"builtin": "tiny-r1"}}, "device": "cpu",
                "ranks": ranks, "drainSeconds": 1}}});
    serde_json::from_value(pool).unwrap()
}

fn pod(name: &str, ready: bool) -> Arc<PodView> {
    let status = if ready { "True" } else { "False" };
    let pod = serde_json::json!({"metadata": {"name": name, "namespace": "n"}, "spec": {"nodeName": "a", "containers": []},
        "status": {"conditions": [{"type": "Ready", "status": status},
            {"type": "PodScheduled", "status": "True"}]}});
    Arc::new(PodView::of(&serde_json::from_value(pod).unwrap()))
}

fn group(ordinal: u32, ready: &[bool], going: bool) -> GroupFacts {
    let name = format!("m-0-decode-{ordinal}");
    let pods = ready.iter().enumerate();
    GroupFacts {
        pods: pods
            .map(|(rank, ready)| pod(&format!("{name}-{rank}"), *ready))
            .collect(),
        name,
        going,
    }
}

fn of(pool: &WorkerPool, groups: &[GroupFacts]) -> WorkerPoolStatus {
    status(pool, groups, None, None, Timestamp::UNIX_EPOCH)
}

fn condition<'a>(status: &'a WorkerPoolStatus, kind: &str) -> (&'a str, &'a str, &'a str) {
    let found = status.conditions.iter().find(|c| c.type_ == kind).unwrap();
    (&found.status, &found.reason, &found.message)
}

#[test]
fn a_pool_that_serves_is_complete() {
    let status = of(&pool(1, 2), &[group(0, &[true, true], false)]);
    assert_eq!((status.replicas, status.ready_replicas), (1, 1));
    assert_eq!(status.observed_generation, Some(7));
    assert_eq!(status.groups["m-0-decode-0"].state, "Healthy");
    assert_eq!(condition(&status, "Available").0, "True");
    assert_eq!(condition(&status, "Progressing").1, "Complete");
}

#[test]
fn a_pool_says_what_each_pod_waits_for() {
    let status = of(
        &pool(2, 2),
        &[group(0, &[true, false], false), group(1, &[], false)],
    );
    assert_eq!(status.ready_replicas, 1);
    let (available, _, message) = condition(&status, "Available");
    assert_eq!(available, "False");
    assert_eq!(
        message,
        "1 of 2 groups get requests; m-0-decode-0-1 waits for its container to be ready, \
         m-0-decode-1 waits for 2 pods to be made"
    );
}

#[test]
fn groups_that_drain_exist_and_do_not_serve() {
    let groups = [group(0, &[true], false), group(1, &[true], true)];
    let status = of(&pool(1, 1), &groups);
    assert_eq!((status.replicas, status.ready_replicas), (2, 1));
    assert_eq!(status.groups["m-0-decode-1"].state, "Draining");
    assert_eq!(
        condition(&status, "Progressing"),
        ("True", "Draining", "m-0-decode-1 drains")
    );
}

#[test]
fn a_group_without_a_rank_is_degraded_once_it_had_an_epoch() {
    let (mut pool, groups) = (pool(1, 2), [group(0, &[true, false], false)]);
    assert_eq!(of(&pool, &groups).groups["m-0-decode-0"].state, "Starting");
    let before = GroupStatus {
        epoch: Some(3),
        ..GroupStatus::default()
    };
    let groups_before = BTreeMap::from([("m-0-decode-0".to_owned(), before)]);
    pool.status = Some(WorkerPoolStatus {
        groups: groups_before,
        ..WorkerPoolStatus::default()
    });
    let status = of(&pool, &groups);
    assert_eq!(status.groups["m-0-decode-0"].state, "Degraded");
    assert_eq!(status.groups["m-0-decode-0"].epoch, Some(3));
}

#[test]
fn trouble_is_told() {
    let trouble = Some("may not apply".to_owned());
    let status = status(&pool(1, 1), &[], None, trouble, Timestamp::UNIX_EPOCH);
    assert_eq!(
        condition(&status, "Progressing"),
        ("False", "ApplyFailed", "may not apply")
    );
}
