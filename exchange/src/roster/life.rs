//! How links come into the roster and leave it.

use std::sync::Arc;

use millrace_experts::RankId;

use super::Roster;
use crate::link::{Incoming, Link, read_frames};
use crate::{LinkError, Refusal};

impl Roster {
    /// Makes a connection the link with `id` and reads it to its end.
    pub(crate) fn run_link(&self, id: RankId, mut incoming: Incoming) {
        let counters = {
            let mut state = self.state.lock();
            Arc::clone(state.counters.entry(id.rank).or_default())
        };
        let link = incoming
            .without_deadline()
            .and_then(|()| Link::new(id, &incoming, counters));
        let link = match link {
            Ok(link) => Arc::new(link),
            Err(error) => return self.note(id, LinkError::Io(error.kind())),
        };
        if self.install(&link) {
            tracing::info!(rank = id.rank, "linked");
            (self.news)();
            let limits = &self.config.limits;
            let why = read_frames(&link, &mut incoming, limits, &self.floor, &*self.news);
            self.break_link(&link, why);
        } else {
            link.close();
        }
    }

    fn install(&self, link: &Arc<Link>) -> bool {
        loop {
            let mut state = self.state.lock();
            let Some(peer) = state.peers.get_mut(&link.peer) else {
                return false;
            };
            if self.is_closed() {
                return false;
            }
            let Some(old) = peer.link.clone() else {
                peer.link = Some(Arc::clone(link));
                peer.problem = None;
                link.counters.linked();
                return true;
            };
            drop(state);
            // It dials only when its end of the old one is gone.
            self.break_link(&old, LinkError::Replaced);
        }
    }

    /// Gives a link up. When this returns, whoever asks is told that it is lost, and only then does a
    /// step that needed it end.
    pub(crate) fn break_link(&self, link: &Arc<Link>, why: LinkError) {
        let mut state = self.state.lock();
        if !link.mark_broken() {
            return;
        }
        let rank = link.peer.rank;
        match why {
            LinkError::Closed | LinkError::Unlisted => tracing::info!(rank, %why, "link ended"),
            _ => tracing::warn!(rank, %why, "link lost"),
        }
        link.counters.lost();
        if let Some(peer) = state.peers.get_mut(&link.peer) {
            peer.link = None;
            peer.problem = Some(why);
            peer.ended = peer.ended.max(peer.used);
        }
        if !state.lost.contains(&link.peer) {
            state.lost.push(link.peer);
        }
        drop(state);
        link.close();
        (self.news)();
    }

    /// Remembers why there is no link.
    pub(crate) fn note(&self, id: RankId, why: LinkError) {
        let mut state = self.state.lock();
        let Some(peer) = state.peers.get_mut(&id) else {
            return;
        };
        if peer.problem.as_ref() != Some(&why) {
            let rank = id.rank;
            match &why {
                // Only a person can mend it.
                LinkError::Refused(Refusal::Differs { .. }) | LinkError::Frame(_) => {
                    tracing::warn!(rank, %why, "no link");
                }
                _ => tracing::debug!(rank, %why, "no link yet"),
            }
        }
        peer.problem = Some(why);
    }
}
