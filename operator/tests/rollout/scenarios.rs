//! What people do, step by step.

use std::collections::BTreeMap;

use millrace_operator::api::Role;
use millrace_operator::rollout::{Pool, Revision, Revisions, Step, Strategy, Wait, Wanted, plan};

const SURGE: Strategy = Strategy {
    surge: 1,
    unavailable: 0,
};

fn wanted(revision: &str, n: u32) -> Wanted {
    Wanted {
        revision: revision.to_owned(),
        prefill: Some(n),
        decode: n,
    }
}

/// Both pools alike.
fn revision(replicas: u32, ready: u32) -> Revision {
    let pool = Pool {
        replicas,
        groups: replicas,
        ready,
        ..Pool::default()
    };
    Revision {
        prefill: Some(pool),
        decode: Some(pool),
        served: ready > 0,
    }
}

fn there(of: &[(&str, Revision)]) -> Revisions {
    let named = of
        .iter()
        .map(|(name, revision)| ((*name).to_owned(), *revision));
    named.collect::<BTreeMap<_, _>>()
}

fn scale(revision: &str, role: Role, from: u32, to: u32) -> Step {
    Step::Scale {
        revision: revision.to_owned(),
        role,
        from,
        to,
    }
}

#[test]
fn a_first_deployment_gets_everything_at_once() {
    let first = plan(&wanted("a", 3), SURGE, false, &Revisions::new());
    let create = |role| Step::Create {
        revision: "a".to_owned(),
        role,
    };
    assert_eq!(first.steps, [create(Role::Prefill), create(Role::Decode)]);
    let empty = there(&[("a", revision(0, 0))]);
    let second = plan(&wanted("a", 3), SURGE, false, &empty);
    assert_eq!(
        second.steps,
        [
            scale("a", Role::Prefill, 0, 3),
            scale("a", Role::Decode, 0, 3)
        ]
    );
}

#[test]
fn a_bad_image_takes_nothing_from_what_serves() {
    let world = there(&[("a", revision(2, 2)), ("bad", revision(1, 0))]);
    let plan = plan(&wanted("bad", 2), SURGE, false, &world);
    assert_eq!(plan.steps, []);
    let missing = |role| Wait::Ready {
        revision: "bad".to_owned(),
        role,
        missing: 2,
    };
    assert_eq!(
        plan.waits,
        [
            missing(Role::Prefill),
            missing(Role::Decode),
            Wait::Router { older: true }
        ]
    );
}

#[test]
fn going_back_drops_the_new_one_and_leaves_the_old_one_alone() {
    let world = there(&[("a", revision(2, 2)), ("bad", revision(1, 0))]);
    let plan = plan(&wanted("a", 2), SURGE, true, &world);
    assert_eq!(
        plan.steps,
        [
            scale("bad", Role::Decode, 1, 0),
            scale("bad", Role::Prefill, 1, 0)
        ]
    );
}

#[test]
fn going_back_half_way_adds_to_the_old_one_before_it_takes_from_the_new_one() {
    // One has gone, one of the new serves: two pairs of two. One more may exist.
    let world = there(&[("a", revision(1, 1)), ("b", revision(1, 1))]);
    let plan = plan(&wanted("a", 2), SURGE, true, &world);
    assert_eq!(
        plan.steps,
        [
            scale("a", Role::Prefill, 1, 2),
            scale("a", Role::Decode, 1, 2)
        ]
    );
}

#[test]
fn a_third_revision_on_top_of_a_stuck_one_takes_its_place() {
    let world = there(&[("a", revision(2, 2)), ("bad", revision(1, 0))]);
    let first = plan(&wanted("c", 2), SURGE, false, &world);
    assert_eq!(
        first.steps[..2],
        [
            scale("bad", Role::Decode, 1, 0),
            scale("bad", Role::Prefill, 1, 0)
        ]
    );
    let creates = first.steps[2..]
        .iter()
        .all(|step| matches!(step, Step::Create { .. }));
    assert!(creates, "{first:?}");

    let mut gone = revision(0, 0);
    gone.served = false;
    let world = there(&[("a", revision(2, 2)), ("bad", gone), ("c", revision(0, 0))]);
    let second = plan(&wanted("c", 2), SURGE, false, &world);
    assert!(
        second.steps.contains(&scale("c", Role::Decode, 0, 1)),
        "{second:?}"
    );
    let deletes = second
        .steps
        .iter()
        .filter(|step| matches!(step, Step::Delete { revision, .. } if revision == "bad"));
    assert_eq!(deletes.count(), 2);
}

#[test]
fn groups_that_drain_count_as_existing() {
    let mut old = revision(1, 1);
    old.decode.as_mut().unwrap().groups = 2;
    let world = there(&[("a", old), ("b", revision(1, 1))]);
    let plan = plan(&wanted("b", 2), SURGE, true, &world);
    assert_eq!(plan.steps, []);
    assert!(plan.waits.contains(&Wait::Drained {
        revision: "a".to_owned(),
        role: Role::Decode,
        groups: 1
    }));
}

#[test]
fn the_last_old_pair_stays_until_the_router_is_done() {
    let world = there(&[("a", revision(1, 1)), ("b", revision(1, 1))]);
    assert_eq!(plan(&wanted("b", 1), SURGE, false, &world).steps, []);
    let after = plan(&wanted("b", 1), SURGE, true, &world);
    assert_eq!(
        after.steps,
        [
            scale("a", Role::Decode, 1, 0),
            scale("a", Role::Prefill, 1, 0)
        ]
    );
}

#[test]
fn a_single_pair_without_surge_makes_room_for_its_successor() {
    let limits = Strategy {
        surge: 0,
        unavailable: 1,
    };
    let world = there(&[("a", revision(1, 1))]);
    let plan = plan(&wanted("b", 1), limits, false, &world);
    assert!(plan.steps.contains(&scale("a", Role::Decode, 1, 0)));
}

#[test]
fn nothing_is_decided_on_numbers_of_before_the_last_change() {
    // It was scaled from 1 to 2 a moment ago; "2 ready" is of earlier, when two were there.
    let mut old = revision(2, 2);
    old.decode.as_mut().unwrap().outdated = true;
    let world = there(&[("a", old), ("b", revision(1, 1))]);
    let plan = plan(&wanted("a", 2), SURGE, true, &world);
    assert_eq!(plan.steps, []);
    let counted = |wait: &Wait| wait.reason() == "WaitingForPool";
    assert!(plan.waits.iter().any(counted));
}

#[test]
fn an_aggregated_deployment_splits_and_joins() {
    let joined = Wanted {
        revision: "joined".to_owned(),
        prefill: None,
        decode: 2,
    };
    let world = there(&[
        ("split", revision(2, 2)),
        (
            "joined",
            Revision {
                prefill: None,
                ..revision(1, 1)
            },
        ),
    ]);
    let plan = plan(&joined, SURGE, true, &world);
    assert_eq!(
        plan.steps,
        [
            scale("split", Role::Decode, 2, 1),
            scale("split", Role::Prefill, 2, 1)
        ]
    );
}
