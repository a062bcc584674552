//! The interface.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use millrace_experts::{Member, RankId, group::Start};
use parking_lot::Mutex;

use crate::roster::Roster;
use crate::step::Scratch;
use crate::{LinkError, MeshConfig, MeshError, PeerStats, StepExchange};
use crate::{keeper, socket};

/// A rank's links with the others of its group.
///
/// Dropping it ends them all.
pub struct Mesh {
    roster: Arc<Roster>,
    listener: RawFd,
    keeper: Option<JoinHandle<TcpListener>>,
    /// Lent to the step's exchange.
    scratch: Mutex<Scratch>,
}

impl Mesh {
    /// Listens, and links with nobody yet. `news` is called, from any thread and briefly, whenever
    /// there may be something new in [`take_starts`](Self::take_starts),
    /// [`take_lost`](Self::take_lost) or [`linked`](Self::linked).
    ///
    /// # Errors
    /// The address is taken, or the configuration cannot work.
    pub fn bind(config: MeshConfig, news: Arc<dyn Fn() + Send + Sync>) -> Result<Mesh, MeshError> {
        config.check()?;
        let failed = |source| MeshError::Listen {
            address: config.listen,
            source,
        };
        let listener = TcpListener::bind(config.listen).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let fd = listener.as_raw_fd();
        let roster = Arc::new(Roster::new(config, address, news));
        let shared = Arc::clone(&roster);
        let keeper = thread::Builder::new()
            .name("mesh".into())
            .spawn(move || {
                keeper::keep(&shared, &listener);
                listener
            })
            .map_err(MeshError::Thread)?;
        Ok(Mesh {
            roster,
            listener: fd,
            keeper: Some(keeper),
            scratch: Mutex::default(),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.roster.address
    }

    /// Keeps a link with each of these lives from now on, and ends those with others. This rank
    /// itself may be among them. Of two ranks the one with the lower number dials.
    pub fn set_peers(&self, peers: &[Member]) {
        self.roster.list(peers);
    }

    /// Lives with which there is a working link now.
    pub fn linked(&self) -> Vec<RankId> {
        self.roster.linked()
    }

    /// Why there is no link with those that are listed and were refused, not reached or lost.
    pub fn problems(&self) -> Vec<(RankId, LinkError)> {
        self.roster.problems()
    }

    /// Lives whose link broke since the last call, whether or not there is a new one.
    pub fn take_lost(&self) -> Vec<RankId> {
        self.roster.take_lost()
    }

    /// Sends a `Start` to each of `members` but this rank. Those it cannot reach are lost, or were.
    pub fn announce(&self, start: &Start, members: &[RankId]) {
        self.roster.raise_floor(start.epoch);
        for member in members
            .iter()
            .filter(|member| **member != self.roster.config.me)
        {
            if let Some(link) = self.roster.link_in(*member, start.epoch)
                && let Err(why) = link.send_start(start)
            {
                self.roster.break_link(&link, why);
            }
        }
    }

    /// `Start`s that came since the last call. Those of a link that was lost meanwhile are not among
    /// them.
    pub fn take_starts(&self) -> Vec<(RankId, Start)> {
        self.roster.take_starts()
    }

    /// For one step of `epoch`, which every one of its `members` computes; `ranks` is how many ranks
    /// the group has. A member whose link is missing, or broke under this epoch, drops the step.
    pub fn exchange(
        &self,
        epoch: u64,
        step: u64,
        members: &[RankId],
        ranks: usize,
    ) -> StepExchange<'_> {
        self.roster.raise_floor(epoch);
        StepExchange::new(&self.roster, &self.scratch, epoch, step, members, ranks)
    }

    /// Steps of epochs before this one are dropped, those that are being computed at once: an epoch
    /// was committed that does not wait for them.
    pub fn interrupt(&self, before_epoch: u64) {
        self.roster.raise_floor(before_epoch);
    }

    /// By rank, for those that were ever linked.
    pub fn stats(&self) -> Vec<PeerStats> {
        self.roster.stats()
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.roster.retire();
        // The keeper hands the listener back, so that the descriptor is not closed, and maybe
        // another's, before this. First of all, or those whose links end would dial in again.
        socket::stop_listening(self.listener);
        self.roster.close();
        if let Some(keeper) = self.keeper.take() {
            // A keeper that panicked has said so, and there is nothing left to end.
            let _ = keeper.join();
        }
    }
}
