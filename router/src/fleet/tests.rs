use std::time::Duration;

use proptest::prelude::*;

use super::*;

pub fn served() -> Served {
    Served {
        model_revision: "r1".into(),
        text_revision: "t1".into(),
        vocab_size: 100,
        max_model_len: 4096,
    }
}

pub fn description(id: &str, role: Role) -> Description {
    Description {
        worker_id: id.into(),
        role,
        address: "127.0.0.1:1".into(),
        revision: String::new(),
        aggregated: false,
        compatibility: Compatibility {
            model_revision: "r1".into(),
            page_tokens: 64,
            cached_layers: 5,
            row_values: 576,
            kv_dtype: "bf16".into(),
            parallelism: "replicated".into(),
        },
        text_revision: "t1".into(),
        max_model_len: 4096,
        vocab_size: 100,
        kv_pages: 100,
        max_running: 16,
        group: None,
    }
}

fn block(n: u128) -> BlockHash {
    BlockHash(n)
}

fn attached(fleet: &mut Fleet, id: &str, role: Role, now: Instant) -> WorkerKey {
    let key = fleet.attach(description(id, role)).unwrap();
    fleet.snapshot(
        key,
        Load {
            free_pages: 100,
            ..Load::default()
        },
        vec![block(1)],
        now,
    );
    key
}

#[test]
fn a_rank_outside_its_epoch_is_not_available() {
    let mut fleet = Fleet::new(served(), 1000);
    let now = Instant::now();
    let key = attached(&mut fleet, "d0", Role::Decode, now);
    for (sequence, outside) in [(1, true), (2, false)] {
        let delta = Delta {
            sequence,
            load: Load {
                outside,
                ..Load::default()
            },
            ..Delta::default()
        };
        fleet.delta(key, delta, now).unwrap();
        assert_eq!(fleet.get(key).unwrap().is_available(), !outside);
    }
}

#[test]
fn a_worker_that_attaches_again_replaces_its_earlier_life() {
    let now = Instant::now();
    let mut fleet = Fleet::new(served(), 1000);
    let old = attached(&mut fleet, "a", Role::Decode, now);
    let mut changed = description("a", Role::Decode);
    changed.compatibility.kv_dtype = "f32".into();
    let new = fleet
        .attach(changed)
        .expect("it was alone, so the pool has no layout");
    assert_ne!(old, new);
    assert_eq!(fleet.workers(Role::Decode).count(), 1);
    assert_eq!(fleet.cached(new, &[block(1)]), 0);
    assert!(fleet.owners(&[block(1)]).workers.is_empty());
    // The old stream ends late: that must not take the new life away.
    assert!(fleet.detach(old).is_none());
    assert!(fleet.detach(new).is_some());
}

#[test]
fn a_gap_is_reported_once_and_a_snapshot_heals_it() {
    let now = Instant::now();
    let mut fleet = Fleet::new(served(), 1000);
    let key = attached(&mut fleet, "a", Role::Decode, now);
    let delta = |sequence, stored| Delta {
        sequence,
        stored: vec![block(stored)],
        ..Delta::default()
    };
    assert_eq!(fleet.delta(key, delta(1, 2), now), Ok(()));
    assert_eq!(
        fleet.delta(key, delta(3, 3), now),
        Err(Gap {
            expected: 2,
            got: 3
        })
    );
    assert_eq!(
        fleet.delta(key, delta(4, 4), now),
        Ok(()),
        "already reported"
    );
    assert!(
        fleet.cached(key, &[block(4)]) == 0,
        "nothing is applied after a gap"
    );
    assert_eq!(
        fleet.cached(key, &[block(2)]),
        1,
        "what was known stays as a hint"
    );
    assert!(fleet.get(key).unwrap().is_available());
    fleet.snapshot(key, Load::default(), vec![block(5)], now);
    assert_eq!(fleet.cached(key, &[block(2)]), 0);
    assert_eq!(fleet.delta(key, delta(1, 6), now), Ok(()));
    assert_eq!(fleet.cached(key, &[block(6)]), 1);
}

#[test]
fn a_worker_is_available_from_its_first_snapshot_until_it_drains() {
    let now = Instant::now();
    let mut fleet = Fleet::new(served(), 1000);
    let key = fleet.attach(description("a", Role::Decode)).unwrap();
    assert_eq!(fleet.available(Role::Decode).count(), 0);
    fleet.snapshot(key, Load::default(), vec![], now);
    assert_eq!(fleet.available(Role::Decode).count(), 1);
    assert_eq!(fleet.available(Role::Prefill).count(), 0);
    fleet.drain(key);
    assert_eq!(fleet.available(Role::Decode).count(), 0);
    assert_eq!(fleet.workers(Role::Decode).count(), 1);
}

#[test]
fn requests_count_from_when_they_are_sent_until_they_are_reported() {
    let start = Instant::now();
    let mut fleet = Fleet::new(served(), 1000);
    let key = attached(&mut fleet, "a", Role::Decode, start);
    let running = |fleet: &Fleet| fleet.get(key).unwrap().load().running;
    let demand = Demand {
        tokens: 64,
        pages: 1,
    };
    let report = |fleet: &mut Fleet, sequence, running, at| {
        let load = Load {
            running,
            ..Load::default()
        };
        fleet
            .delta(
                key,
                Delta {
                    sequence,
                    load,
                    ..Delta::default()
                },
                at,
            )
            .unwrap();
    };

    let first = fleet.assign(key, demand, start);
    assert_eq!(running(&fleet), 1);
    assert_eq!(fleet.get(key).unwrap().load().free_pages, 99);
    let soon = start + Duration::from_millis(1);
    report(&mut fleet, 1, 0, soon);
    assert_eq!(
        running(&fleet),
        1,
        "a report sent before the request arrived does not count it"
    );
    report(&mut fleet, 2, 1, start + SETTLE);
    assert_eq!(running(&fleet), 1, "reported now, and not counted twice");
    let second = fleet.assign(key, demand, start + SETTLE);
    assert_eq!(running(&fleet), 2);
    fleet.release(key, second);
    assert_eq!(running(&fleet), 1);
    fleet.release(key, first);
    assert_eq!(
        running(&fleet),
        1,
        "a reported request leaves with the next report"
    );
}

proptest! {
    /// Whatever deltas are lost, no lost change goes unnoticed: as long as no gap was reported, the
    /// router holds exactly what the worker holds.
    #[test]
    fn no_lost_delta_goes_unnoticed(events in prop::collection::vec((0..20u128, any::<bool>(), 0..5u8), 1..60)) {
        let now = Instant::now();
        let mut fleet = Fleet::new(served(), 1000);
        let key = fleet.attach(description("a", Role::Decode)).unwrap();
        let mut held = std::collections::BTreeSet::new();
        fleet.snapshot(key, Load::default(), vec![], now);
        let mut sequence = 0;
        for (n, store, luck) in events {
            sequence += 1;
            let mut delta = Delta { sequence, ..Delta::default() };
            if store {
                held.insert(n);
                delta.stored.push(block(n));
            } else {
                held.remove(&n);
                delta.removed.push(block(n));
            }
            let lost = luck == 0;
            if !lost && fleet.delta(key, delta, now).is_err() {
                let blocks = held.iter().map(|&n| block(n)).collect();
                fleet.snapshot(key, Load::default(), blocks, now);
                sequence = 0;
            }
            if !lost {
                for n in 0..20 {
                    prop_assert_eq!(fleet.cached(key, &[block(n)]) == 1, held.contains(&n));
                }
            }
        }
    }
}
