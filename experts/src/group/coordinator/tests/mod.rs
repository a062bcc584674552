//! Each rule by itself. That they hold together is what `tests/group_simulation` is for.

mod calm;
mod forgetting;
mod urgent;

use super::*;
use crate::Shape;
use crate::group::Staged;

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn life(rank: usize, incarnation: u64) -> RankId {
    RankId { rank, incarnation }
}

fn id(rank: usize) -> RankId {
    life(rank, 1)
}

fn member(id: RankId) -> Member {
    Member {
        id,
        exchange: format!("exchange-{}", id.rank),
        grpc: format!("grpc-{}", id.rank),
    }
}

/// A group, the store its writes go to, and ranks that report what a test has them report.
struct Group {
    coordinator: Coordinator,
    view: StoreView,
    now: Duration,
    shape: GroupShape,
    /// As last reported, by rank.
    reports: Vec<Report>,
}

impl Group {
    /// All ranks but attached to nobody yet: linked with each other, in no epoch.
    fn new(ranks: usize, experts: usize, redundant: usize) -> Group {
        let shape = GroupShape {
            shape: Shape::new(2, experts, ranks, redundant).unwrap(),
            expert_bytes: 1,
        };
        let lives: Vec<RankId> = (0..ranks).map(id).collect();
        let report = |&me: &RankId| Report {
            me: member(me),
            adopted: None,
            known: 0,
            linked: lives.iter().copied().filter(|&peer| peer != me).collect(),
            lost: Vec::new(),
            staged: None,
        };
        let mut group = Group {
            coordinator: Coordinator::new(shape, 7, Config::default(), ms(0)),
            view: StoreView::default(),
            now: ms(0),
            shape,
            reports: lives.iter().map(report).collect(),
        };
        group.coordinator.store(StoreView::default(), ms(0));
        group
    }

    /// In epoch 1, which all have adopted.
    fn serving(ranks: usize, experts: usize, redundant: usize) -> Group {
        let mut group = Group::new(ranks, experts, redundant);
        group.attach_all();
        assert_eq!(group.write().number(), 1);
        group.adopt();
        assert_eq!(group.decide(), None);
        assert_eq!(group.coordinator.state(), &State::Serving);
        group
    }

    fn attach(&mut self, rank: usize) {
        let report = self.reports[rank].clone();
        let now = self.now;
        self.coordinator.attached(self.shape, report, now).unwrap();
    }

    fn attach_all(&mut self) {
        (0..self.reports.len()).for_each(|rank| self.attach(rank));
    }

    fn detach(&mut self, rank: usize) {
        let id = self.reports[rank].me.id;
        self.coordinator.detached(id, self.now);
    }

    fn change(&mut self, rank: usize, change: impl FnOnce(&mut Report)) {
        change(&mut self.reports[rank]);
        self.coordinator.report(self.reports[rank].clone());
    }

    /// `rank` says that the link to `peer` broke.
    fn lose(&mut self, rank: usize, peer: usize) {
        let peer = self.reports[peer].me.id;
        self.change(rank, |report| {
            report.linked.retain(|&id| id != peer);
            report.lost.push(peer);
        });
    }

    /// And that there is one again.
    fn relink(&mut self, rank: usize, peer: usize) {
        let peer = self.reports[peer].me.id;
        self.change(rank, |report| report.linked.push(peer));
    }

    /// Every attached member adopts the store's epoch.
    fn adopt(&mut self) {
        let epoch = self.view.epoch.clone().unwrap();
        for rank in epoch.members.iter().map(|member| member.id.rank) {
            let epoch = Arc::clone(&epoch);
            self.change(rank, |report| {
                report.known = epoch.number;
                report.adopted = Some(epoch);
                report.lost.clear();
            });
        }
    }

    fn stage(&mut self, rank: usize, outcome: Result<(), String>) {
        let plan = self.view.plan.as_ref().unwrap().id;
        self.change(rank, |report| {
            report.staged = Some(Staged { plan, outcome })
        });
    }

    fn after(&mut self, millis: u64) -> &mut Group {
        self.now += ms(millis);
        self
    }

    fn decide(&mut self) -> Option<Write> {
        self.coordinator.decide(self.now)
    }

    /// Decides, and the store takes it.
    fn write(&mut self) -> Write {
        let write = self.decide().expect("there is something to decide");
        match &write {
            Write::Publish(plan) => self.view.plan = Some(Arc::clone(plan)),
            Write::Commit(epoch) => {
                self.view.epoch = Some(Arc::clone(epoch));
                self.view.plan = None;
            }
            Write::Withdraw { .. } => self.view.plan = None,
        }
        self.coordinator.store(self.view.clone(), self.now);
        write
    }

    /// A new life of a rank attaches, linked with everyone.
    fn restart(&mut self, rank: usize) {
        let (old, new) = (
            self.reports[rank].me.id,
            life(rank, self.reports[rank].me.id.incarnation + 1),
        );
        let report = &mut self.reports[rank];
        *report = Report {
            me: member(new),
            adopted: None,
            known: 0,
            linked: report.linked.clone(),
            lost: Vec::new(),
            staged: None,
        };
        for peer in (0..self.reports.len()).filter(|&peer| peer != rank) {
            self.change(peer, |report| {
                report.linked.retain(|&id| id != old);
                report.linked.push(new);
            });
        }
        self.attach(rank);
    }
}

impl Write {
    fn epoch(&self) -> &Epoch {
        match self {
            Write::Commit(epoch) => epoch,
            Write::Publish(plan) => &plan.next,
            Write::Withdraw { .. } => panic!("{self:?}"),
        }
    }

    fn number(&self) -> u64 {
        assert!(matches!(self, Write::Commit(_)), "{self:?}");
        self.epoch().number
    }

    fn ranks(&self) -> Vec<usize> {
        let members = self.epoch().members.iter();
        members.map(|member| member.id.rank).collect()
    }

    fn why(self) -> Void {
        match self {
            Write::Withdraw { why, .. } => why,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_first_epoch_needs_everyone() {
    let mut group = Group::new(3, 4, 2);
    group.attach(0);
    group.attach(1);
    assert_eq!(group.after(10_000).decide(), None);
    assert_eq!(group.coordinator.state(), &State::Forming);
    group.reports[2].linked = vec![id(0)];
    group.attach(2);
    assert_eq!(group.decide(), None, "1 and 2 are not linked as 2 sees it");
    group.relink(2, 1);
    let write = group.write();
    assert_eq!((write.number(), write.epoch().reset), (1, 1));
    assert_eq!(write.ranks(), [0, 1, 2]);
    let initial = Placement::initial(group.shape.shape).unwrap();
    assert_eq!(*write.epoch().placement, initial);
    assert_eq!(group.coordinator.order().peers.len(), 3);
}

#[test]
fn nothing_is_decided_before_the_store_was_read() {
    let mut group = Group::new(2, 2, 0);
    let fresh = Coordinator::new(group.shape, 7, Config::default(), ms(0));
    group.coordinator = fresh;
    group.attach_all();
    assert_eq!(group.decide(), None);
}

#[test]
fn a_rank_of_another_group_is_refused() {
    let mut group = Group::new(2, 4, 0);
    let (shape, mut report) = (group.shape, group.reports[0].clone());
    let other = GroupShape {
        expert_bytes: 2,
        ..shape
    };
    let refused = group.coordinator.attached(other, report.clone(), ms(0));
    assert!(matches!(refused, Err(Misfit::Shape { rank: 0, .. })));
    report.me.id = id(2);
    let refused = group.coordinator.attached(shape, report.clone(), ms(0));
    assert_eq!(refused, Err(Misfit::Rank { rank: 2, ranks: 2 }));
    report.me.id = life(1, 0);
    let refused = group.coordinator.attached(shape, report, ms(0));
    assert_eq!(refused, Err(Misfit::Incarnation { rank: 1 }));
}

#[test]
fn a_write_that_lost_is_decided_again() {
    let mut group = Group::serving(3, 4, 4);
    group.detach(2);
    group.lose(0, 2);
    let first = group.decide();
    assert_eq!(group.decide(), first, "the store is away");
    // Another coordinator was faster.
    let epoch = first.as_ref().unwrap().epoch().clone();
    group.view.epoch = Some(Arc::new(epoch));
    group.coordinator.store(group.view.clone(), group.now);
    assert_eq!(group.decide(), None);
    assert_eq!(group.coordinator.state(), &State::Degraded);
}
