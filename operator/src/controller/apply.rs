//! The write side: children as they should be, status, and what has to go.
//!
//! Applying what is as it should be costs no request. After each apply it is remembered which fields
//! the API server counts as the operator's. If somebody changes one of them, the server takes it away
//! from the operator, the watch shows that, and the child is applied again. Statuses and fields of
//! others change nothing.

use std::collections::HashMap;
use std::fmt::Debug;
use std::future::Future;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use kube::api::{
    Api, DeleteParams, DynamicObject, ObjectMeta, Patch, PatchParams, Preconditions,
    PropagationPolicy,
};
use kube::core::NamespaceResourceScope;
use kube::{Client, Resource, ResourceExt as _};
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::api::{ModelDeployment, WorkerPool};
use crate::build::Child;
use crate::build::kinds::Kind;
use crate::cache::{Cache, MANAGER, Meta};
use crate::error::Error;
use crate::metrics::Metrics;

/// How long a watch may take to show what was written, before it is written again.
const WATCH_LAGS: Duration = Duration::from_secs(10);
/// The field manager of `replicas` of pools, which others may own instead.
const SCALER: &str = "millrace-operator-scale";
/// The field manager of `replicas` where a PoolAutoscaler scales.
const AUTOSCALER: &str = "millrace-operator-autoscaler";

/// What became of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    Unchanged,
    Changed,
    /// The cluster does not serve this optional kind.
    NotServed,
    /// What is there was told to go; it is applied once it is gone.
    Going,
}

/// What becomes of the objects that a deleted object owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cascade {
    /// They go first; the object stays until they are gone.
    Foreground,
    Background,
}

pub struct Applier {
    client: Client,
    cache: Cache,
    metrics: Metrics,
    applied: Mutex<HashMap<ObjectId, Record>>,
    /// By uid: what was told to go, while watches do not show it yet.
    deleted: Mutex<HashMap<String, Instant>>,
    statuses: Mutex<HashMap<String, Written>>,
    /// By uid: the generation that the last write made.
    generations: Mutex<HashMap<String, i64>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct ObjectId {
    kind: &'static str,
    namespace: String,
    name: String,
}

/// The last apply of a child.
#[derive(Debug)]
struct Record {
    /// A hash of what was applied.
    desired: u64,
    uid: String,
    /// Which fields became the operator's, as a hash.
    owned: u64,
    /// The resource version that the watch showed at that time.
    before: Option<String>,
    at: Instant,
    /// The watch has shown the outcome.
    seen: bool,
}

struct Written {
    hash: u64,
    before: Option<String>,
    at: Instant,
}

impl Applier {
    pub fn new(client: Client, cache: Cache, metrics: Metrics) -> Applier {
        Applier {
            client,
            cache,
            metrics,
            applied: Mutex::default(),
            deleted: Mutex::default(),
            statuses: Mutex::default(),
            generations: Mutex::default(),
        }
    }

    /// Makes a child what it should be. No request if it is that already.
    pub async fn apply(&self, child: &Child) -> Result<Applied, Error> {
        let kind = child.kind();
        let (namespace, name) = (child.namespace(), child.name());
        let outcome = |result| self.metrics.applied(kind.kind, result);
        if !self.cache.serves(kind) {
            outcome("not_served");
            return Ok(Applied::NotServed);
        }
        let id = ObjectId {
            kind: kind.kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        let object = child.object();
        let desired = hash(&object);
        let cached = self.cache.meta(kind, namespace, name);
        if let Some(record) = self.applied.lock().get_mut(&id)
            && record.holds(desired, cached.as_ref(), Instant::now())
        {
            outcome("unchanged");
            return Ok(Applied::Unchanged);
        }
        if cached.as_ref().is_some_and(|meta| self.is_going(meta)) {
            return Ok(Applied::Going);
        }
        let what = format!("{} {namespace}/{name}", kind.full_name());
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), namespace, &kind.resource());
        let now = api
            .patch(
                name,
                &PatchParams::apply(MANAGER).force(),
                &Patch::Apply(&object),
            )
            .await
            .map_err(|error| Error::api("apply", what.as_str(), error))?;
        let meta = Meta::of(&now.metadata);
        self.wrote_generation(&now.metadata);
        tracing::debug!(object = what, "applied");
        let record = Record {
            desired,
            owned: meta.owned,
            uid: meta.uid,
            before: cached.map(|meta| meta.resource_version),
            at: Instant::now(),
            seen: false,
        };
        self.applied.lock().insert(id, record);
        outcome("applied");
        Ok(Applied::Changed)
    }

    /// Each of them, also if one cannot be applied; then the first error is returned.
    pub async fn apply_all(&self, children: &[Child]) -> Result<(), Error> {
        let mut first = Ok(());
        for child in children {
            if let Err(error) = self.apply(child).await {
                tracing::debug!(%error, "a child could not be applied");
                first = first.and(Err(error));
            }
        }
        first
    }

    /// Deletes what a ModelDeployment has of `kinds` that `which` selects and `keep` does not name.
    pub async fn prune(
        &self,
        kinds: &[&'static Kind],
        namespace: &str,
        deployment: &str,
        which: impl Fn(&Meta) -> bool,
        keep: &[Child],
    ) -> Result<(), Error> {
        for kind in kinds {
            for meta in self.cache.of(kind, namespace, deployment) {
                let kept = keep
                    .iter()
                    .any(|child| child.kind() == *kind && *child.name() == *meta.key.name);
                if !kept && which(&meta) && !self.is_going(&meta) {
                    self.delete(kind, &meta, Cascade::Background).await?;
                }
            }
        }
        Ok(())
    }

    /// Tells an object to go, unless it is another one of that name by now. It is fine if it is gone.
    pub async fn delete(
        &self,
        kind: &'static Kind,
        meta: &Meta,
        cascade: Cascade,
    ) -> Result<(), Error> {
        let (namespace, name) = (&*meta.key.namespace, &*meta.key.name);
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), namespace, &kind.resource());
        let propagation = match cascade {
            Cascade::Foreground => PropagationPolicy::Foreground,
            Cascade::Background => PropagationPolicy::Background,
        };
        let params = DeleteParams {
            propagation_policy: Some(propagation),
            preconditions: only(&meta.uid),
            ..DeleteParams::default()
        };
        let what = format!("{} {}", kind.full_name(), meta.key);
        gone(api.delete(name, &params).await, &what)?;
        self.metrics.applied(kind.kind, "deleted");
        self.told_to_go(&meta.uid);
        self.generations.lock().remove(&meta.uid);
        let id = ObjectId {
            kind: kind.kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        self.applied.lock().remove(&id);
        Ok(())
    }

    /// It was told to go, whether or not the watch shows that yet.
    pub fn is_going(&self, meta: &Meta) -> bool {
        meta.deleting || self.deleted.lock().contains_key(&meta.uid)
    }

    /// The spec that watches show is older than the last one that was written.
    pub fn is_behind(&self, shown: &ObjectMeta) -> bool {
        let written = self.generations.lock();
        let uid = shown.uid.as_deref().unwrap_or_default();
        written.get(uid).copied() > shown.generation
    }

    fn wrote_generation(&self, written: &ObjectMeta) {
        if let (Some(uid), Some(generation)) = (written.uid.clone(), written.generation) {
            self.generations.lock().insert(uid, generation);
        }
    }

    pub(super) fn told_to_go(&self, uid: &str) {
        let mut deleted = self.deleted.lock();
        deleted.retain(|_, at| at.elapsed() < Duration::from_secs(600));
        deleted.insert(uid.to_owned(), Instant::now());
    }

    /// Does a write, unless `what` was written to this object last and the watch is only behind.
    pub(super) async fn once(
        &self,
        object: &Meta,
        what: &impl std::hash::Hash,
        write: impl Future<Output = Result<(), Error>>,
    ) -> Result<(), Error> {
        let mut hasher = DefaultHasher::new();
        what.hash(&mut hasher);
        let (hash, before) = (hasher.finish(), Some(object.resource_version.clone()));
        if self.written(&object.uid, hash, &before) {
            return Ok(());
        }
        write.await?;
        self.wrote(&object.uid, hash, before);
        Ok(())
    }

    fn written(&self, uid: &str, hash: u64, before: &Option<String>) -> bool {
        self.statuses.lock().get(uid).is_some_and(|written| {
            written.hash == hash && written.before == *before && written.at.elapsed() < WATCH_LAGS
        })
    }

    fn wrote(&self, uid: &str, hash: u64, before: Option<String>) {
        let mut statuses = self.statuses.lock();
        statuses.retain(|_, written| written.at.elapsed() < WATCH_LAGS);
        let at = Instant::now();
        statuses.insert(uid.to_owned(), Written { hash, before, at });
    }

    /// Writes a status, unless it is what the watch showed (`was`) or what was written last.
    pub async fn status<K, S>(&self, object: &K, was: Option<&S>, now: &S) -> Result<(), Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
        K: Clone + Debug + DeserializeOwned,
        S: Serialize + PartialEq,
    {
        if was == Some(now) {
            return Ok(());
        }
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        let uid = object.uid().unwrap_or_default();
        let (hash, before) = (hash(now), object.resource_version());
        if self.written(&uid, hash, &before) {
            return Ok(());
        }
        let what = format!("the status of {} {namespace}/{name}", K::plural(&()));
        let body = serde_json::json!({
            "apiVersion": K::api_version(&()),
            "kind": K::kind(&()),
            "metadata": {"name": name, "uid": uid},
            "status": now,
        });
        let api: Api<K> = Api::namespaced(self.client.clone(), &namespace);
        api.patch_status(
            &name,
            &PatchParams::apply(MANAGER).force(),
            &Patch::Apply(body),
        )
        .await
        .map_err(|error| Error::api("write", what, error))?;
        self.wrote(&uid, hash, before);
        Ok(())
    }

    /// Sets how many groups a pool should have. Apart from [`Applier::apply`], which must not name
    /// `replicas`: whoever scales owns that field, and the operator only now and then. Refused if the
    /// pool is not what the watch showed, so that nobody's change is overwritten unseen.
    pub async fn scale(&self, pool: &WorkerPool, replicas: i32) -> Result<(), Error> {
        let body = serde_json::json!({
            "metadata": {"resourceVersion": pool.resource_version()},
            "spec": {"replicas": replicas},
        });
        self.merge(pool, &body, "scale").await
    }

    /// Scales a pool as anybody would who is not the operator, through `/scale`. Refused if the pool is
    /// not what the watch showed.
    pub async fn scale_pool(&self, pool: &WorkerPool, replicas: i32) -> Result<(), Error> {
        let (namespace, name) = (pool.namespace().unwrap_or_default(), pool.name_any());
        let body = serde_json::json!({
            "metadata": {"resourceVersion": pool.resource_version()},
            "spec": {"replicas": replicas},
        });
        let api: Api<WorkerPool> = Api::namespaced(self.client.clone(), &namespace);
        let params = PatchParams {
            field_manager: Some(AUTOSCALER.to_owned()),
            ..PatchParams::default()
        };
        let scaled = api.patch_scale(&name, &params, &Patch::Merge(body)).await;
        let what = || format!("workerpools {namespace}/{name}");
        scaled
            .map(drop)
            .map_err(|error| Error::api("scale", what(), error))
    }

    /// Adds or takes away a finalizer.
    pub async fn finalizer(
        &self,
        deployment: &ModelDeployment,
        finalizer: &str,
        wanted: bool,
    ) -> Result<(), Error> {
        let mut finalizers = deployment.finalizers().to_vec();
        if finalizers.iter().any(|f| f == finalizer) == wanted {
            return Ok(());
        }
        match wanted {
            true => finalizers.push(finalizer.to_owned()),
            false => finalizers.retain(|f| f != finalizer),
        }
        let body = serde_json::json!({
            "metadata": {"resourceVersion": deployment.resource_version(), "finalizers": finalizers},
        });
        self.merge(deployment, &body, "set the finalizer of").await
    }

    async fn merge<K>(
        &self,
        object: &K,
        body: &serde_json::Value,
        verb: &'static str,
    ) -> Result<(), Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
        K: Clone + Debug + DeserializeOwned,
    {
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        let api: Api<K> = Api::namespaced(self.client.clone(), &namespace);
        let params = PatchParams {
            field_manager: Some(SCALER.to_owned()),
            ..PatchParams::default()
        };
        let now = api
            .patch(&name, &params, &Patch::Merge(body))
            .await
            .map_err(|error| {
                Error::api(
                    verb,
                    format!("{} {namespace}/{name}", K::plural(&())),
                    error,
                )
            })?;
        self.wrote_generation(now.meta());
        Ok(())
    }
}

impl Record {
    /// What is there is what was applied, by all that is known.
    fn holds(&mut self, desired: u64, cached: Option<&Meta>, now: Instant) -> bool {
        if self.desired != desired {
            return false;
        }
        match cached {
            Some(meta) if meta.uid == self.uid && meta.owned == self.owned && !meta.deleting => {
                self.seen = true;
                true
            }
            // Not shown yet: the watch is behind.
            other => {
                !self.seen
                    && other.map(|meta| &meta.resource_version) == self.before.as_ref()
                    && now.duration_since(self.at) < WATCH_LAGS
            }
        }
    }
}

/// An object with this uid, and no other of its name.
pub(super) fn only(uid: &str) -> Option<Preconditions> {
    Some(Preconditions {
        uid: Some(uid.to_owned()),
        resource_version: None,
    })
}

/// Gone already, or another one by now, is as good as deleted.
pub(super) fn gone<T>(answer: Result<T, kube::Error>, what: &str) -> Result<(), Error> {
    match answer.map_err(|error| Error::api("delete", what, error)) {
        Ok(_) | Err(Error::NotFound { .. } | Error::Conflict { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

fn hash<T: Serialize>(value: &T) -> u64 {
    let mut hasher = DefaultHasher::new();
    // Maps of what is hashed here are sorted or built in a fixed order; it cannot fail to serialize.
    serde_json::to_string(value)
        .unwrap_or_default()
        .hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
