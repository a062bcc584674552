//! All groups that have a rank attached here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use millrace_experts::group::Report;
use millrace_proto::worker::v1 as proto;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::config::ExpertsConfig;
use super::driver::Driver;
use super::group::{Group, Seated};
use super::metrics::Counters;
use super::store::Store;
use super::wire::{self, Broken};
use crate::fleet::GroupRank;
use crate::fleet::roster::Standing;

/// The groups, and a task for each of them.
pub struct Groups {
    pub(super) store: Arc<Store>,
    config: Arc<ExpertsConfig>,
    counters: Arc<Counters>,
    groups: Mutex<BTreeMap<String, Entry>>,
    seats: AtomicU64,
}

struct Entry {
    group: Arc<Group>,
    /// Streams of its ranks. Without any the group is forgotten; the store remembers its epoch.
    seats: usize,
    /// Dropping it ends the group's task.
    _driver: watch::Sender<()>,
}

impl Groups {
    pub fn new(store: Store, config: ExpertsConfig, counters: Counters) -> Arc<Groups> {
        Arc::new(Groups {
            store: Arc::new(store),
            config: Arc::new(config),
            counters: Arc::new(counters),
            groups: Mutex::default(),
            seats: AtomicU64::new(0),
        })
    }

    /// Gives a rank that was admitted its seat. Must be called within a runtime.
    pub fn join(self: &Arc<Self>, worker: &str, rank: GroupRank, standing: Standing) -> Seat {
        let mut groups = self.groups.lock();
        // Whoever was of another shape is gone, or it would not have been admitted; what is left of
        // them is streams that are about to end.
        let entry = match groups.get_mut(&rank.group) {
            Some(entry) if entry.group.shape == rank.shape => entry,
            _ => {
                let entry = self.begin(&rank);
                groups.insert(rank.group.clone(), entry);
                groups.get_mut(&rank.group).expect("it was just put there")
            }
        };
        entry.seats += 1;
        let mut orders = entry.group.orders();
        // What was ordered before it came is news to it too.
        orders.mark_changed();
        Seat {
            group: Arc::clone(&entry.group),
            orders,
            groups: Arc::clone(self),
            seat: self.seats.fetch_add(1, Ordering::Relaxed),
            worker: worker.to_owned(),
            rank,
            standing: Some(standing),
        }
    }

    fn begin(&self, rank: &GroupRank) -> Entry {
        let group = Arc::new(Group::new(&rank.group, rank.shape, &self.config));
        let (driver, ended) = watch::channel(());
        let task = Driver {
            group: Arc::clone(&group),
            store: Arc::clone(&self.store),
            config: Arc::clone(&self.config),
            counters: Arc::clone(&self.counters),
        };
        tokio::spawn(task.run(ended));
        Entry {
            group,
            seats: 0,
            _driver: driver,
        }
    }

    fn leave(&self, group: &Arc<Group>) {
        let mut groups = self.groups.lock();
        if let Some(entry) = groups.get_mut(&group.name)
            && Arc::ptr_eq(&entry.group, group)
        {
            entry.seats -= 1;
            if entry.seats == 0 {
                groups.remove(&group.name);
            }
        }
    }

    /// By name.
    pub(super) fn all(&self) -> Vec<Arc<Group>> {
        let groups = self.groups.lock();
        groups
            .values()
            .map(|entry| Arc::clone(&entry.group))
            .collect()
    }

    /// Steps down as the leader, so that another router goes on at once.
    pub async fn close(&self) {
        self.store.close().await;
    }
}

/// A rank's stream in its group. Dropping it says that the stream has ended.
pub struct Seat {
    group: Arc<Group>,
    groups: Arc<Groups>,
    orders: watch::Receiver<Option<Arc<proto::GroupOrder>>>,
    seat: u64,
    worker: String,
    rank: GroupRank,
    /// The group's from the first report on: before it the coordinator knows no such rank.
    standing: Option<Standing>,
}

impl Seat {
    /// # Errors
    /// The report breaks the contract.
    pub fn report(&mut self, report: &proto::GroupReport) -> Result<(), Broken> {
        let report: Report = wire::report(report, &self.rank)?;
        match self.standing.take() {
            None => self.group.report(self.seat, report),
            Some(standing) => {
                let seated = Seated {
                    seat: self.seat,
                    rank: self.rank.clone(),
                    worker: self.worker.clone(),
                    report,
                    standing,
                };
                self.group.attached(seated)?;
            }
        }
        Ok(())
    }

    /// # Errors
    /// They are not of the group's layers and experts.
    pub fn counts(&self, counts: proto::ExpertCounts) -> Result<(), Broken> {
        let counts = wire::counts(counts, self.rank.shape.shape)?;
        self.group.counts(self.seat, &self.rank, counts);
        Ok(())
    }

    /// The next order that this rank was not told yet. Dropped before it is done, it loses nothing.
    pub async fn order(&mut self) -> proto::GroupOrder {
        loop {
            // The group outlives its seats, and with it the sender.
            if self.orders.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            let order = self.orders.borrow_and_update().clone();
            if let Some(order) = order {
                return proto::GroupOrder::clone(&order);
            }
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.group.detached(self.seat, &self.rank);
        self.groups.leave(&self.group);
    }
}
