//! What is kept of an object that the operator applied: enough to know whose it is, and whether
//! somebody else changed what was applied.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::api::ObjectMeta;

use super::store::{Cached, Key};
use crate::api::labels;

/// The field manager of all that is applied.
pub const MANAGER: &str = "millrace-operator";

#[derive(Debug, Clone)]
pub struct Meta {
    pub key: Key,
    pub uid: String,
    pub resource_version: String,
    /// It was told to go, and is not gone yet.
    pub deleting: bool,
    /// A hash over the fields that are the operator's. The API server takes a field away from its
    /// owner when somebody else changes it, so that this changes exactly if something has to be put
    /// back, and not with a status. 0: nothing of it is the operator's.
    pub owned: u64,
    labels: [Option<Box<str>>; LABELS.len()],
}

const LABELS: [&str; 5] = [
    labels::DEPLOYMENT,
    labels::POOL,
    labels::REVISION,
    labels::ROLE,
    labels::GROUP,
];

impl Meta {
    pub fn of(meta: &ObjectMeta) -> Meta {
        let label = |name: &str| meta.labels.as_ref()?.get(name).map(|v| v.as_str().into());
        Meta {
            key: Key::of(meta),
            uid: meta.uid.clone().unwrap_or_default(),
            resource_version: meta.resource_version.clone().unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
            owned: owned(meta.managed_fields.as_deref().unwrap_or_default()),
            labels: LABELS.map(label),
        }
    }

    /// One of [`crate::api::labels`]; others are not kept.
    pub fn label(&self, name: &str) -> Option<&str> {
        let at = LABELS.iter().position(|known| *known == name)?;
        self.labels[at].as_deref()
    }
}

impl Cached for Meta {
    fn key(&self) -> Key {
        self.key.clone()
    }

    fn deployment(&self) -> Option<&str> {
        self.label(labels::DEPLOYMENT)
    }
}

fn owned(managed: &[ManagedFieldsEntry]) -> u64 {
    let ours = managed.iter().find(|entry| {
        entry.manager.as_deref() == Some(MANAGER)
            && entry.operation.as_deref() == Some("Apply")
            && entry.subresource.as_deref().unwrap_or_default().is_empty()
    });
    let Some(fields) = ours.and_then(|entry| entry.fields_v1.as_ref()) else {
        return 0;
    };
    let mut hasher = DefaultHasher::new();
    fields.0.to_string().hash(&mut hasher);
    hasher.finish().max(1)
}

/// An object that is kept whole, besides.
#[derive(Debug, Clone)]
pub struct Whole<K> {
    pub meta: Meta,
    pub object: K,
}

impl<K: kube::Resource> Whole<K> {
    /// Leaves out who manages which field, often the larger part.
    pub fn of(mut object: K) -> Whole<K> {
        let meta = Meta::of(object.meta());
        object.meta_mut().managed_fields = None;
        Whole { meta, object }
    }
}

impl<K> std::ops::Deref for Whole<K> {
    type Target = K;

    fn deref(&self) -> &K {
        &self.object
    }
}

impl<K: Send + Sync + 'static> Cached for Whole<K> {
    fn key(&self) -> Key {
        self.meta.key()
    }

    fn deployment(&self) -> Option<&str> {
        self.meta.deployment()
    }
}

/// A ModelDeployment belongs to itself.
#[derive(Debug, Clone)]
pub struct Root(pub crate::api::ModelDeployment);

impl std::ops::Deref for Root {
    type Target = crate::api::ModelDeployment;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl Cached for Root {
    fn key(&self) -> Key {
        Key::of(&self.0.metadata)
    }

    fn deployment(&self) -> Option<&str> {
        self.0.metadata.name.as_deref()
    }
}

/// A PoolAutoscaler belongs to what it scales.
#[derive(Debug, Clone)]
pub struct Scaler(pub crate::api::PoolAutoscaler);

impl std::ops::Deref for Scaler {
    type Target = crate::api::PoolAutoscaler;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl Cached for Scaler {
    fn key(&self) -> Key {
        Key::of(&self.0.metadata)
    }

    fn deployment(&self) -> Option<&str> {
        Some(&self.0.spec.target.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(json: serde_json::Value) -> Meta {
        Meta::of(&serde_json::from_value(json).unwrap())
    }

    fn managed(fields: serde_json::Value, status: &str) -> serde_json::Value {
        serde_json::json!({"name": "a", "namespace": "n", "managedFields": [
            {"manager": "kubelet", "operation": "Update", "subresource": "status", "fieldsV1": {"f:status": status}},
            {"manager": MANAGER, "operation": "Apply", "fieldsV1": fields},
        ]})
    }

    #[test]
    fn only_fields_of_the_operator_count() {
        let replicas = serde_json::json!({"f:spec": {"f:replicas": {}}});
        let first = meta(managed(replicas.clone(), "a"));
        let status = meta(managed(replicas, "b"));
        let edited = meta(managed(serde_json::json!({"f:spec": {}}), "a"));
        assert_ne!(first.owned, 0);
        assert_eq!(first.owned, status.owned);
        assert_ne!(first.owned, edited.owned);
        assert_eq!(meta(serde_json::json!({"name": "a"})).owned, 0);
    }
}
