use super::*;

/// The router restarts, and with it the store in its memory.
fn forget(group: &mut Group) {
    group.view = StoreView::default();
    group.coordinator = Coordinator::new(group.shape, 9 << 40, Config::default(), group.now);
    group.coordinator.store(StoreView::default(), group.now);
}

#[test]
fn a_group_goes_on_after_its_store_forgot() {
    let mut group = Group::serving(3, 4, 4);
    forget(&mut group);
    group.attach(0);
    group.attach(2);
    assert_eq!(group.decide(), None);
    assert_eq!(
        group.coordinator.state(),
        &State::Paused(Pause::Forgotten(id(1)))
    );
    group.attach(1);
    let write = group.write();
    let number = 1 + FORGOTTEN + 9;
    assert_eq!((write.number(), write.epoch().reset), (number, number));
    assert_eq!(write.ranks(), [0, 1, 2]);
    group.adopt();
    assert_eq!(group.decide(), None);
}

#[test]
fn who_does_not_come_back_is_left_out() {
    let mut group = Group::serving(3, 4, 4);
    forget(&mut group);
    group.attach(0);
    group.attach(2);
    group.decide();
    assert_eq!(group.coordinator.next_deadline(), Some(ms(3000)));
    assert_eq!(group.after(3000).write().ranks(), [0, 2]);
}

#[test]
fn a_death_does_not_hurry_a_store_that_forgot() {
    // Rank 2 is known to be dead before rank 1, which may know of later epochs, has come back.
    let mut group = Group::serving(3, 4, 4);
    forget(&mut group);
    group.attach(0);
    group.restart(2);
    group.coordinator.detached(id(1), group.now);
    assert_eq!(group.decide(), None);
    assert_eq!(
        group.coordinator.state(),
        &State::Paused(Pause::Forgotten(id(1)))
    );
    group.reports[1].known = 5;
    group.attach(1);
    assert_eq!(group.write().number(), 5 + FORGOTTEN + 9);
}

#[test]
fn a_number_that_nobody_adopted_is_not_given_again() {
    let mut group = Group::new(2, 4, 0);
    group.reports[1].known = 1;
    group.attach_all();
    let plan = group.write();
    assert_eq!(plan.epoch().number, 1 + FORGOTTEN);
    group.stage(0, Ok(()));
    group.stage(1, Ok(()));
    assert_eq!(group.write().number(), 1 + FORGOTTEN);
}

#[test]
fn another_epoch_of_the_same_number_is_a_sign_too() {
    let mut group = Group::serving(3, 4, 4);
    // The store has an epoch 1 that rank 2 is not in, and rank 2 another one.
    let mut epoch = Epoch::clone(group.view.epoch.as_ref().unwrap());
    epoch.members.pop();
    group.view.epoch = Some(Arc::new(epoch));
    group.coordinator.store(group.view.clone(), group.now);
    let write = group.write();
    assert_eq!(write.number(), 1 + FORGOTTEN);
}
