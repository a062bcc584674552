//! Which lives are listed, and the dialers that follow from it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::Thread;

use millrace_experts::{Member, RankId};

use super::{Peer, Roster};
use crate::LinkError;
use crate::dialer;

/// Ends with the listing.
pub(super) struct Dialer {
    thread: Thread,
    wanted: Arc<AtomicBool>,
}

impl Dialer {
    fn spawn(roster: &Arc<Roster>, id: RankId) -> io::Result<Dialer> {
        let wanted = Arc::new(AtomicBool::new(true));
        let thread = dialer::spawn(Arc::clone(roster), id, Arc::clone(&wanted))?;
        Ok(Dialer { thread, wanted })
    }
}

impl Drop for Dialer {
    fn drop(&mut self) {
        self.wanted.store(false, SeqCst);
        self.thread.unpark();
    }
}

impl Roster {
    /// Lists exactly these lives.
    pub(crate) fn list(self: &Arc<Self>, members: &[Member]) {
        let mut unlisted = Vec::new();
        let mut state = self.state.lock();
        state.peers.retain(|id, peer| {
            let stays = members.iter().any(|member| member.id == *id);
            if !stays {
                unlisted.extend(peer.link.take());
            }
            stays
        });
        for member in members {
            // Another life of this rank's own number is its past or its future, and no peer.
            if member.id.rank == self.config.me.rank {
                continue;
            }
            if let Some(peer) = state.peers.get_mut(&member.id) {
                peer.address.clone_from(&member.exchange);
                continue;
            }
            let dials = self.config.me.rank < member.id.rank;
            let dialer = match dials.then(|| Dialer::spawn(self, member.id)).transpose() {
                Ok(dialer) => dialer,
                Err(error) => {
                    // The next list, which is as complete, tries again.
                    tracing::error!(rank = member.id.rank, %error, "cannot start a dialer");
                    continue;
                }
            };
            let peer = Peer::new(member.exchange.clone(), dialer);
            state.peers.insert(member.id, peer);
        }
        // What made the list new may have made dialling worthwhile.
        for peer in state.peers.values() {
            if let Some(dialer) = &peer.dialer {
                dialer.thread.unpark();
            }
        }
        drop(state);
        for link in unlisted {
            self.break_link(&link, LinkError::Unlisted);
        }
    }
}
