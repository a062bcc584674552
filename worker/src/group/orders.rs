//! What the routers of a group say, made one.
//!
//! Every router sends each rank a complete order whenever it changes. Routers share an epoch store
//! and so agree, but not at the same moment: one may lag, restart, or go away. The rules:
//!
//! * The newest epoch counts, and never gives way to an older one.
//! * The plan is that of the latest order that knows the newest epoch.
//! * Peers are those that any router sees.
//! * Routers of another store are not listened to while one of the first store is attached: two
//!   balancers that know nothing of each other would tear the group apart.
//! * When all routers are gone, the last order stands.

use std::{collections::BTreeMap, sync::Arc};

use millrace_experts::{Epoch, Member, Plan, RankId, group::Order};

/// One stream to a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error(
        "it is from the epoch store {theirs}, and this rank follows {ours}, whose routers are still attached; give all routers of a group the same store"
    )]
    OtherStore { ours: String, theirs: String },
    #[error(
        "its epoch {0} is not the epoch of that number that this rank knows; two stores were written to for one group, keep one"
    )]
    Conflict(u64),
}

#[derive(Debug, Default)]
pub struct Orders {
    store: Option<String>,
    links: BTreeMap<LinkId, Latest>,
    /// Orders so far.
    heard: u64,
    merged: Order,
}

#[derive(Debug)]
struct Latest {
    order: Order,
    heard: u64,
    /// The stream it came over has ended.
    gone: bool,
}

impl Orders {
    /// What to do now.
    pub fn current(&self) -> &Order {
        &self.merged
    }

    /// Hears a router. Whether something changed.
    pub fn take(&mut self, link: LinkId, store: &str, order: Order) -> Result<bool, Refused> {
        self.follow(link, store)?;
        if let (Some(known), Some(told)) = (&self.merged.epoch, &order.epoch)
            && known.number == told.number
            && known != told
        {
            return Err(Refused::Conflict(told.number));
        }
        self.links.retain(|_, latest| !latest.gone);
        self.heard += 1;
        let latest = Latest {
            order,
            heard: self.heard,
            gone: false,
        };
        self.links.insert(link, latest);
        let merged = Order {
            peers: self.peers(),
            epoch: self.epoch(),
            plan: self.plan(),
        };
        let changed = merged != self.merged;
        self.merged = merged;
        Ok(changed)
    }

    /// The stream has ended. What it said stands until another router speaks.
    pub fn gone(&mut self, link: LinkId) {
        if let Some(latest) = self.links.get_mut(&link) {
            latest.gone = true;
        }
    }

    fn follow(&mut self, link: LinkId, store: &str) -> Result<(), Refused> {
        if let Some(ours) = &self.store
            && ours != store
        {
            let attached = |(id, latest): (&LinkId, &Latest)| *id != link && !latest.gone;
            if self.links.iter().any(attached) {
                return Err(Refused::OtherStore {
                    ours: ours.clone(),
                    theirs: store.to_string(),
                });
            }
            tracing::warn!(was = ours, now = store, "following another epoch store");
            self.links.clear();
        }
        self.store = Some(store.to_string());
        Ok(())
    }

    fn epoch(&self) -> Option<Arc<Epoch>> {
        let told = self.links.values().filter_map(|l| l.order.epoch.as_ref());
        self.merged
            .epoch
            .iter()
            .chain(told)
            .max_by_key(|epoch| epoch.number)
            .cloned()
    }

    fn plan(&self) -> Option<Arc<Plan>> {
        let number = |epoch: &Option<Arc<Epoch>>| epoch.as_ref().map_or(0, |epoch| epoch.number);
        let newest = number(&self.epoch());
        self.links
            .values()
            .filter(|latest| number(&latest.order.epoch) == newest)
            .max_by_key(|latest| latest.heard)
            .and_then(|latest| latest.order.plan.clone())
            // Another epoch was committed meanwhile.
            .filter(|plan| plan.base == newest)
    }

    fn peers(&self) -> Vec<Member> {
        let mut latest: Vec<&Latest> = self.links.values().collect();
        latest.sort_by_key(|latest| latest.heard);
        let peers: BTreeMap<RankId, &Member> = latest
            .into_iter()
            .flat_map(|latest| &latest.order.peers)
            .map(|peer| (peer.id, peer))
            .collect();
        peers.into_values().cloned().collect()
    }
}

#[cfg(test)]
mod tests;
