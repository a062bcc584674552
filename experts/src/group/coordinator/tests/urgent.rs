use super::*;

#[test]
fn a_dead_rank_is_evicted_at_once() {
    let mut group = Group::serving(3, 4, 4);
    group.detach(1);
    assert_eq!(
        group.decide(),
        None,
        "its stream to this router broke, no more is known"
    );
    group.lose(2, 1);
    let write = group.write();
    assert_eq!((write.number(), write.epoch().reset), (2, 2));
    assert_eq!(write.ranks(), [0, 2]);
    group.adopt();
    assert_eq!(group.decide(), None);
    assert_eq!(group.coordinator.state(), &State::Degraded);
}

#[test]
fn a_rank_that_does_not_return_is_evicted() {
    let mut group = Group::serving(3, 4, 4);
    group.detach(1);
    assert_eq!(group.decide(), None);
    assert_eq!(group.coordinator.next_deadline(), Some(ms(3000)));
    group.after(2999);
    assert_eq!(group.decide(), None);
    group.attach(1);
    assert_eq!(group.after(5000).decide(), None);
    group.detach(1);
    group.decide();
    assert_eq!(group.after(3000).write().ranks(), [0, 2]);
}

#[test]
fn a_router_that_restarts_evicts_nobody() {
    let mut group = Group::serving(3, 4, 4);
    group.coordinator = Coordinator::new(group.shape, 8, Config::default(), ms(0));
    group.coordinator.store(group.view.clone(), ms(0));
    assert_eq!(group.decide(), None);
    group.attach(0);
    assert_eq!(group.after(2999).decide(), None);
    group.attach(1);
    group.attach(2);
    assert_eq!(group.after(5000).decide(), None);
    assert_eq!(group.coordinator.state(), &State::Serving);
}

#[test]
fn a_stopped_rank_is_evicted_at_once() {
    // Its stream is open, and its last report says that all is well.
    let mut group = Group::serving(3, 4, 4);
    group.lose(0, 2);
    assert_eq!(group.decide(), None);
    group.lose(1, 2);
    assert_eq!(group.write().ranks(), [0, 1]);
    group.adopt();
    assert_eq!(group.decide(), None, "it is attached, but has no link");
}

#[test]
fn of_several_that_stopped_those_that_live_stay() {
    let mut group = Group::serving(4, 4, 12);
    for peer in [0, 1, 2] {
        group.lose(3, peer);
    }
    assert_eq!(group.decide(), None);
    assert_eq!(group.after(500).write().ranks(), [3]);
}

#[test]
fn a_partition_costs_one_rank() {
    let mut group = Group::serving(4, 4, 4);
    group.lose(0, 2);
    group.lose(2, 0);
    assert_eq!(group.decide(), None);
    assert_eq!(group.coordinator.state(), &State::Paused(Pause::Links));
    assert_eq!(group.coordinator.next_deadline(), Some(ms(500)));
    assert_eq!(group.after(499).decide(), None);
    assert_eq!(
        group.after(1).write().ranks(),
        [0, 1, 3],
        "of two the higher rank"
    );

    // One that has lost two is worse than those it has lost.
    let mut group = Group::serving(4, 4, 4);
    for peer in [1, 3] {
        group.lose(0, peer);
        group.lose(peer, 0);
    }
    assert_eq!(group.decide(), None);
    assert_eq!(group.after(500).write().ranks(), [1, 2, 3]);
}

#[test]
fn between_two_ranks_one_witness_is_not_enough() {
    let mut group = Group::serving(2, 2, 2);
    group.lose(1, 0);
    assert_eq!(group.decide(), None);
    group.lose(0, 1);
    assert_eq!(group.after(100).decide(), None);
    group.relink(0, 1);
    group.relink(1, 0);
    let write = group.write();
    assert_eq!((write.number(), write.epoch().reset), (2, 2));
    assert_eq!(write.ranks(), [0, 1], "healed, but the step is lost");
    group.adopt();
    assert_eq!(group.decide(), None);
}

#[test]
fn a_rank_that_missed_an_agreement_is_helped_out() {
    // The others left epoch 1 for 2, but the words did not reach rank 1.
    let mut group = Group::serving(3, 4, 4);
    let (placement, loads) = (
        Placement::initial(group.shape.shape).unwrap(),
        Loads::zero(2, 4),
    );
    let taken = group
        .coordinator
        .propose(1, Arc::new(placement), Arc::new(loads));
    assert_eq!(taken, Ok(()));
    group.write();
    (0..3).for_each(|rank| group.stage(rank, Ok(())));
    assert_eq!(group.write().epoch().reset, 1);
    let old = group.reports[1].adopted.clone();
    group.adopt();
    group.change(1, |report| {
        report.adopted = old;
        report.lost = vec![id(0)];
    });
    let write = group.write();
    assert_eq!((write.number(), write.epoch().reset), (3, 3));
    assert_eq!(group.decide(), None, "a reset is on its way to all");
}

#[test]
fn experts_without_a_replica_are_staged_first() {
    let mut group = Group::serving(3, 4, 2);
    let placement = Arc::clone(&group.view.epoch.as_ref().unwrap().placement);
    assert!(!placement.missing(&[true, true, false]).is_empty());
    group.detach(2);
    group.lose(0, 2);
    group.lose(1, 2);
    let plan = group.write();
    assert!(matches!(plan, Write::Publish(_)));
    assert_eq!(group.coordinator.state(), &State::Paused(Pause::Repair));
    assert_eq!((plan.ranks(), plan.epoch().reset), (vec![0, 1], 2));
    assert_eq!(plan.epoch().check(), Ok(()));
    group.stage(0, Ok(()));
    assert_eq!(group.decide(), None);
    group.stage(1, Err("checksum".into()));
    let why = group.write().why();
    assert!(matches!(why, Void::Staging { rank, .. } if rank == id(1)));
    assert_eq!(group.decide(), None);
    assert_eq!(group.coordinator.next_deadline(), Some(ms(1000)));
    group.after(1000).write();
    group.stage(0, Ok(()));
    group.stage(1, Ok(()));
    assert_eq!(group.write().number(), 2);
}

#[test]
fn who_returns_while_a_repair_is_staged_ends_it() {
    let mut group = Group::serving(2, 4, 4);
    group.lose(0, 1);
    group.lose(1, 0);
    group.decide();
    let write = group.after(500).write();
    assert_eq!(write.ranks(), [0]);
    let mut group = Group::serving(3, 4, 2);
    group.lose(0, 2);
    group.lose(1, 2);
    assert!(matches!(group.write(), Write::Publish(_)));
    for (rank, peer) in [(0, 2), (1, 2)] {
        group.relink(rank, peer);
    }
    let write = group.write();
    assert_eq!((write.number(), write.ranks()), (2, vec![0, 1, 2]));
}

#[test]
fn without_room_the_group_waits_for_more_ranks() {
    let mut group = Group::serving(3, 6, 0);
    for rank in [1, 2] {
        group.detach(rank);
        group.lose(0, rank);
    }
    assert_eq!(group.decide(), None);
    let shortage = Shortage {
        ranks: 1,
        slots: 2,
        experts: 6,
    };
    assert_eq!(
        group.coordinator.state(),
        &State::Paused(Pause::Shortage(shortage))
    );
    group.restart(1);
    assert_eq!(group.decide(), None);
    group.restart(2);
    let plan = group.write();
    assert_eq!((plan.ranks(), plan.epoch().reset), (vec![0, 1, 2], 2));
    (0..3).for_each(|rank| group.stage(rank, Ok(())));
    assert_eq!(group.write().number(), 2);
}

#[test]
fn a_group_that_died_as_a_whole_begins_again() {
    let mut group = Group::serving(2, 4, 0);
    group.restart(0);
    group.restart(1);
    let plan = group.write();
    assert!(matches!(plan, Write::Publish(_)));
    assert_eq!(
        plan.epoch().members,
        [member(life(0, 2)), member(life(1, 2))]
    );
}

#[test]
fn a_repair_takes_the_lightest_replicas() {
    let shape = Shape::new(1, 3, 3, 3).unwrap();
    let placement = Placement::new(shape, vec![0, 1, 0, 1, 2, 2]).unwrap();
    let expected = Loads {
        experts: 3,
        counts: vec![10, 4, 1],
    };
    let repaired = repair::repair(&placement, &[true, true, false], &expected).unwrap();
    assert_eq!(repaired.layer(0), [0, 2, 0, 1, 2, 2]);
    let short = repair::repair(&placement, &[true, false, false], &expected);
    assert!(short.unwrap_err().to_string().contains("start more ranks"));
}
