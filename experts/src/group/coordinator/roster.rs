//! Who is attached to this router, and what they last said.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::config::{Clock, Config};
use crate::group::{GroupShape, Report};
use crate::{Epoch, Member, RankId};

/// Why a rank cannot be one of this group.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    #[error(
        "the group has {expected:?}, but rank {rank} has {got:?}: start every rank with the same model, --decode-ranks and --redundant-experts"
    )]
    Shape {
        rank: usize,
        expected: GroupShape,
        got: GroupShape,
    },
    #[error("rank {rank} is not one of the group's {ranks} ranks: number them from 0")]
    Rank { rank: usize, ranks: usize },
    #[error("rank {rank} has incarnation 0: every life of a rank draws its own, and never 0")]
    Incarnation { rank: usize },
}

/// One life a rank: the one that attached last.
#[derive(Debug)]
pub(super) struct Roster {
    began: Duration,
    attached: BTreeMap<usize, Report>,
    /// Lives that were attached once, and since when they are not.
    detached: BTreeMap<RankId, Duration>,
}

impl Roster {
    pub fn new(began: Duration) -> Roster {
        Roster {
            began,
            attached: BTreeMap::new(),
            detached: BTreeMap::new(),
        }
    }

    pub fn attach(&mut self, now: Duration, report: Report) {
        let id = report.me.id;
        self.detached.remove(&id);
        if let Some(before) = self.attached.insert(id.rank, report)
            && before.me.id != id
        {
            self.detached.insert(before.me.id, now);
        }
    }

    pub fn detach(&mut self, now: Duration, id: RankId) {
        if self.get(id).is_some() {
            self.attached.remove(&id.rank);
            self.detached.insert(id, now);
        }
    }

    /// A report on a stream that another life has replaced is late, and says nothing.
    pub fn report(&mut self, report: Report) {
        if let Some(known) = self.attached.get_mut(&report.me.id.rank)
            && known.me.id == report.me.id
        {
            *known = report;
        }
    }

    /// Forgets when lives left that are no longer of interest.
    pub fn keep_detached(&mut self, of_interest: impl Fn(RankId) -> bool) {
        self.detached.retain(|&id, _| of_interest(id));
    }

    pub fn get(&self, id: RankId) -> Option<&Report> {
        self.attached
            .get(&id.rank)
            .filter(|report| report.me.id == id)
    }

    pub fn reports(&self) -> impl Iterator<Item = &Report> {
        self.attached.values()
    }

    /// The highest number any attached rank was told of.
    pub fn known(&self) -> u64 {
        let adopted = |report: &Report| report.adopted.as_ref().map_or(0, |e| e.number);
        let known = self.reports().map(|r| r.known.max(adopted(r)));
        known.max().unwrap_or(0)
    }

    /// The highest record any attached rank has adopted.
    pub fn adopted(&self) -> Option<&Arc<Epoch>> {
        let adopted = self.reports().filter_map(|r| r.adopted.as_ref());
        adopted.max_by_key(|epoch| epoch.number)
    }

    /// `from` is attached and has no link with `to`.
    pub fn misses(&self, from: RankId, to: RankId) -> bool {
        self.get(from)
            .is_some_and(|report| !report.linked.contains(&to))
    }

    /// Both are attached, and have a link as either sees it.
    pub fn linked(&self, a: RankId, b: RankId) -> bool {
        let sees = |from, to| self.get(from).is_some_and(|r| r.linked.contains(&to));
        sees(a, b) && sees(b, a)
    }

    pub fn all_linked(&self, ids: &[RankId]) -> bool {
        let pairs = ids
            .iter()
            .enumerate()
            .flat_map(|(i, &a)| ids[..i].iter().map(move |&b| (a, b)));
        ids.iter().all(|&id| self.get(id).is_some())
            && pairs.into_iter().all(|(a, b)| self.linked(a, b))
    }

    /// Not attached, and not expected any more.
    pub fn is_gone(&self, id: RankId, clock: &mut Clock, config: &Config) -> bool {
        if self.get(id).is_some() {
            false
        } else if self.attached.contains_key(&id.rank) {
            true // Another life of it is here.
        } else if let Some(&since) = self.detached.get(&id) {
            clock.reached(since + config.detach_grace)
        } else {
            clock.reached(self.began + config.attach_grace)
        }
    }

    /// Left this router, and one of `peers` has lost it too.
    pub fn is_lost(&self, id: RankId, peers: &[RankId]) -> bool {
        self.detached.contains_key(&id) && peers.iter().any(|&peer| self.misses(peer, id))
    }

    /// Lives that could become members beside `members`: of a rank that has no member, and linked with
    /// all members and with each other. By rank.
    pub fn joiners(&self, members: &[RankId], mut may: impl FnMut(RankId) -> bool) -> Vec<Member> {
        let mut all = members.to_vec();
        let mut joiners = Vec::new();
        for Report { me, .. } in self.reports() {
            let fits = members.iter().all(|member| member.rank != me.id.rank)
                && all.iter().all(|&id| self.linked(me.id, id));
            if fits && may(me.id) {
                all.push(me.id);
                joiners.push(me.clone());
            }
        }
        joiners
    }
}
