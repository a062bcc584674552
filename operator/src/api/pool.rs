//! `WorkerPool`: one role of one revision.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::{Device, EngineSpec, Model, PodOverrides, Topology, Transfer};

#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Prefill,
    Decode,
}

impl Role {
    pub const ALL: [Role; 2] = [Role::Prefill, Role::Decode];

    pub fn as_str(self) -> &'static str {
        match self {
            Role::Prefill => "prefill",
            Role::Decode => "decode",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Workers of one role and revision. Made by the operator for a ModelDeployment; its `replicas` may
/// be changed by whoever scales (kubectl, an HPA, KEDA) where the ModelDeployment does not say how
/// many there are.
#[allow(
    clippy::duplicated_attributes,
    reason = "each column has a type, and several have the same"
)]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[kube(
    group = "serving.millrace.dev",
    version = "v1alpha1",
    kind = "WorkerPool",
    namespaced,
    shortname = "wp",
    category = "millrace",
    status = "WorkerPoolStatus",
    derive = "PartialEq",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Role", type_ = "string", json_path = ".spec.role"),
    printcolumn(name = "Revision", type_ = "string", json_path = ".spec.revision"),
    printcolumn(name = "Wanted", type_ = "integer", json_path = ".spec.replicas"),
    printcolumn(name = "Ready", type_ = "integer", json_path = ".status.readyReplicas"),
    printcolumn(name = "Ranks", type_ = "integer", json_path = ".spec.worker.ranks"),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    ),
    printcolumn(
        name = "Running",
        type_ = "integer",
        priority = 1,
        json_path = ".status.runningRequests"
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        priority = 1,
        json_path = ".status.conditions[?(@.type=='Available')].message"
    )
)]
#[x_kube(validation = Rule::new("self.worker == oldSelf.worker && self.role == oldSelf.role && self.deployment == oldSelf.deployment && self.revision == oldSelf.revision")
    .message("only replicas of a WorkerPool change; edit its ModelDeployment, which makes new pools"))]
pub struct WorkerPoolSpec {
    /// The ModelDeployment that it is part of, in the same namespace.
    pub deployment: String,
    pub role: Role,
    /// What its workers call their revision; workers of different revisions are never paired.
    pub revision: String,
    /// Groups, of `worker.ranks` pods each.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub replicas: i32,
    pub worker: WorkerSpec,
}

/// All that is said about the pods of a pool. A field that a later version adds must not be
/// serialized where it is not set: revisions are hashes of this, and an upgrade of the operator alone
/// must not change them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkerSpec {
    pub image: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub image_pull_secrets: Vec<String>,
    pub model: Model,
    pub device: Device,
    /// Of a group, which shares the experts. 1: each worker holds all of them.
    #[schemars(range(min = 1, max = 1024))]
    pub ranks: i32,
    /// Replicas of experts in each layer of a group, besides one of each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub redundant_experts: Option<u32>,
    /// Of each rank's container. A CUDA rank gets one `nvidia.com/gpu` unless this says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(transform = super::without_descriptions)]
    pub resources: Option<ResourceRequirements>,
    /// Its revision has no prefill workers.
    #[serde(default, skip_serializing_if = "is_false")]
    pub aggregated: bool,
    #[serde(default)]
    pub engine: EngineSpec,
    #[serde(default)]
    pub transfer: Transfer,
    #[serde(default)]
    pub topology: Topology,
    /// Whether the pods of a group are scheduled together or not at all, where the cluster can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gang: Option<bool>,
    #[serde(default)]
    pub pod: PodOverrides,
    /// How long running requests may take once the pod is told to stop.
    #[schemars(range(min = 0))]
    pub drain_seconds: u32,
}

fn is_false(value: &bool) -> bool {
    !value
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkerPoolStatus {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Groups that exist.
    #[serde(default)]
    pub replicas: i32,
    /// Groups that the routers send requests to. One whose ranks are not all there counts while it
    /// serves.
    #[serde(default)]
    pub ready_replicas: i32,
    /// Of the pods, for whoever scales.
    #[serde(default)]
    pub selector: String,
    /// In all of its workers, as the routers see it.
    #[serde(default)]
    pub running_requests: i32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<meta::Condition>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub groups: BTreeMap<String, GroupStatus>,
}

/// One group, by the name of its StatefulSet.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct GroupStatus {
    /// Ranks that the routers send requests to.
    pub ready_ranks: i32,
    pub ranks: i32,
    /// Healthy, Degraded, Starting, Draining.
    pub state: String,
    /// The number of the epoch that its ranks compute under. Absent: it has none (a lone worker).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<i64>,
    /// Mean over most loaded rank, in percent. Absent: nothing was measured yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balancedness_percent: Option<i32>,
    /// Replicas of experts besides one of each, over all layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redundant_slots: Option<i64>,
}
