//! Ranks that go, fall silent, come back or cannot see each other.

mod common;

use std::io::Write;
use std::thread;
use std::time::Duration;

use common::*;
use millrace_engine::exchange::StepDropped;
use millrace_exchange::LinkError;
use millrace_experts::group::Start;

const SILENCE: Duration = Duration::from_millis(500);

fn load(salt: u32, ranks: usize) -> [Load; 1] {
    [Load::even(&vec![3; ranks], 2, &LIMITS, salt)]
}

#[test]
fn a_rank_that_goes_drops_the_step() {
    let mut group = Group::new(3, LIMITS);
    let gone = group.meshes.pop().unwrap();
    thread::scope(|scope| {
        let waiting: Vec<_> = (0..2)
            .map(|rank| {
                let group = &group;
                scope.spawn(move || {
                    let me = group.ids[rank];
                    step(
                        &group.meshes[rank],
                        (1, 0),
                        me,
                        &group.ids,
                        &load(rank as u32, 3),
                        &LIMITS,
                    )
                })
            })
            .collect();
        until("both sent to it", || {
            gone.stats().iter().all(|peer| peer.frames_received > 0)
        });
        drop(gone);
        for waits in waiting {
            assert_eq!(waits.join().unwrap(), Err(StepDropped));
        }
    });
    for mesh in &group.meshes {
        // Told before the step was dropped, and once.
        assert_eq!(mesh.take_lost(), [group.ids[2]]);
        assert_eq!(mesh.take_lost(), []);
        assert_eq!(mesh.linked().len(), 1);
    }
    // Under the next epoch the two that are left go on.
    let left = &group.ids[..2];
    thread::scope(|scope| {
        for rank in 0..2 {
            let group = &group;
            scope.spawn(move || {
                let mut load = load(rank as u32, 2);
                load[0].parcels.push(Default::default());
                step(
                    &group.meshes[rank],
                    (2, 0),
                    group.ids[rank],
                    left,
                    &load,
                    &LIMITS,
                )
                .unwrap();
            });
        }
    });
}

/// Shakes hands, and then says nothing: stopped, or behind a cut cable.
#[test]
fn a_silent_rank_is_lost() {
    let (silent, me) = (life(0, 9), life(1, 1));
    let mesh = impatient(me, LIMITS, SILENCE);
    mesh.set_peers(&[member(silent, anywhere())]);
    let (_open, kind, _) = raw::greet(mesh.address(), (silent, me), "group", "abc", &LIMITS);
    assert_eq!(kind, raw::WELCOME);
    until("linked", || mesh.linked() == [silent]);
    let dropped = step(&mesh, (1, 0), me, &[silent, me], &load(1, 2), &LIMITS);
    assert_eq!(dropped, Err(StepDropped));
    assert_eq!(mesh.take_lost(), [silent]);
    assert!(matches!(mesh.problems()[..], [(_, LinkError::Silent(_))]));
}

/// A stopped rank does not read either: a sender whose socket is full must not hang.
#[test]
fn a_full_socket_of_a_silent_rank_is_lost_too() {
    let limits = millrace_exchange::FrameLimits {
        hidden: 4096,
        rows: 2048,
        work: 2048,
        slots: 8,
    };
    let (silent, me) = (life(0, 9), life(1, 1));
    let mesh = impatient(me, limits, SILENCE);
    mesh.set_peers(&[member(silent, anywhere())]);
    let (_open, kind, _) = raw::greet(mesh.address(), (silent, me), "group", "abc", &limits);
    assert_eq!(kind, raw::WELCOME);
    until("linked", || mesh.linked() == [silent]);
    let load = [Load::even(&[2048, 0], 1, &limits, 3)];
    let dropped = step(&mesh, (1, 0), me, &[silent, me], &load, &limits);
    assert_eq!(dropped, Err(StepDropped));
    assert_eq!(mesh.take_lost(), [silent]);
}

/// Two of three cannot reach each other: both say so, and the third sees nothing wrong.
#[test]
fn a_partition_between_two_is_seen_by_the_two() {
    let group = Group::new(3, LIMITS);
    let without = |rank: usize| {
        let mut members = group.members.clone();
        members.remove(rank);
        members
    };
    group.meshes[0].set_peers(&without(1));
    group.meshes[1].set_peers(&without(0));
    until("seen by both", || group.meshes[1].linked().len() == 1);
    assert_eq!(group.meshes[0].take_lost(), [group.ids[1]]);
    assert_eq!(group.meshes[1].take_lost(), [group.ids[0]]);
    assert_eq!(group.meshes[2].linked(), group.ids[..2]);
    thread::scope(|scope| {
        let third = scope.spawn(|| {
            step(
                &group.meshes[2],
                (1, 0),
                group.ids[2],
                &group.ids,
                &load(2, 3),
                &LIMITS,
            )
        });
        for rank in 0..2 {
            let me = group.ids[rank];
            let dropped = step(
                &group.meshes[rank],
                (1, 0),
                me,
                &group.ids,
                &load(0, 3),
                &LIMITS,
            );
            assert_eq!(dropped, Err(StepDropped));
        }
        // It waits for an order, not for a timeout.
        thread::sleep(Duration::from_millis(300));
        assert!(!third.is_finished());
        group.meshes[2].interrupt(2);
        assert_eq!(third.join().unwrap(), Err(StepDropped));
    });
    assert_eq!(group.meshes[2].take_lost(), []);
}

#[test]
fn a_new_life_is_linked_and_hears_nothing_old() {
    let mut group = Group::new(2, LIMITS);
    let old = group.meshes.pop().unwrap();
    let survivor = &group.meshes[0];
    // The old life's word for a step that will never be, not taken yet.
    let start = Start {
        epoch: 1,
        step: 0,
        ready_for: 1,
        rows: 1,
    };
    old.announce(&start, &group.ids);
    until("it came", || survivor.stats()[0].frames_received > 0);
    thread::scope(|scope| {
        let half =
            scope.spawn(|| step(&old, (1, 0), group.ids[1], &group.ids, &load(1, 2), &LIMITS));
        until("half a step came", || {
            survivor.stats()[0].frames_received > 1
        });
        old.interrupt(2);
        assert_eq!(half.join().unwrap(), Err(StepDropped));
    });
    let address = old.address();
    drop(old);
    until("noticed", || survivor.take_lost() == [group.ids[1]]);

    let new_id = life(1, 2);
    let mut config = config(new_id, LIMITS);
    config.listen = address;
    let new = millrace_exchange::Mesh::bind(config, std::sync::Arc::new(|| {})).unwrap();
    let members = [group.members[0].clone(), member(new_id, address)];
    new.set_peers(&members);
    // Still looking for the old life, which is told that another one lives there.
    until("turned away", || {
        matches!(
            survivor.problems()[..],
            [(
                _,
                LinkError::Refused(millrace_exchange::Refusal::OtherLife { .. })
            )]
        )
    });
    survivor.set_peers(&members);
    until("linked again", || {
        survivor.linked() == [new_id] && new.linked() == [group.ids[0]]
    });
    assert_eq!(survivor.take_starts(), []);
    let ids = [group.ids[0], new_id];
    // The same step of the same epoch: only what the new life sends may be taken for it.
    thread::scope(|scope| {
        scope.spawn(|| step(survivor, (1, 0), ids[0], &ids, &load(8, 2), &LIMITS).unwrap());
        step(&new, (1, 0), ids[1], &ids, &load(9, 2), &LIMITS).unwrap();
    });
}

/// The process lives, its connection broke: a new link, but not for the epoch that lost something.
#[test]
fn a_link_made_anew_does_not_serve_the_epoch_it_broke_under() {
    let (peer, me) = (life(0, 9), life(1, 1));
    let mesh = mesh(me, LIMITS);
    mesh.set_peers(&[member(peer, anywhere())]);
    let greet = || raw::greet(mesh.address(), (peer, me), "group", "abc", &LIMITS).0;
    let first = greet();
    until("linked", || mesh.linked() == [peer]);
    let start = Start {
        epoch: 3,
        step: 0,
        ready_for: 3,
        rows: 1,
    };
    mesh.announce(&start, &[peer, me]);
    // It dials again while its old connection still looks well from here.
    let mut second = greet();
    until("replaced", || mesh.stats()[0].links == 2);
    drop(first);
    assert_eq!(mesh.take_lost(), [peer]);
    assert_eq!(mesh.linked(), [peer]);
    let run = |epoch| step(&mesh, (epoch, 0), me, &[peer, me], &load(1, 2), &LIMITS);
    assert_eq!(run(3), Err(StepDropped));
    // Under the next epoch the new link serves; an empty dispatch comes, and no results.
    let dispatch = raw::Header {
        kind: raw::DISPATCH,
        short: [0, 0, 0, 0],
        long: [4, 0, 0],
    };
    second.write_all(&dispatch.bytes()).unwrap();
    thread::scope(|scope| {
        let waits = scope.spawn(|| run(4));
        until("responded", || mesh.stats()[0].frames_sent >= 3);
        drop(second);
        assert_eq!(waits.join().unwrap(), Err(StepDropped));
    });
}
