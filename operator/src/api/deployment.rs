//! `ModelDeployment`: a model, served.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::{DeploymentStatus, Device, EngineSpec, Model, PodOverrides, Topology};

/// A model served by a router and pools of prefill and decode workers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[kube(
    group = "serving.millrace.dev",
    version = "v1alpha1",
    kind = "ModelDeployment",
    namespaced,
    shortname = "mdep",
    category = "millrace",
    status = "DeploymentStatus",
    derive = "PartialEq",
    printcolumn(name = "Model", type_ = "string", json_path = ".status.model"),
    printcolumn(name = "Revision", type_ = "string", json_path = ".status.revision"),
    printcolumn(name = "Prefill", type_ = "string", json_path = ".status.prefill.summary"),
    printcolumn(name = "Decode", type_ = "string", json_path = ".status.decode.summary"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Address", type_ = "string", priority = 1, json_path = ".status.router.http"),
    printcolumn(name = "Message", type_ = "string", priority = 1, json_path = ".status.conditions[?(@.type=='Progressing')].message"),
    validation = Rule::new("size(self.metadata.name) <= 30").message("the name is longer than 30 characters; names of pods, which may have 63, are made of it"),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')").message("a Service gets this name, so it begins with a letter and has lowercase letters, digits and dashes only"),
    validation = Rule::new("!self.metadata.name.endsWith('-router')").message("the name ends in -router, which is how the routers of ModelDeployments are called; choose another one")
)]
pub struct ModelDeploymentSpec {
    /// The Millrace image of routers and workers. Default: the operator's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub image: Option<String>,
    /// Always, IfNotPresent or Never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<String>,
    /// Names of Secrets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub image_pull_secrets: Vec<String>,
    pub model: Model,
    #[serde(default)]
    pub router: RouterSpec,
    /// Without it, decode workers compute prompts themselves (an aggregated deployment).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefill: Option<PoolSpec>,
    pub decode: PoolSpec,
    #[serde(default)]
    pub transfer: Transfer,
    #[serde(default)]
    pub rollout: Rollout,
    #[serde(default)]
    pub drain: Drain,
    /// Where epochs of groups are kept. Default: the etcd that the operator was started with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etcd: Option<Etcd>,
    #[serde(default)]
    pub monitoring: Monitoring,
    /// Whether only routers, workers and the operator may reach workers. Default: true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_policy: Option<bool>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RouterSpec {
    /// Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub replicas: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(transform = super::without_descriptions)]
    pub resources: Option<ResourceRequirements>,
    #[serde(default)]
    pub service: RouterService,
    /// Without it, clients speak plain HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// Without it, everybody who reaches the router is served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<Auth>,
    /// Routes of the Gateway API (gateway.networking.k8s.io), where the cluster serves it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Gateway>,
    /// Most sequences with the workers at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_sequences: Option<u32>,
    /// Most sequences that wait for a turn; more are answered 429.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_waiting: Option<u32>,
    /// For requests that bring no deadline of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub request_timeout_seconds: Option<u32>,
    /// How often a better placement of experts is looked for; 0: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balance_interval_seconds: Option<u32>,
    #[serde(default)]
    pub pod: PodOverrides,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RouterService {
    /// ClusterIP, NodePort or LoadBalancer. Default: ClusterIP.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self in ['ClusterIP', 'NodePort', 'LoadBalancer']").message("type is ClusterIP, NodePort or LoadBalancer"))]
    pub type_: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tls {
    /// A Secret of type kubernetes.io/tls. A renewed certificate is taken without a restart.
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Auth {
    /// A Secret whose values are API keys, one a line; its keys name who they belong to. Changes are
    /// taken without a restart.
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("!has(self.grpcHostnames) || size(self.grpcHostnames) == 0 || (has(self.hostnames) && size(self.hostnames) > 0 && self.grpcHostnames.all(name, !(name in self.hostnames)))")
    .message("grpcHostnames needs hostnames, and other names than those: a hostname is either an HTTPRoute's or a GRPCRoute's"))]
pub struct Gateway {
    #[schemars(length(min = 1, max = 8))]
    pub parents: Vec<ParentGateway>,
    /// Of the HTTP API. Default: those of the listeners.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub hostnames: Vec<String>,
    /// Of the gRPC APIs, which get a route only if there are any. A hostname of a listener is either an
    /// HTTPRoute's or a GRPCRoute's, so these are others than `hostnames`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub grpc_hostnames: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ParentGateway {
    pub name: String,
    /// Default: the ModelDeployment's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The listener. Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
}

/// Workers of one role.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("!has(self.redundantExperts) || self.redundantExperts == 0 || (has(self.ranks) && self.ranks > 1)")
    .message("redundantExperts needs ranks of at least 2: a single rank holds every expert already"))]
pub struct PoolSpec {
    /// Groups. Left out: 1 at first, and then whatever the WorkerPool is scaled to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10000))]
    pub replicas: Option<i32>,
    /// Ranks of a group, each a pod with a device, which share the experts. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub ranks: Option<i32>,
    /// Replicas of experts in each layer of a group, besides one of each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub redundant_experts: Option<u32>,
    #[serde(default)]
    pub device: Device,
    /// Of each rank's container. A CUDA rank gets one `nvidia.com/gpu` unless this says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(transform = super::without_descriptions)]
    pub resources: Option<ResourceRequirements>,
    #[serde(default)]
    pub engine: EngineSpec,
    #[serde(default)]
    pub topology: Topology,
    /// Whether the pods of a group are scheduled together or not at all, where the cluster can.
    /// Default: true if there is more than one rank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gang: Option<bool>,
    #[serde(default)]
    pub pod: PodOverrides,
}

/// How pages get from prefill to decode workers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Transfer {
    #[serde(default)]
    pub transport: TransferTransport,
    /// Network devices for NIXL, such as mlx5_0. Default: what UCX finds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<String>,
    /// Added to the limits of each worker's container, such as `rdma/hca: 1`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rdma_resources: BTreeMap<String, i32>,
    /// Network attachments (Multus), the value of the annotation k8s.v1.cni.cncf.io/networks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub networks: Option<String>,
}

#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
// No shared memory: pods have network namespaces of their own, and so do the sockets through which
// workers hand each other memory.
pub enum TransferTransport {
    /// NIXL over RDMA where the pods have what it needs (`rdmaResources`), otherwise TCP.
    #[default]
    Auto,
    Tcp,
    /// NIXL over whatever network it finds.
    Nixl,
}

/// How one revision takes over from another. Counted in pairs: the share of the prefill pool that
/// goes with one group of the decode pool (or the other way round, if there are more prefill groups).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rollout {
    /// Pairs, or percent of the pairs, that may exist beyond what is wanted. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("type(self) == int ? self >= 0 : self.matches('^[0-9]+%$')").message("maxSurge is a number or a percentage such as 25%"))]
    pub max_surge: Option<IntOrString>,
    /// Pairs, or percent of the pairs, that may be missing from what is wanted. Default: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("type(self) == int ? self >= 0 : self.matches('^[0-9]+%$')").message("maxUnavailable is a number or a percentage such as 25%"))]
    pub max_unavailable: Option<IntOrString>,
    /// A rollout that gets no further for so long is reported as stuck. Default: 600.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub progress_deadline_seconds: Option<u32>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Drain {
    /// How long running requests may take once a worker is told to stop; after that they go on
    /// elsewhere. Default: 300.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 86400))]
    pub deadline_seconds: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Etcd {
    /// `host:port` each.
    #[schemars(length(min = 1, max = 16))]
    pub endpoints: Vec<String>,
}

/// Objects of the Prometheus operator, where the cluster serves them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Monitoring {
    /// A PodMonitor for routers and workers.
    #[serde(default)]
    pub pod_monitor: bool,
    /// Has Prometheus keep native histograms beside the classic ones. For Prometheus 3.8 or newer under
    /// Prometheus operator 0.88 or newer.
    #[serde(default)]
    pub native_histograms: bool,
    /// Labels on it, by which a Prometheus chooses it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}
