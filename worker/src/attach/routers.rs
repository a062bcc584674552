//! A link to every router, wherever their names lead.
//!
//! A router given by address has a link for as long as the worker lives. A name is looked up again and
//! again, and every address it has had is a router of its own: dialled when it appears, and dialled
//! no more once the name has lost it. Its stream is never cut for that: it ends when the router ends
//! it, which may be long after, since a router that drains leaves DNS first.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
};

use tokio::{
    sync::{mpsc, watch},
    task::{AbortHandle, JoinSet},
    time::sleep,
};
use tracing::Instrument as _;

use super::{Link, Resolver};

/// The routers of a worker's configuration.
pub struct Routers {
    /// `host:port` each.
    pub routers: Vec<String>,
    pub resolver: Resolver,
    /// What every link begins as; its router is of no account.
    pub link: Link,
}

/// What the routers' names led to last.
struct Found {
    /// Which of the names.
    name: usize,
    addresses: Vec<SocketAddr>,
}

/// A link that was begun.
struct Kept {
    listed: watch::Sender<bool>,
    task: AbortHandle,
}

impl Routers {
    /// Keeps links for as long as it is polled. Dropping it ends them.
    pub async fn keep(self) {
        let (found, mut lookups) = mpsc::channel(1);
        let mut tasks = JoinSet::new();
        let mut latest: Vec<Vec<SocketAddr>> = Vec::new();
        for router in &self.routers {
            let literal: Option<SocketAddr> = router.parse().ok();
            if literal.is_none() {
                let (resolver, router) = (self.resolver.clone(), router.clone());
                let lookups = follow(resolver, router, latest.len(), found.clone());
                tasks.spawn(lookups.in_current_span());
            }
            latest.push(literal.into_iter().collect());
        }
        drop(found);
        let mut links = HashMap::new();
        loop {
            self.reconcile(&latest, &mut links, &mut tasks);
            match lookups.recv().await {
                Some(Found { name, addresses }) => latest[name] = addresses,
                // All are addresses: nothing changes any more.
                None => std::future::pending().await,
            }
        }
    }

    /// Begins links to new addresses, and tells the others whether to go on.
    fn reconcile(
        &self,
        latest: &[Vec<SocketAddr>],
        links: &mut HashMap<SocketAddr, Kept>,
        tasks: &mut JoinSet<()>,
    ) {
        while tasks.try_join_next().is_some() {}
        // Two names may lead to one router.
        let listed: BTreeSet<SocketAddr> = latest.iter().flatten().copied().collect();
        links.retain(|address, link| {
            let is_listed = listed.contains(address);
            link.listed.send_if_modified(|was| {
                let changed = *was != is_listed;
                *was = is_listed;
                changed
            });
            !link.task.is_finished()
        });
        for address in listed {
            links.entry(address).or_insert_with(|| {
                let (sender, listed) = watch::channel(true);
                let link = Link {
                    router: address.to_string(),
                    ..self.link.clone()
                };
                Kept {
                    listed: sender,
                    task: tasks.spawn(link.keep(listed).in_current_span()),
                }
            });
        }
    }
}

/// Looks a name up for ever. A lookup that fails changes nothing: what was known is better than
/// nothing.
async fn follow(resolver: Resolver, router: String, name: usize, found: mpsc::Sender<Found>) {
    let mut last = None;
    loop {
        let outcome = resolver
            .lookup(&router)
            .await
            .map_err(|error| error.to_string());
        if last.as_ref() != Some(&outcome) {
            match &outcome {
                Ok(addresses) => tracing::info!(router, ?addresses, "the router's name leads to"),
                Err(error) => {
                    tracing::warn!(router, error, "no address for the router; trying again");
                }
            }
        }
        if let Ok(addresses) = outcome.clone()
            && found.send(Found { name, addresses }).await.is_err()
        {
            return;
        }
        last = Some(outcome);
        sleep(resolver.every()).await;
    }
}
