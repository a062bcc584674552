//! Metadata that all objects have.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use kube::{Resource, ResourceExt as _};

use crate::api::{Role, WorkerPool, labels};

pub type Labels = BTreeMap<String, String>;

/// Prefixes of labels that are the operator's to set.
pub const RESERVED_LABELS: [&str; 2] = ["app.kubernetes.io/", "serving.millrace.dev/"];
/// The role of routers, which is no worker's.
pub const ROUTER: &str = "router";

/// The controller of an object, without which the object goes too.
pub fn owner<K: Resource<DynamicType = ()>>(of: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: of.name_any(),
        uid: of.uid().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Of all objects of a deployment; `component` also says the role.
pub fn common(deployment: &str, component: &str) -> Labels {
    [
        ("app.kubernetes.io/name", "millrace"),
        ("app.kubernetes.io/instance", deployment),
        ("app.kubernetes.io/component", component),
        ("app.kubernetes.io/managed-by", "millrace-operator"),
        (labels::DEPLOYMENT, deployment),
        (labels::ROLE, component),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

/// Of a pool and what it has.
pub fn of_pool(deployment: &str, revision: &str, role: Role, pool: &str) -> Labels {
    let mut all = common(deployment, role.as_str());
    all.insert(labels::REVISION.to_owned(), revision.to_owned());
    all.insert(labels::POOL.to_owned(), pool.to_owned());
    all
}

/// Selects the routers of a deployment.
pub fn routers(deployment: &str) -> Labels {
    selector([(labels::DEPLOYMENT, deployment), (labels::ROLE, ROUTER)])
}

pub fn selector<const N: usize>(pairs: [(&str, &str); N]) -> Labels {
    pairs
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

pub fn matching(labels: Labels) -> LabelSelector {
    LabelSelector {
        match_labels: Some(labels),
        match_expressions: None,
    }
}

pub fn metadata(
    name: String,
    namespace: &str,
    labels: Labels,
    owner: OwnerReference,
) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(namespace.to_owned()),
        labels: Some(labels),
        owner_references: Some(vec![owner]),
        ..ObjectMeta::default()
    }
}

/// Of something that a pool has.
pub fn of(pool: &WorkerPool, name: String, labels: Labels) -> ObjectMeta {
    let namespace = pool.namespace().unwrap_or_default();
    metadata(name, &namespace, labels, owner(pool))
}
