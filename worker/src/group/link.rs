//! A group's part of a stream to a router.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use tokio::sync::watch;

use millrace_experts::group::Report;
use millrace_proto::worker::v1::{GroupOrder, WorkerMessage, worker_message::Message};

use super::{Group, orders::LinkId, wire};

static NEXT: AtomicU64 = AtomicU64::new(0);

/// Takes orders and has reports for one stream. Dropped with it.
pub struct GroupLink {
    group: Arc<Group>,
    router: String,
    id: LinkId,
    reports: watch::Receiver<Report>,
}

impl GroupLink {
    pub fn new(group: Arc<Group>, router: String) -> GroupLink {
        GroupLink {
            id: LinkId(NEXT.fetch_add(1, Relaxed)),
            reports: group.reports().subscribe(),
            group,
            router,
        }
    }

    /// Follows an order, or says in the log why not.
    pub fn hear(&self, order: GroupOrder) {
        let router = &self.router;
        match wire::order_from_wire(order, self.group.shape().shape) {
            Err(bad) => tracing::error!(router, error = %bad, "an order is ignored"),
            Ok((store, order)) => {
                if let Err(refused) = self.group.follow(self.id, &store, order) {
                    tracing::error!(router, error = %refused, "an order is refused");
                }
            }
        }
    }

    /// The report as it is now.
    pub fn report(&mut self) -> WorkerMessage {
        let report = wire::report_to_wire(&self.reports.borrow_and_update());
        WorkerMessage {
            message: Some(Message::GroupReport(report)),
        }
    }

    /// The report once it has changed.
    pub async fn changed(&mut self) -> WorkerMessage {
        let changed = self.reports.changed().await;
        changed.expect("the group, which this holds, has the sender");
        self.report()
    }
}

impl Drop for GroupLink {
    fn drop(&mut self) {
        self.group.gone(self.id);
    }
}
