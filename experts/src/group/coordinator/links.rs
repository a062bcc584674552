//! Whom to leave out when links between ranks are broken.
//!
//! A rank that was stopped is the hard case: its stream to the router still looks open, and its last
//! report says that all is well. Those who live notice a broken link at both ends, so a rank that
//! others miss and that misses nobody is the one that does not run.

use super::roster::Roster;
use crate::RankId;

/// Whether any two of `members` that are attached miss each other, as either sees it.
pub(super) fn any_broken(members: &[RankId], roster: &Roster) -> bool {
    members
        .iter()
        .any(|&a| !broken(a, members, roster).is_empty())
}

/// Who of `members` has to go. Before the time for healing is over (`patient`) only a rank that all
/// others miss, if they are two at least: of a pair nobody can say whose fault it is.
pub(super) fn evictions(members: &[RankId], roster: &Roster, patient: bool) -> Vec<RankId> {
    let is_attached = |&id: &RankId| roster.get(id).is_some();
    let mut left: Vec<RankId> = members.iter().copied().filter(is_attached).collect();
    let mut evicted = Vec::new();
    while let Some(&worst) = left.iter().max_by_key(|&&id| guilt(id, &left, roster)) {
        let others = left.len() - 1;
        let missed = left
            .iter()
            .filter(|&&peer| peer != worst && roster.misses(peer, worst));
        let by_all = others >= 2 && missed.count() == others;
        if broken(worst, &left, roster).is_empty() || (patient && !by_all) {
            break;
        }
        left.retain(|&id| id != worst);
        evicted.push(worst);
    }
    evicted
}

/// Peers that do not notice them, links that are broken, and then the higher rank.
fn guilt(id: RankId, members: &[RankId], roster: &Roster) -> (usize, usize, RankId) {
    let broken = broken(id, members, roster);
    let unnoticed = broken.iter().filter(|&&peer| !roster.misses(id, peer));
    (unnoticed.count(), broken.len(), id)
}

fn broken(id: RankId, members: &[RankId], roster: &Roster) -> Vec<RankId> {
    let is_broken = |peer: RankId| {
        peer != id
            && roster.get(peer).is_some()
            && (roster.misses(id, peer) || roster.misses(peer, id))
    };
    let attached = roster.get(id).is_some();
    let peers = members.iter().copied().filter(|_| attached);
    peers.filter(|&peer| is_broken(peer)).collect()
}
