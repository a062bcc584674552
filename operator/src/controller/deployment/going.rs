//! A ModelDeployment that was deleted, and waits for its epochs to be forgotten.

use std::time::Duration;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt as _;

use super::super::{Cascade, Context, Next};
use super::{status, tell};
use crate::api::{DeploymentStatus, ModelDeployment, labels};
use crate::build::kinds::{DEPLOYMENT, WORKER_POOL};
use crate::build::{EtcdPlace, names};
use crate::cache::{Key, PodView};
use crate::error::Error;
use crate::etcd;

/// It reads only what watches showed.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// A pod that should be gone for so long is on a node that does not answer. It is not waited for.
const LATE: SignedDuration = SignedDuration::from_secs(30);

/// Children go with their owner, and routers write to etcd as long as they run. So they are told to go
/// here, and the owner stays until they are gone.
pub async fn go(
    context: &Context,
    key: &Key,
    deployment: &ModelDeployment,
    previous: &DeploymentStatus,
) -> Next {
    let finalizers = deployment.finalizers();
    if !finalizers.iter().any(|f| f == labels::FINALIZER) {
        return Ok(None);
    }
    for kind in [&WORKER_POOL, &DEPLOYMENT] {
        for meta in context.cache.of(kind, &key.namespace, &key.name) {
            if !context.applier.is_going(&meta) {
                let applier = &context.applier;
                applier.delete(kind, &meta, Cascade::Background).await?;
            }
        }
    }
    let pods = context.cache.pods.of(&key.namespace, &key.name);
    let now = Timestamp::now();
    let left = pods.iter().filter(|pod| !is_lost(pod, now)).count();
    let objects = [&WORKER_POOL, &DEPLOYMENT]
        .map(|kind| context.cache.of(kind, &key.namespace, &key.name).len());
    if left > 0 || objects != [0, 0] {
        let next = status::deleting(deployment, previous, left, now);
        tell(context, key, deployment, previous, &next).await?;
        return Ok(Some(LOOK_AGAIN));
    }
    if let Some(place) = place(context, deployment) {
        let forgotten = etcd::forget(&place).await;
        let keys = forgotten.map_err(|error| Error::Other(Box::new(error)))?;
        tracing::info!(keys, prefix = place.prefix, "epochs are forgotten");
    }
    context
        .applier
        .finalizer(deployment, labels::FINALIZER, false)
        .await?;
    Ok(None)
}

/// Also of one whose spec is invalid by now.
fn place(context: &Context, deployment: &ModelDeployment) -> Option<EtcdPlace> {
    let endpoints = match &deployment.spec.etcd {
        Some(etcd) => &etcd.endpoints,
        None => &context.defaults.etcd,
    };
    let namespace = deployment.namespace().unwrap_or_default();
    (!endpoints.is_empty()).then(|| EtcdPlace {
        endpoints: endpoints.clone(),
        prefix: names::etcd_prefix(&deployment.name_any(), &namespace),
    })
}

fn is_lost(pod: &PodView, now: Timestamp) -> bool {
    pod.gone_by.is_some_and(|by| now > by + LATE)
}
