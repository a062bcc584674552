//! Who is linked with whom: what the mesh, its dialers, greeters and keeper share.

mod life;
mod listing;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicU64, AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};

use millrace_experts::{RankId, group::Start};
use parking_lot::Mutex;

use crate::link::Link;
use crate::stats::{Counters, PeerStats};
use crate::{LinkError, MeshConfig, Refusal};
use listing::Dialer;

pub(crate) struct Roster {
    pub(crate) config: MeshConfig,
    /// As bound.
    pub(crate) address: SocketAddr,
    news: Arc<dyn Fn() + Send + Sync>,
    /// Epochs before this one are over.
    floor: AtomicU64,
    closed: AtomicBool,
    /// Connections that have not said yet who they are.
    pub(crate) strangers: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    peers: BTreeMap<RankId, Peer>,
    lost: Vec<RankId>,
    counters: BTreeMap<usize, Arc<Counters>>,
}

/// A life that is listed.
struct Peer {
    address: String,
    link: Option<Arc<Link>>,
    /// Why there is none.
    problem: Option<LinkError>,
    /// The latest epoch in which the link was used.
    used: u64,
    /// Up to this epoch, no step can be completed with this life: a link broke under it, and what was
    /// on its way then came to nobody. A new link does not mend that.
    ended: u64,
    dialer: Option<Dialer>,
}

impl Peer {
    fn new(address: String, dialer: Option<Dialer>) -> Peer {
        Peer {
            address,
            link: None,
            problem: None,
            used: 0,
            ended: 0,
            dialer,
        }
    }
}

impl Roster {
    pub(crate) fn new(
        config: MeshConfig,
        address: SocketAddr,
        news: Arc<dyn Fn() + Send + Sync>,
    ) -> Roster {
        Roster {
            config,
            address,
            news,
            floor: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            strangers: AtomicUsize::new(0),
            state: Mutex::default(),
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(SeqCst)
    }

    pub(crate) fn address_of(&self, id: RankId) -> Option<String> {
        let state = self.state.lock();
        state.peers.get(&id).map(|peer| peer.address.clone())
    }

    pub(crate) fn admits(&self, id: RankId) -> Result<(), Refusal> {
        // One that is leaving welcomes nobody: the link would break at once.
        if !self.is_closed() && self.state.lock().peers.contains_key(&id) {
            Ok(())
        } else {
            Err(Refusal::NotListed)
        }
    }

    pub(crate) fn problems(&self) -> Vec<(RankId, LinkError)> {
        let state = self.state.lock();
        let problem = |(id, peer): (&RankId, &Peer)| Some((*id, peer.problem.clone()?));
        state.peers.iter().filter_map(problem).collect()
    }

    pub(crate) fn linked(&self) -> Vec<RankId> {
        let state = self.state.lock();
        let linked = state.peers.iter().filter(|(_, peer)| peer.link.is_some());
        linked.map(|(id, _)| *id).collect()
    }

    pub(crate) fn links(&self) -> Vec<Arc<Link>> {
        let state = self.state.lock();
        let links = state.peers.values().filter_map(|peer| peer.link.clone());
        links.collect()
    }

    pub(crate) fn take_lost(&self) -> Vec<RankId> {
        std::mem::take(&mut self.state.lock().lost)
    }

    /// Starts that have come over links that still are.
    pub(crate) fn take_starts(&self) -> Vec<(RankId, Start)> {
        let mut starts = Vec::new();
        let state = self.state.lock();
        for link in state.peers.values().filter_map(|peer| peer.link.as_ref()) {
            link.take_starts(&mut starts);
        }
        starts
    }

    /// The link with `id` for use in `epoch`.
    pub(crate) fn link_in(&self, id: RankId, epoch: u64) -> Option<Arc<Link>> {
        let mut state = self.state.lock();
        let peer = state.peers.get_mut(&id)?;
        if epoch <= peer.ended {
            return None;
        }
        let link = peer.link.clone()?;
        peer.used = peer.used.max(epoch);
        Some(link)
    }

    pub(crate) fn is_over(&self, epoch: u64) -> bool {
        epoch < self.floor.load(Relaxed)
    }

    /// Epochs before `floor` are over.
    pub(crate) fn raise_floor(&self, floor: u64) {
        if self.floor.fetch_max(floor, Relaxed) < floor {
            for link in self.links() {
                link.look();
            }
        }
    }

    pub(crate) fn stats(&self) -> Vec<PeerStats> {
        let state = self.state.lock();
        let stats = state.counters.iter();
        stats
            .map(|(rank, counters)| counters.stats(*rank))
            .collect()
    }

    /// From now on nobody is dialled or let in.
    pub(crate) fn retire(&self) {
        self.closed.store(true, SeqCst);
    }

    /// Ends every link and dialer.
    pub(crate) fn close(&self) {
        self.retire();
        for link in self.links() {
            self.break_link(&link, LinkError::Closed);
        }
        self.state.lock().peers.clear();
    }
}
