//! Rows go where they should and come back computed, bit for bit.

mod common;

use std::cell::Cell;
use std::thread;
use std::time::Duration;

use common::*;
use millrace_engine::exchange::{Parcel, StepDropped, Work};
use millrace_exchange::FrameLimits;
use millrace_experts::group::Start;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

fn parcel() -> impl Strategy<Value = Parcel> {
    prop_oneof![
        1 => Just(Parcel::default()),
        3 => (1..5usize).prop_flat_map(|rows| {
            let work = (0..rows as u32, 0..LIMITS.slots as u32).prop_map(|(row, slot)| Work { row, slot });
            proptest::collection::vec(work, 0..12).prop_map(move |work| Parcel { rows, work })
        }),
    ]
}

/// `[layer][rank]` what each sends, among `members` of four ranks.
fn steps() -> impl Strategy<Value = (Vec<usize>, Vec<Vec<Load>>)> {
    let members = proptest::sample::subsequence(vec![0, 1, 2, 3], 1..=4);
    (members, 1..4usize, any::<u32>()).prop_flat_map(|(members, layers, salt)| {
        let one = proptest::collection::vec(parcel(), 4);
        let loads = proptest::collection::vec(proptest::collection::vec(one, 4), layers);
        loads.prop_map(move |loads| {
            let made = loads.into_iter().map(|ranks| {
                let of_rank = |(rank, mut parcels): (usize, Vec<Parcel>)| {
                    for (to, parcel) in parcels.iter_mut().enumerate() {
                        if !members.contains(&to) || !members.contains(&rank) {
                            *parcel = Parcel::default();
                        }
                    }
                    let rows: usize = parcels.iter().map(|parcel| parcel.rows).sum();
                    let values =
                        (0..(rows * LIMITS.hidden) as u32).map(|at| noise(at, salt ^ rank as u32));
                    Load {
                        values: values.collect(),
                        parcels,
                    }
                };
                ranks.into_iter().enumerate().map(of_rank).collect()
            });
            (members.clone(), made.collect())
        })
    })
}

#[test]
fn any_parcels_return_computed() {
    let group = Group::new(4, LIMITS);
    let number = Cell::new(0);
    let mut runner = TestRunner::new(Config::with_cases(60));
    let tested = runner.run(&steps(), |(members, layers)| {
        // A case of its own step; shrinking must not repeat one.
        number.set(number.get() + 1);
        let ids: Vec<_> = members.iter().map(|rank| group.ids[*rank]).collect();
        thread::scope(|scope| {
            for &rank in &members {
                let (group, ids, layers) = (&group, &ids, &layers);
                let number = number.get();
                scope.spawn(move || {
                    let loads: Vec<_> = layers.iter().map(|ranks| ranks[rank].clone()).collect();
                    step(
                        &group.meshes[rank],
                        (1, number),
                        group.ids[rank],
                        ids,
                        &loads,
                        &LIMITS,
                    )
                    .unwrap();
                });
            }
        });
        Ok(())
    });
    tested.unwrap();
    for mesh in &group.meshes {
        assert_eq!(mesh.take_lost(), []);
    }
}

/// What members tell each other before the first layer, round by round.
#[test]
fn all_members_hear_the_same_words() {
    let group = Group::new(4, LIMITS);
    let members = [0, 1, 3];
    let ids = members.map(|rank| group.ids[rank]);
    let word = |rank: usize, round: usize| vec![rank as u8; 40 * round * (rank + 1)];
    thread::scope(|scope| {
        for rank in members {
            let (group, ids) = (&group, &ids);
            scope.spawn(move || {
                let mut exchange = group.meshes[rank].exchange(1, 0, ids, 4);
                for round in 0..3 {
                    let heard = share(&mut exchange, round, &word(rank, round)).unwrap();
                    let expected = (0..4).map(|rank| (rank != 2).then(|| word(rank, round)));
                    assert_eq!(heard, expected.collect::<Vec<_>>());
                }
                assert!(!is_over(&exchange));
            });
        }
    });
    // One that is gone is no longer waited for, and is known to be.
    let exchange = group.meshes[0].exchange(1, 1, &ids, 4);
    group.meshes[0].interrupt(2);
    assert!(is_over(&exchange));
}

/// More at once, from everyone to everyone, than sockets hold.
#[test]
fn large_parcels_both_ways_do_not_wait_in_a_circle() {
    let limits = FrameLimits {
        hidden: 4096,
        rows: 512,
        work: 1024,
        slots: 8,
    };
    let group = Group::new(3, limits);
    thread::scope(|scope| {
        for rank in 0..3 {
            let group = &group;
            scope.spawn(move || {
                let loads: Vec<_> = (0..2)
                    .map(|salt| Load::even(&[512; 3], 2, &limits, salt * 7 + rank as u32))
                    .collect();
                step(
                    &group.meshes[rank],
                    (1, 0),
                    group.ids[rank],
                    &group.ids,
                    &loads,
                    &limits,
                )
                .unwrap();
            });
        }
    });
    let stats = group.meshes[0].stats();
    assert_eq!(stats.len(), 2);
    for peer in stats {
        // Two layers: rows there, one result a piece of work back.
        let values = 2 * (512 + 1024) * 4096 * 4;
        assert!(
            peer.bytes_sent > values && peer.bytes_received > values,
            "{peer:?}"
        );
        assert!(
            peer.frames_sent >= 4 && peer.links == 1 && peer.losses == 0,
            "{peer:?}"
        );
    }
}

#[test]
fn a_rank_alone_needs_no_socket() {
    let group = Group::new(1, LIMITS);
    let load = Load::even(&[9], 3, &LIMITS, 5);
    step(
        &group.meshes[0],
        (1, 0),
        group.ids[0],
        &group.ids,
        &[load],
        &LIMITS,
    )
    .unwrap();
}

/// Slower than silence would be allowed to last: its heartbeats speak for it.
#[test]
fn a_slow_rank_is_waited_for() {
    let silence = Duration::from_secs(1);
    let group = Group::of(2, |id| impatient(id, LIMITS, silence));
    let load = |rank| [Load::even(&[3, 4], 2, &LIMITS, rank)];
    thread::scope(|scope| {
        scope.spawn(|| {
            step(
                &group.meshes[0],
                (1, 0),
                group.ids[0],
                &group.ids,
                &load(0),
                &LIMITS,
            )
            .unwrap()
        });
        thread::sleep(silence * 2);
        step(
            &group.meshes[1],
            (1, 0),
            group.ids[1],
            &group.ids,
            &load(1),
            &LIMITS,
        )
        .unwrap();
    });
    assert_eq!(group.meshes[0].take_lost(), []);
    assert!(group.meshes[0].stats()[0].waited > silence);
}

#[test]
fn starts_reach_every_other_member_in_order() {
    let group = Group::new(3, LIMITS);
    let start = |step| Start {
        epoch: 4,
        step,
        ready_for: 5 + step,
        rows: 17,
    };
    for step in 0..3 {
        group.meshes[1].announce(&start(step), &group.ids);
    }
    for at in [0, 2] {
        let mut got = Vec::new();
        while got.len() < 3 {
            got.extend(group.meshes[at].take_starts());
        }
        assert_eq!(got, [0, 1, 2].map(|step| (group.ids[1], start(step))));
    }
    assert_eq!(group.meshes[1].take_starts(), []);
}

#[test]
fn an_interrupt_ends_the_step_that_waits_and_those_to_come() {
    let group = Group::new(2, LIMITS);
    let load = [Load::even(&[3, 4], 2, &LIMITS, 1)];
    let mesh = &group.meshes[0];
    let run = |epoch| step(mesh, (epoch, 0), group.ids[0], &group.ids, &load, &LIMITS);
    thread::scope(|scope| {
        let waits = scope.spawn(|| run(3));
        // Whether it comes before, while or after the step waits, the step is dropped.
        until("dispatched", || {
            group.meshes[1].stats()[0].frames_received > 0
        });
        mesh.interrupt(4);
        assert_eq!(waits.join().unwrap(), Err(StepDropped));
    });
    assert_eq!(run(3), Err(StepDropped));
    assert_eq!(mesh.take_lost(), []);

    // What the dropped step sent is in nobody's way.
    let other = [Load::even(&[1, 6], 1, &LIMITS, 2)];
    thread::scope(|scope| {
        scope.spawn(|| run(4).unwrap());
        step(
            &group.meshes[1],
            (4, 0),
            group.ids[1],
            &group.ids,
            &other,
            &LIMITS,
        )
        .unwrap();
    });
}
