use super::*;
use crate::{Loads, Member, Placement, Shape};

fn id(rank: usize) -> RankId {
    RankId {
        rank,
        incarnation: 10 + rank as u64,
    }
}

fn epoch(number: u64, reset: u64, ranks: &[usize]) -> Arc<Epoch> {
    let shape = Shape::new(1, 2, 4, 6).unwrap();
    let member = |&rank: &usize| Member {
        id: id(rank),
        exchange: String::new(),
        grpc: String::new(),
    };
    Arc::new(Epoch {
        number,
        reset,
        members: ranks.iter().map(member).collect(),
        placement: Arc::new(Placement::initial(shape).unwrap()),
        expected: Arc::new(Loads::zero(1, 2)),
    })
}

fn word(epoch: u64, step: u64, ready_for: u64, rows: usize) -> Start {
    Start {
        epoch,
        step,
        ready_for,
        rows,
    }
}

/// Rank 0, which has adopted epoch 1.
fn adopted(ranks: &[usize]) -> Lockstep {
    let mut rank = Lockstep::new(id(0));
    let first = epoch(1, 1, ranks);
    rank.commit(Arc::clone(&first));
    rank.staged(1);
    assert_eq!(rank.poll(0), Action::Adopt(first));
    rank
}

fn next(rank: &mut Lockstep, number: u64, reset: u64, ranks: &[usize]) -> Arc<Epoch> {
    let next = epoch(number, reset, ranks);
    rank.commit(Arc::clone(&next));
    rank.staged(number);
    next
}

#[test]
fn the_first_epoch_waits_for_its_weights() {
    let mut rank = Lockstep::new(id(0));
    assert_eq!(rank.poll(3), Action::Wait);
    rank.staged(1);
    rank.commit(epoch(1, 1, &[0, 1]));
    assert_eq!(rank.poll(3), Action::Wait, "what was staged was a plan");
    rank.staged(1);
    assert!(matches!(rank.poll(3), Action::Adopt(_)));
    rank.commit(epoch(1, 1, &[1]));
    assert_eq!(rank.known(), 1, "a number is committed once");
    assert!(matches!(rank.poll(0), Action::Wait));
}

#[test]
fn alone_there_is_nobody_to_ask() {
    let mut rank = adopted(&[0]);
    assert_eq!(rank.poll(0), Action::Wait);
    let run = |step| {
        Action::Run(Step {
            epoch: 1,
            step,
            rows: vec![(id(0), 4)],
        })
    };
    assert_eq!(rank.poll(4), run(0));
    assert_eq!(rank.poll(4), Action::Wait, "it is running");
    rank.done();
    assert_eq!(rank.poll(4), run(1));
    rank.done();
    let second = next(&mut rank, 2, 1, &[0]);
    assert_eq!(rank.poll(4), Action::Adopt(second));
}

#[test]
fn a_step_needs_every_word() {
    let mut rank = adopted(&[0, 1, 2]);
    assert_eq!(rank.poll(2), Action::Announce(word(1, 0, 1, 2)));
    rank.start(id(1), word(1, 0, 1, 0));
    assert_eq!(rank.poll(5), Action::Wait);
    rank.start(id(3), word(1, 0, 1, 9));
    assert_eq!(rank.poll(5), Action::Wait, "rank 3 is no member");
    rank.start(id(2), word(1, 0, 1, 7));
    let rows = vec![(id(0), 2), (id(1), 0), (id(2), 7)];
    let run = Step {
        epoch: 1,
        step: 0,
        rows,
    };
    assert_eq!(rank.poll(5), Action::Run(run));
    // Others are done before this one is.
    rank.start(id(1), word(1, 1, 1, 1));
    rank.done();
    assert_eq!(rank.poll(0), Action::Announce(word(1, 1, 1, 0)));
    assert_eq!(rank.poll(0), Action::Wait);
}

#[test]
fn an_idle_rank_only_answers() {
    let mut rank = adopted(&[0, 1]);
    assert_eq!(rank.poll(0), Action::Wait);
    rank.start(id(1), word(1, 0, 1, 0));
    assert_eq!(rank.poll(0), Action::Announce(word(1, 0, 1, 0)));
    assert_eq!(
        rank.poll(0),
        Action::Wait,
        "nothing was computed, and nothing more is said"
    );
    // Rows that come right after an answer of zero set off the next step.
    assert_eq!(rank.poll(1), Action::Announce(word(1, 1, 1, 1)));
}

#[test]
fn an_epoch_is_left_when_the_last_is_ready() {
    let mut rank = adopted(&[0, 1]);
    let second = next(&mut rank, 2, 1, &[0, 1]);
    assert_eq!(rank.poll(0), Action::Announce(word(1, 0, 2, 0)));
    rank.start(id(1), word(1, 0, 1, 0));
    assert_eq!(rank.poll(0), Action::Wait, "said once is enough");
    rank.start(id(1), word(1, 1, 2, 3));
    rank.start(id(1), word(2, 0, 2, 3));
    assert_eq!(rank.poll(0), Action::Announce(word(1, 1, 2, 0)));
    assert_eq!(rank.poll(0), Action::Adopt(second));
    assert_eq!(rank.poll(0), Action::Announce(word(2, 0, 2, 0)));
    assert!(matches!(
        rank.poll(0),
        Action::Run(Step {
            epoch: 2,
            step: 0,
            ..
        })
    ));
}

#[test]
fn a_reset_is_adopted_at_once() {
    let mut rank = adopted(&[0, 1, 2]);
    for peer in [1, 2] {
        rank.start(id(peer), word(1, 0, 1, 1));
    }
    rank.poll(0);
    assert!(matches!(rank.poll(0), Action::Run(_)));
    rank.lost(id(2));
    assert_eq!(rank.lost_members(), [id(2)]);
    let second = epoch(2, 2, &[0, 1]);
    rank.commit(Arc::clone(&second));
    assert!(!rank.must_drop());
    rank.staged(2);
    assert!(rank.must_drop());
    rank.dropped();
    assert_eq!(rank.poll(1), Action::Adopt(second));
    assert!(rank.lost_members().is_empty());
    assert_eq!(rank.poll(1), Action::Announce(word(2, 0, 2, 1)));
}

#[test]
fn a_broken_epoch_takes_no_more_steps() {
    let mut rank = adopted(&[0, 1]);
    rank.start(id(1), word(1, 0, 1, 1));
    rank.lost(id(1));
    rank.start(id(1), word(1, 0, 1, 1));
    assert_eq!(rank.poll(1), Action::Wait);
    let mut rank = adopted(&[0, 1]);
    rank.start(id(1), word(1, 0, 1, 1));
    rank.poll(1);
    rank.poll(1);
    rank.dropped();
    assert_eq!(rank.poll(1), Action::Wait);
    assert_eq!(
        rank.lost_members(),
        [id(1)],
        "the coordinator has to hear of it"
    );
}

#[test]
fn who_is_left_out_leaves_and_may_come_back() {
    let mut rank = adopted(&[0, 1, 2]);
    rank.commit(epoch(2, 2, &[1, 2]));
    assert_eq!(rank.poll(1), Action::Leave);
    assert_eq!(rank.poll(1), Action::Wait);
    assert!(rank.adopted().is_none());
    rank.start(id(1), word(3, 0, 3, 0));
    let third = next(&mut rank, 3, 2, &[0, 1, 2]);
    assert_eq!(rank.poll(1), Action::Adopt(third));
    rank.start(id(2), word(3, 0, 3, 0));
    assert_eq!(rank.poll(1), Action::Announce(word(3, 0, 3, 1)));
    assert!(matches!(rank.poll(1), Action::Run(_)));
}

#[test]
fn a_reset_replaces_what_was_agreed_on() {
    let mut rank = adopted(&[0, 1]);
    next(&mut rank, 2, 1, &[0, 1]);
    assert_eq!(rank.poll(0), Action::Announce(word(1, 0, 2, 0)));
    rank.commit(epoch(3, 3, &[0, 1]));
    rank.start(id(1), word(1, 0, 2, 0));
    assert_eq!(rank.poll(1), Action::Wait);
    assert_eq!(rank.poll(1), Action::Wait);
    rank.staged(3);
    assert_eq!(rank.poll(1), Action::Adopt(epoch(3, 3, &[0, 1])));
}

#[test]
fn words_of_a_broken_link_are_void() {
    let mut rank = adopted(&[0, 1]);
    rank.start(id(1), word(2, 0, 2, 1));
    rank.lost(id(1));
    next(&mut rank, 2, 2, &[0, 1]);
    assert!(matches!(rank.poll(1), Action::Adopt(_)));
    rank.poll(1);
    assert_eq!(rank.poll(1), Action::Wait);
}
