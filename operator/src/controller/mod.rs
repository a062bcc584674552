//! The controllers: look at what is there, decide, apply, say so in the status.
//!
//! Each object has a key in a queue. Watches and routers put it there; looking at it reads only what
//! they told (and a PoolAutoscaler's ConfigMap), so that it costs no request unless something has to
//! change.

mod apply;
mod autoscaler;
mod context;
mod deployment;
mod pool;
mod pool_gate;
mod pool_lost;
mod pool_plan;
mod pool_status;
mod queue;
mod work;

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

pub use apply::{Applier, Cascade};
pub use autoscaler::Recollections;
pub use context::Context;
pub use deployment::Memory;
pub use pool_lost::Detached;

use crate::api::labels;
use crate::cache::{Cached as _, Change, Key, PodView};
use crate::error::Error;
use queue::Queue;

/// When to look again, if nothing changes before.
pub type Next = Result<Option<Duration>, Error>;

/// What is to be looked at.
#[derive(Clone, Default)]
pub struct Queues {
    deployments: Queue,
    pools: Queue,
    autoscalers: Queue,
}

impl Queues {
    pub fn deployment(&self, key: Key) {
        self.deployments.add(key);
    }

    pub fn pool(&self, key: Key) {
        self.pools.add(key);
    }

    pub fn autoscaler(&self, key: Key) {
        self.autoscalers.add(key);
    }
}

/// Follows the cluster and acts on it, until it is dropped.
pub async fn run(context: Arc<Context>, queues: Queues) {
    let mut tasks = JoinSet::new();
    let on_change = {
        let (context, queues) = (context.clone(), queues.clone());
        Arc::new(move |change: Change<'_>| look_again(&context, &queues, change))
    };
    let namespace = context.config.watch.as_deref();
    let cache = context.cache.clone();
    cache
        .start(&context.client, namespace, on_change, &mut tasks)
        .await;
    tracing::info!(
        deployments = cache.deployments.len(),
        pools = cache.pools.len(),
        pods = cache.pods.len(),
        "everything that is there is known"
    );
    tasks.spawn(work::work(context.clone(), queues.pools, &work::POOLS));
    tasks.spawn(work::work(
        context.clone(),
        queues.autoscalers,
        &work::AUTOSCALERS,
    ));
    tasks.spawn(work::work(context, queues.deployments, &work::DEPLOYMENTS));
    // None of them ends by itself.
    while tasks.join_next().await.is_some() {}
}

/// Puts into the queues what a change is of concern to.
fn look_again(context: &Context, queues: &Queues, change: Change<'_>) {
    match change {
        Change::Deployment(deployment) => {
            let key = Key::of(&deployment.metadata);
            autoscalers_of(context, queues, &key);
            queues.deployment(key);
        }
        Change::Pool(pool) => {
            let key = &pool.meta.key;
            let deployment = Key::new(&key.namespace, &pool.spec.deployment);
            autoscalers_of(context, queues, &deployment);
            queues.deployment(deployment);
            queues.pool(key.clone());
        }
        Change::Autoscaler(autoscaler) => {
            let key = autoscaler.key();
            let target = Key::new(&key.namespace, &autoscaler.spec.target.name);
            queues.autoscaler(key);
            // Those that stood back behind it may have to act now.
            autoscalers_of(context, queues, &target);
            // What it asks for is what a rollout goes to.
            queues.deployment(target);
        }
        Change::Router(router) => {
            if let Some(deployment) = router.meta.label(labels::DEPLOYMENT) {
                queues.deployment(Key::new(&router.meta.key.namespace, deployment));
            }
        }
        Change::Pod(pod, there) => pod_changed(context, queues, pod, there),
        Change::Other(meta) => {
            let namespace = &meta.key.namespace;
            if let Some(pool) = meta.label(labels::POOL) {
                queues.pool(Key::new(namespace, pool));
            } else if let Some(deployment) = meta.label(labels::DEPLOYMENT) {
                queues.deployment(Key::new(namespace, deployment));
            }
        }
        Change::Served => {
            for deployment in context.cache.deployments.all() {
                look_again(context, queues, Change::Deployment(&deployment));
            }
            for pool in context.cache.pools.all() {
                queues.pool(pool.meta.key.clone());
            }
        }
    }
}

/// Those that name a ModelDeployment.
fn autoscalers_of(context: &Context, queues: &Queues, deployment: &Key) {
    let cache = &context.cache;
    for autoscaler in cache
        .autoscalers
        .of(&deployment.namespace, &deployment.name)
    {
        queues.autoscaler(autoscaler.key());
    }
}

fn pod_changed(context: &Context, queues: &Queues, pod: &PodView, there: bool) {
    let namespace = &pod.meta.key.namespace;
    let Some(deployment) = pod.meta.label(labels::DEPLOYMENT) else {
        return;
    };
    let deployment = Key::new(namespace, deployment);
    match pod.meta.label(labels::POOL) {
        Some(pool) => {
            if !there {
                context.detached.gone(&pod.meta.uid);
            }
            queues.pool(Key::new(namespace, pool));
        }
        None => {
            match there {
                true => context.fleet.router(&deployment, pod),
                false => context.fleet.router_gone(&deployment, pod.name()),
            }
            queues.deployment(deployment);
        }
    }
}
