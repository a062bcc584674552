//! What `kubectl get` and `kubectl describe` say of a ModelDeployment.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::pool::GroupStatus;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeploymentStatus {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// The one that the spec asks for.
    #[serde(default)]
    pub revision: String,
    /// The first served name.
    #[serde(default)]
    pub model: String,
    /// Of all revisions together: a rollout does not change what is wanted.
    #[serde(default)]
    pub prefill: PoolCounts,
    #[serde(default)]
    pub decode: PoolCounts,
    #[serde(default)]
    pub router: RouterStatus,
    /// By revision, while there is any pod of it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub revisions: BTreeMap<String, RevisionStatus>,
    /// Expert-parallel groups by name: epochs and placements at a glance (`millrace experts` has more).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub groups: BTreeMap<String, GroupStatus>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<meta::Condition>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum Phase {
    /// The spec cannot be carried out: see the condition Valid.
    Invalid,
    /// Nothing serves yet.
    Starting,
    /// All of one revision, and all there.
    Available,
    /// It serves, and changes to another revision or size.
    Progressing,
    /// It serves, with less than was asked for.
    Degraded,
    /// It served, and does not now.
    Unavailable,
    Deleting,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolCounts {
    /// Groups that the routers send requests to.
    pub ready: i32,
    pub wanted: i32,
    /// `ready/wanted`, for a column.
    pub summary: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RouterStatus {
    pub ready: i32,
    pub wanted: i32,
    /// `host:port` of the HTTP API within the cluster.
    #[serde(default)]
    pub http: String,
    /// `host:port` of the gRPC APIs within the cluster.
    #[serde(default)]
    pub grpc: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RevisionStatus {
    pub prefill: PoolCounts,
    pub decode: PoolCounts,
    pub running_requests: i32,
    /// Whether it has served at some time. A revision that has not is given up for the next one at
    /// once, and one that has only as fast as the next one takes over.
    #[serde(default)]
    pub served: bool,
}
