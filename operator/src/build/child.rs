//! An object as it is applied.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::ApiResource;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::kinds::Kind;

/// An object as it should be: what the operator owns of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Child {
    kind: &'static Kind,
    namespace: String,
    name: String,
    object: Value,
}

impl Child {
    /// `body` is the object without `apiVersion`, `kind` and `metadata`.
    pub(super) fn new(
        kind: &'static Kind,
        metadata: ObjectMeta,
        body: Map<String, Value>,
    ) -> Child {
        let namespace = metadata.namespace.clone().unwrap_or_default();
        let name = metadata.name.clone().unwrap_or_default();
        let mut object = json!({
            "apiVersion": kind.api_version(),
            "kind": kind.kind,
            "metadata": metadata,
        });
        for (key, value) in body {
            object[key] = value;
        }
        Child {
            kind,
            namespace,
            name,
            object,
        }
    }

    /// An object that has a spec and nothing else.
    pub(super) fn with_spec<S: Serialize>(
        kind: &'static Kind,
        metadata: ObjectMeta,
        spec: &S,
    ) -> Child {
        let mut body = Map::new();
        body.insert("spec".to_owned(), json!(spec));
        Child::new(kind, metadata, body)
    }

    pub fn kind(&self) -> &'static Kind {
        self.kind
    }

    pub fn resource(&self) -> ApiResource {
        self.kind.resource()
    }

    /// It is applied only where the cluster serves its kind.
    pub fn optional(&self) -> bool {
        self.kind.optional
    }

    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn object(&self) -> &Value {
        &self.object
    }
}
