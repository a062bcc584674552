//! What is there, as watches tell it. Reconciling asks the API server nothing.

mod meta;
mod pod;
mod store;
mod watch;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DynamicObject, PartialObjectMeta};
use kube::core::NamespaceResourceScope;
use kube::{Client, Resource};
use tokio::sync::watch as flag;
use tokio::task::JoinSet;

pub use meta::{MANAGER, Meta, Root, Scaler, Whole};
pub use pod::PodView;
pub use store::{Cached, Key, Store};

use crate::api::{ModelDeployment, PoolAutoscaler, WorkerPool, labels};
use crate::build::kinds::{DEPLOYMENT, KINDS, Kind, WORKER_POOL};

/// How often a cluster is asked whether it serves what it did not serve before.
const ASKED_EVERY: Duration = Duration::from_secs(300);
/// How long a start waits for an optional kind that is served, but cannot be listed.
const PATIENCE: Duration = Duration::from_secs(5);

/// Everything that is followed. Cheap to clone.
#[derive(Clone)]
pub struct Cache {
    pub deployments: Store<Root>,
    pub pools: Store<Whole<WorkerPool>>,
    pub autoscalers: Store<Scaler>,
    /// The Deployments of routers.
    pub routers: Store<Whole<Deployment>>,
    /// Routers and workers.
    pub pods: Store<PodView>,
    /// Metadata of everything else that is applied.
    others: Arc<HashMap<&'static str, Store<Meta>>>,
    /// Optional kinds that can be listed, by kind.
    served: Arc<HashMap<&'static str, flag::Sender<bool>>>,
}

/// What changed, for whoever has to look again.
pub enum Change<'a> {
    Deployment(&'a Root),
    Pool(&'a Whole<WorkerPool>),
    Autoscaler(&'a Scaler),
    Router(&'a Whole<Deployment>),
    /// `false`: it is gone.
    Pod(&'a PodView, bool),
    Other(&'a Meta),
    /// An optional kind is served from now on.
    Served,
}

pub type OnChange = Arc<dyn Fn(Change<'_>) + Send + Sync>;

impl Default for Cache {
    fn default() -> Self {
        let others = KINDS
            .into_iter()
            .filter(|kind| **kind != WORKER_POOL && **kind != DEPLOYMENT);
        let optional = KINDS.into_iter().filter(|kind| kind.optional);
        Cache {
            deployments: Store::default(),
            pools: Store::default(),
            autoscalers: Store::default(),
            routers: Store::default(),
            pods: Store::default(),
            others: Arc::new(others.map(|kind| (kind.kind, Store::default())).collect()),
            served: Arc::new(
                optional
                    .map(|kind| (kind.kind, flag::Sender::new(false)))
                    .collect(),
            ),
        }
    }
}

impl Cache {
    /// Whether the cluster has a kind, and lets the operator list it.
    pub fn serves(&self, kind: &Kind) -> bool {
        self.served
            .get(kind.kind)
            .is_none_or(|served| *served.borrow())
    }

    /// An object that was applied, whatever its kind.
    pub fn meta(&self, kind: &Kind, namespace: &str, name: &str) -> Option<Meta> {
        match kind {
            kind if *kind == WORKER_POOL => {
                let pool = self.pools.get(namespace, name)?;
                Some(pool.meta.clone())
            }
            kind if *kind == DEPLOYMENT => {
                let router = self.routers.get(namespace, name)?;
                Some(router.meta.clone())
            }
            kind => {
                let meta = self.others.get(kind.kind)?.get(namespace, name)?;
                Some(Meta::clone(&meta))
            }
        }
    }

    /// All objects of a kind that belong to a ModelDeployment, by name.
    pub fn of(&self, kind: &Kind, namespace: &str, deployment: &str) -> Vec<Meta> {
        match kind {
            kind if *kind == WORKER_POOL => {
                let pools = self.pools.of(namespace, deployment);
                pools.iter().map(|pool| pool.meta.clone()).collect()
            }
            kind if *kind == DEPLOYMENT => {
                let routers = self.routers.of(namespace, deployment);
                routers.iter().map(|router| router.meta.clone()).collect()
            }
            kind => match self.others.get(kind.kind) {
                Some(store) => {
                    let all = store.of(namespace, deployment);
                    all.iter().map(|meta| Meta::clone(meta)).collect()
                }
                None => Vec::new(),
            },
        }
    }

    /// Begins to follow everything, and returns once all that is there is known. The watches end with
    /// `tasks`.
    pub async fn start(
        &self,
        client: &Client,
        namespace: Option<&str>,
        on_change: OnChange,
        tasks: &mut JoinSet<()>,
    ) {
        let (mut synced, mut optional) = (Vec::new(), Vec::new());
        let ours = Some(labels::DEPLOYMENT);

        let (ready, tell) = (flag::Sender::new(false), on_change.clone());
        synced.push(ready.subscribe());
        tasks.spawn(watch::follow(
            api::<ModelDeployment>(client, namespace),
            None,
            self.deployments.clone(),
            |mut object: ModelDeployment| {
                object.metadata.managed_fields = None;
                Root(object)
            },
            move |object, _| tell(Change::Deployment(object)),
            ready,
        ));

        let (ready, tell) = (flag::Sender::new(false), on_change.clone());
        synced.push(ready.subscribe());
        tasks.spawn(watch::follow(
            api::<WorkerPool>(client, namespace),
            None,
            self.pools.clone(),
            Whole::of,
            move |object, _| tell(Change::Pool(object)),
            ready,
        ));

        let (ready, tell) = (flag::Sender::new(false), on_change.clone());
        synced.push(ready.subscribe());
        tasks.spawn(watch::follow(
            api::<PoolAutoscaler>(client, namespace),
            None,
            self.autoscalers.clone(),
            |mut object: PoolAutoscaler| {
                object.metadata.managed_fields = None;
                Scaler(object)
            },
            move |object, _| tell(Change::Autoscaler(object)),
            ready,
        ));

        let (ready, tell) = (flag::Sender::new(false), on_change.clone());
        synced.push(ready.subscribe());
        tasks.spawn(watch::follow(
            api::<Deployment>(client, namespace),
            ours,
            self.routers.clone(),
            Whole::of,
            move |object, _| tell(Change::Router(object)),
            ready,
        ));

        let (ready, tell) = (flag::Sender::new(false), on_change.clone());
        synced.push(ready.subscribe());
        tasks.spawn(watch::follow(
            api::<Pod>(client, namespace),
            ours,
            self.pods.clone(),
            |pod: Pod| PodView::of(&pod),
            move |object, there| tell(Change::Pod(object, there)),
            ready,
        ));

        for (kind, store) in KINDS
            .into_iter()
            .filter_map(|kind| Some((kind, self.others.get(kind.kind)?.clone())))
        {
            let (client, tell) = (client.clone(), on_change.clone());
            let namespace = namespace.map(str::to_owned);
            let ready = flag::Sender::new(false);
            let first = ready.subscribe();
            match self.served.get(kind.kind) {
                None => {
                    synced.push(first);
                    tasks.spawn(follow_meta(client, namespace, kind, store, tell, ready));
                }
                Some(served) => {
                    optional.push(first);
                    let served = served.clone();
                    tasks.spawn(async move {
                        wait_for_kind(&client, kind, &ready).await;
                        let mut follows = served.subscribe();
                        let served_now = async {
                            // Never an error: `follow_meta` holds the sender.
                            let _ = follows.wait_for(|served| *served).await;
                            ready.send_replace(true);
                            tell(Change::Served);
                        };
                        let follow =
                            follow_meta(client, namespace, kind, store, tell.clone(), served);
                        tokio::join!(follow, served_now);
                    });
                }
            }
        }
        for mut ready in synced {
            // Never an error: whoever follows holds the sender.
            let _ = ready.wait_for(|ready| *ready).await;
        }
        let wait = async {
            for mut ready in optional {
                let _ = ready.wait_for(|ready| *ready).await;
            }
        };
        // One that is served, but may not be listed, counts as not served.
        let _ = tokio::time::timeout(PATIENCE, wait).await;
    }
}

async fn follow_meta(
    client: Client,
    namespace: Option<String>,
    kind: &'static Kind,
    store: Store<Meta>,
    tell: OnChange,
    ready: flag::Sender<bool>,
) {
    let resource = kind.resource();
    let api: Api<PartialObjectMeta<DynamicObject>> = match namespace {
        Some(namespace) => Api::namespaced_with(client, &namespace, &resource),
        None => Api::all_with(client, &resource),
    };
    let keep = |object: PartialObjectMeta<DynamicObject>| Meta::of(&object.metadata);
    let changed = move |object: &Arc<Meta>, _| tell(Change::Other(object));
    watch::follow(api, Some(labels::DEPLOYMENT), store, keep, changed, ready).await;
}

/// Returns once the cluster serves a kind; says so to `known` as soon as it is known that it does not.
async fn wait_for_kind(client: &Client, kind: &Kind, known: &flag::Sender<bool>) {
    loop {
        match client.list_api_group_resources(&kind.api_version()).await {
            Ok(list) if list.resources.iter().any(|r| r.name == kind.plural) => return,
            Ok(_) => {
                known.send_replace(true);
            }
            // In plain text, so that the reason is missing.
            Err(kube::Error::Api(status)) if status.code == 404 => {
                known.send_replace(true);
            }
            Err(error) => tracing::debug!(%error, kind = kind.kind, "discovery failed"),
        }
        tokio::time::sleep(ASKED_EVERY).await;
    }
}

fn api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}
