use super::*;

fn proposal(group: &Group) -> (Arc<Placement>, Arc<Loads>) {
    let shape = group.shape.shape;
    let mut table: Vec<u32> = Placement::initial(shape).unwrap().layer(0).to_vec();
    table.reverse();
    let placement = Placement::new(shape, table.repeat(shape.layers)).unwrap();
    let loads = Loads::zero(shape.layers, shape.experts);
    (Arc::new(placement), Arc::new(loads))
}

fn propose(group: &mut Group, base: u64) -> Result<(), Refused> {
    let (placement, loads) = proposal(group);
    group.coordinator.propose(base, placement, loads)
}

/// Rank 2 died and was evicted.
fn degraded() -> Group {
    let mut group = Group::serving(3, 4, 4);
    group.detach(2);
    group.lose(0, 2);
    assert_eq!(group.write().ranks(), [0, 1]);
    group
}

#[test]
fn a_returning_rank_stages_and_joins() {
    let mut group = degraded();
    group.restart(2);
    assert_eq!(group.decide(), None, "epoch 2 is not adopted yet");
    group.adopt();
    let plan = group.write();
    assert!(matches!(plan, Write::Publish(_)));
    assert_eq!((plan.ranks(), plan.epoch().reset), (vec![0, 1, 2], 2));
    assert_eq!(group.coordinator.order().plan, group.view.plan);
    for rank in 0..3 {
        assert_eq!(group.decide(), None);
        group.stage(rank, Ok(()));
    }
    assert_eq!(group.write().number(), 3);
    group.adopt();
    assert_eq!(group.decide(), None);
    assert_eq!(group.coordinator.state(), &State::Serving);
}

#[test]
fn who_is_not_linked_with_all_does_not_join() {
    let mut group = degraded();
    group.adopt();
    group.restart(2);
    group.change(1, |report| report.linked.retain(|peer| peer.rank != 2));
    assert_eq!(group.decide(), None);
    group.change(1, |report| report.linked.push(life(2, 2)));
    assert_eq!(group.write().ranks(), [0, 1, 2]);
}

#[test]
fn a_failed_join_is_tried_again_later_and_later() {
    let mut group = degraded();
    group.adopt();
    group.restart(2);
    for wait in [1000, 2000, 4000] {
        group.write();
        group.stage(2, Err("no such file".into()));
        let id = group.view.plan.as_ref().unwrap().id;
        assert_eq!(
            group.decide(),
            group.decide(),
            "given up once, whenever the store takes it"
        );
        let why = group.write().why();
        assert!(
            why.to_string()
                .contains("rank 2 could not stage it: no such file")
        );
        assert_eq!(group.decide(), None);
        assert_eq!(group.after(wait - 1).decide(), None);
        assert_eq!(group.coordinator.next_deadline(), Some(group.now + ms(1)));
        group.after(1);
        let Some(Write::Publish(plan)) = group.decide() else {
            panic!("it is tried again")
        };
        assert_ne!(plan.id, id);
    }
}

#[test]
fn a_plan_has_a_deadline() {
    let mut group = degraded();
    group.adopt();
    group.restart(2);
    group.write();
    group.stage(0, Ok(()));
    group.stage(2, Ok(()));
    assert_eq!(group.after(59_999).decide(), None);
    assert_eq!(group.after(1).write().why(), Void::Deadline(id(1)));
}

#[test]
fn a_joiner_that_dies_takes_the_plan_along() {
    let mut group = degraded();
    group.adopt();
    group.restart(2);
    group.write();
    group.detach(2);
    let decided = group.decide();
    assert_eq!(decided, None, "it may come back to this router");
    group.restart(2);
    assert_eq!(group.write().why(), Void::Gone(life(2, 2)));
}

#[test]
fn an_eviction_does_not_wait_for_a_plan() {
    let mut group = Group::serving(3, 4, 4);
    propose(&mut group, 1).unwrap();
    group.write();
    group.detach(0);
    group.lose(1, 0);
    let write = group.write();
    assert_eq!((write.number(), write.ranks()), (2, vec![1, 2]));
    assert_eq!(group.view.plan, None);
}

#[test]
fn a_proposal_is_staged_and_committed() {
    let mut group = Group::serving(3, 4, 4);
    propose(&mut group, 1).unwrap();
    let plan = group.write();
    assert_eq!(plan.epoch().placement, proposal(&group).0);
    assert_eq!(plan.epoch().reset, 1);
    assert_eq!(propose(&mut group, 1), Err(Refused::Busy));
    (0..3).for_each(|rank| group.stage(rank, Ok(())));
    assert_eq!(group.write().number(), 2);
    assert_eq!(propose(&mut group, 2), Err(Refused::Unsettled { epoch: 2 }));
    group.adopt();
    assert_eq!(propose(&mut group, 2), Ok(()));
}

#[test]
fn a_failed_proposal_is_dropped() {
    let mut group = Group::serving(3, 4, 4);
    propose(&mut group, 1).unwrap();
    group.write();
    group.stage(0, Err("checksum".into()));
    group.write().why();
    assert_eq!(group.after(100_000).decide(), None);
}

#[test]
fn a_bad_proposal_is_refused_by_name() {
    let mut group = Group::serving(3, 4, 4);
    let (placement, loads) = proposal(&group);
    let refused = propose(&mut group, 3);
    assert_eq!(
        refused,
        Err(Refused::OldBase {
            base: 3,
            current: 1
        })
    );
    let other = Placement::initial(Shape::new(2, 4, 4, 4).unwrap()).unwrap();
    let refused = group.coordinator.propose(1, Arc::new(other), loads);
    assert!(matches!(refused, Err(Refused::Shape { .. })));
    let refused = group
        .coordinator
        .propose(1, Arc::clone(&placement), Arc::new(Loads::zero(1, 4)));
    assert_eq!(refused, Err(Refused::Loads));
    let mut group = Group::new(3, 4, 4);
    assert_eq!(propose(&mut group, 0), Err(Refused::NotServing));
    let mut group = degraded();
    assert_eq!(propose(&mut group, 2), Err(Refused::Degraded { rank: 2 }));
}

#[test]
fn a_bad_plan_in_the_store_is_removed() {
    let whys = |change: &dyn Fn(&mut Plan)| {
        let mut group = Group::serving(3, 4, 4);
        let epoch = group.view.epoch.as_ref().unwrap();
        let mut plan = Plan {
            id: 99,
            base: 1,
            next: Epoch {
                number: 2,
                ..Epoch::clone(epoch)
            },
        };
        change(&mut plan);
        group.view.plan = Some(Arc::new(plan));
        group.coordinator.store(group.view.clone(), group.now);
        group.write().why()
    };
    let old = whys(&|plan| (plan.base, plan.next.number) = (7, 8));
    assert_eq!(
        old,
        Void::Base {
            base: 7,
            current: 1
        }
    );
    let missing = whys(&|plan| drop(plan.next.members.pop()));
    assert_eq!(missing, Void::LeavesOut(id(2)));
    let reset = whys(&|plan| plan.next.reset = 2);
    assert_eq!(
        reset,
        Void::Reset {
            reset: 2,
            expected: 1
        }
    );
    let shape = whys(&|plan| {
        let shape = Shape::new(2, 4, 4, 4).unwrap();
        plan.next.placement = Arc::new(Placement::initial(shape).unwrap());
    });
    assert!(matches!(shape, Void::Shape { .. }));
    let twice = whys(&|plan| plan.next.members.push(member(life(2, 5))));
    assert!(matches!(twice, Void::Record(_)));
}
