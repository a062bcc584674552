//! What routers tell of their workers: which of them get requests, how busy they are, and under which
//! epochs groups compute. One stream to every router pod; the operator asks workers nothing.

mod merge;
mod stream;
mod traffic;

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use millrace_proto::worker::v1::FleetView;
use parking_lot::Mutex;
use prometheus::IntGauge;
use tokio::task::AbortHandle;
use tokio::time::Instant;

#[cfg(test)]
pub use merge::Worker;
pub use merge::{DeploymentView, Routable, SETTLES_IN};
pub use traffic::{Counted, Traffic};

use crate::cache::{Key, PodView};

/// How often a change of load alone is worth a look.
const LOAD_EVERY: Duration = Duration::from_secs(10);

/// Cheap to clone; all clones are the same fleet.
#[derive(Clone)]
pub struct Fleet {
    deployments: Arc<Mutex<HashMap<Key, Routers>>>,
    changed: Arc<dyn Fn(&Key) + Send + Sync>,
    streams: IntGauge,
}

/// Of one ModelDeployment, by the name of the pod.
type Routers = HashMap<Arc<str>, Router>;

struct Router {
    uid: String,
    ip: Option<Box<str>>,
    stream: Option<AbortHandle>,
    /// Kubernetes counts it as up, so that clients may reach it.
    up: bool,
    /// When it was first heard.
    since: Option<Instant>,
    view: Option<FleetView>,
    matters: u64,
    load: u64,
    told_of_load: Instant,
}

impl Drop for Router {
    fn drop(&mut self) {
        if let Some(stream) = &self.stream {
            stream.abort();
        }
    }
}

impl Fleet {
    /// `changed` is called with the ModelDeployment about whose workers something new is known.
    /// `streams` counts routers that are heard.
    pub fn new(streams: IntGauge, changed: impl Fn(&Key) + Send + Sync + 'static) -> Fleet {
        Fleet {
            deployments: Arc::default(),
            changed: Arc::new(changed),
            streams,
        }
    }

    /// What the routers of a ModelDeployment say together. `None` while none of them is heard: then
    /// nothing may be changed that depends on it.
    pub fn view(&self, namespace: &str, name: &str) -> Option<DeploymentView> {
        let deployments = self.deployments.lock();
        let routers = deployments.get(&Key::new(namespace, name))?;
        let said: Vec<_> = routers
            .iter()
            .filter_map(|(router, state)| {
                Some(merge::Said {
                    router,
                    heard_for: state.since?.elapsed(),
                    view: state.view.as_ref()?,
                })
            })
            .collect();
        merge::merge(&said, routers.len())
    }

    /// What came in at the routers of a ModelDeployment, and how it was served.
    pub fn traffic(&self, namespace: &str, name: &str) -> Traffic {
        let deployments = self.deployments.lock();
        let routers = deployments.get(&Key::new(namespace, name));
        let mut traffic = Traffic::default();
        for (router, state) in routers.into_iter().flatten() {
            let view = state.view.as_ref();
            match view.and_then(|view| Some((view, view.traffic.as_ref()?))) {
                Some((view, counted)) => traffic.counted.push(Counted {
                    router: router.clone(),
                    waiting: view.waiting,
                    traffic: counted.clone(),
                }),
                None if state.up => traffic.unheard.push(router.clone()),
                // It takes no requests, so that nothing of it is missing.
                None => {}
            }
        }
        traffic
    }

    /// A router's pod as it is now. Needs a tokio runtime.
    pub fn router(&self, deployment: &Key, pod: &PodView) {
        // One that is told to go says ever less, and nobody waits for it.
        if pod.gone_by.is_some() || pod.ended {
            return self.router_gone(deployment, &pod.meta.key.name);
        }
        let name = pod.meta.key.name.clone();
        let mut deployments = self.deployments.lock();
        let routers = deployments.entry(deployment.clone()).or_default();
        if let Some(known) = routers.get_mut(&name)
            && known.uid == pod.meta.uid
            && known.ip == pod.ip
        {
            known.up = pod.containers_ready;
            return;
        }
        let stream = pod.ip.clone().map(|ip| {
            let (fleet, key, name) = (self.clone(), deployment.clone(), name.clone());
            let uid = pod.meta.uid.clone();
            let task = async move {
                stream::listen(&ip, |view| fleet.heard(&key, &name, &uid, view)).await;
            };
            tokio::spawn(task).abort_handle()
        });
        let router = Router {
            uid: pod.meta.uid.clone(),
            ip: pod.ip.clone(),
            stream,
            up: pod.containers_ready,
            since: None,
            view: None,
            matters: 0,
            load: 0,
            told_of_load: Instant::now(),
        };
        if routers
            .insert(name, router)
            .is_some_and(|r| r.view.is_some())
        {
            self.streams.dec();
        }
        drop(deployments);
        (self.changed)(deployment);
    }

    pub fn router_gone(&self, deployment: &Key, name: &str) {
        let mut deployments = self.deployments.lock();
        let Some(routers) = deployments.get_mut(deployment) else {
            return;
        };
        let Some(router) = routers.remove(name) else {
            return;
        };
        if router.view.is_some() {
            self.streams.dec();
        }
        if routers.is_empty() {
            deployments.remove(deployment);
        }
        drop(deployments);
        (self.changed)(deployment);
    }

    fn heard(&self, deployment: &Key, name: &str, uid: &str, view: Option<FleetView>) {
        let mut deployments = self.deployments.lock();
        let Some(router) = deployments
            .get_mut(deployment)
            .and_then(|routers| routers.get_mut(name))
            .filter(|router| router.uid == uid)
        else {
            return;
        };
        match (router.view.is_some(), view.is_some()) {
            (false, true) => self.streams.inc(),
            (true, false) => self.streams.dec(),
            _ => {}
        }
        if view.is_some() {
            router.since.get_or_insert_with(Instant::now);
        }
        let matters = view.as_ref().map_or(0, what_matters);
        let load = view.as_ref().map_or(0, load);
        let mut tell = matters != router.matters;
        if load != router.load && router.told_of_load.elapsed() >= LOAD_EVERY {
            (router.load, router.told_of_load, tell) = (load, Instant::now(), true);
        }
        (router.matters, router.view) = (matters, view);
        drop(deployments);
        if tell {
            (self.changed)(deployment);
        }
    }
}

/// A hash over what decisions depend on, and status shows at once.
fn what_matters(view: &FleetView) -> u64 {
    let mut hasher = DefaultHasher::new();
    let mut workers: Vec<_> = view.workers.iter().collect();
    workers.sort_by(|a, b| a.worker_id.cmp(&b.worker_id));
    for w in workers {
        (
            &w.worker_id,
            &w.revision,
            w.available,
            w.draining,
            &w.unavailable_reason,
        )
            .hash(&mut hasher);
    }
    let mut refused: Vec<_> = view.refused.iter().collect();
    refused.sort_by(|a, b| a.worker_id.cmp(&b.worker_id));
    for r in refused {
        (&r.worker_id, &r.reason).hash(&mut hasher);
    }
    let mut groups: Vec<_> = view.groups.iter().collect();
    groups.sort_by(|a, b| a.group.cmp(&b.group));
    for g in groups {
        (
            &g.group,
            g.epoch,
            &g.state,
            g.ranks,
            g.members,
            g.redundant_slots,
        )
            .hash(&mut hasher);
    }
    view.leading.hash(&mut hasher);
    hasher.finish().max(1)
}

/// A hash over what changes all the time.
fn load(view: &FleetView) -> u64 {
    let mut hasher = DefaultHasher::new();
    for worker in &view.workers {
        (&worker.worker_id, worker.running).hash(&mut hasher);
    }
    for group in &view.groups {
        let percent = group.balancedness.map(|b| (b * 100.0).round() as i64);
        (&group.group, percent).hash(&mut hasher);
    }
    hasher.finish()
}

#[cfg(test)]
#[path = "mod_tests.rs"]
mod tests;
