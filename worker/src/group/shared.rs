//! What the engine's thread, staging and the links to routers share.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use parking_lot::Mutex;
use tokio::sync::watch;

use millrace_exchange::Mesh;
use millrace_experts::{
    Member,
    group::{GroupShape, Order},
};
use millrace_proto::worker::v1 as proto;

use super::{
    orders::{LinkId, Orders, Refused},
    reports::Reports,
    wire,
};
use crate::engine::Waker;

/// One rank's view of its group.
pub struct Group {
    name: String,
    /// Of the checkpoint.
    revision: String,
    me: Member,
    shape: GroupShape,
    mesh: Arc<Mesh>,
    waker: Waker,
    heard: Mutex<Orders>,
    orders: watch::Sender<Order>,
    reports: Reports,
    /// The latest epoch whose weights are in memory.
    staged: AtomicU64,
}

impl Group {
    pub(super) fn new(
        name: String,
        revision: String,
        me: Member,
        shape: GroupShape,
        mesh: Arc<Mesh>,
        waker: Waker,
    ) -> Group {
        Group {
            name,
            revision,
            reports: Reports::new(me.clone()),
            me,
            shape,
            mesh,
            waker,
            heard: Mutex::default(),
            orders: watch::Sender::new(Order::default()),
            staged: AtomicU64::new(0),
        }
    }

    pub fn me(&self) -> &Member {
        &self.me
    }

    pub fn shape(&self) -> GroupShape {
        self.shape
    }

    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// For the Hello.
    pub fn to_wire(&self) -> proto::GroupRank {
        wire::rank_to_wire(&self.name, &self.me, self.shape)
    }

    /// What routers want, as far as it can be followed.
    pub(super) fn orders(&self) -> watch::Receiver<Order> {
        self.orders.subscribe()
    }

    pub(super) fn reports(&self) -> &Reports {
        &self.reports
    }

    /// The weights of this rank's slots in the epoch are in memory, verified.
    pub(super) fn staged(&self, epoch: u64) {
        self.staged.fetch_max(epoch, Relaxed);
        self.waker.wake();
    }

    pub(super) fn latest_staged(&self) -> u64 {
        self.staged.load(Relaxed)
    }

    /// Follows a router's order. What it makes urgent happens here and now, since the engine's
    /// thread may be waiting for a rank that is gone.
    pub(super) fn follow(&self, link: LinkId, store: &str, order: Order) -> Result<(), Refused> {
        // Held to the end, so that orders take effect in the order in which they were merged.
        let mut heard = self.heard.lock();
        if !heard.take(link, store, order)? {
            return Ok(());
        }
        let order = heard.current();
        // Also those that no router sees at this moment: one that restarts sees nobody at first.
        let mut peers = order.peers.clone();
        let epochs = order.epoch.as_deref().into_iter();
        for epoch in epochs.chain(order.plan.as_deref().map(|plan| &plan.next)) {
            peers.extend(epoch.members.iter().cloned());
        }
        peers.retain(|peer| peer.id.rank != self.me.id.rank);
        peers.sort_by_key(|peer| peer.id);
        peers.dedup_by_key(|peer| peer.id);
        self.mesh.set_peers(&peers);
        self.orders.send_replace(order.clone());
        if let Some(epoch) = &order.epoch {
            self.mesh.interrupt(epoch.reset);
        }
        self.waker.wake();
        Ok(())
    }

    /// The stream to a router has ended.
    pub(super) fn gone(&self, link: LinkId) {
        self.heard.lock().gone(link);
    }

    /// Ends whatever step is under way, for good.
    pub(crate) fn interrupt(&self) {
        self.mesh.interrupt(u64::MAX);
    }
}
