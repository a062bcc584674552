//! Which model is served, and where pods find it.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// The model and the name under which clients ask for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Model {
    /// Where the checkpoint (a Hugging Face folder) comes from.
    pub source: ModelSource,
    /// The names that clients may ask for; the first is the one that answers carry. Default: the
    /// name of the ModelDeployment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(validation = Rule::new("self.all(name, size(name) > 0)").message("a served name is empty"))]
    #[schemars(length(max = 16))]
    pub served_names: Vec<String>,
    /// Longest prompt plus output in tokens. Default: what the checkpoint can do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_model_len: Option<u32>,
    /// Where downloads (`http`, `s3`) are kept. Default: an emptyDir, downloaded anew for each pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<Cache>,
    /// Changed to roll out a checkpoint that changed in place, under the same path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub revision: Option<String>,
}

/// Exactly one of these.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new(
    "[has(self.builtin), has(self.persistentVolumeClaim), has(self.hostPath), has(self.image), has(self.http), has(self.s3)].filter(x, x).size() == 1"
).message("set exactly one of builtin, persistentVolumeClaim, hostPath, image, http and s3"))]
pub struct ModelSource {
    /// A model that is part of the binary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub builtin: Option<Builtin>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<Claim>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_path: Option<HostPath>,
    /// An OCI image or artifact, mounted as an image volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Image>,
    /// A folder on an HTTP server, downloaded before the worker starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<Http>,
    /// A folder in a bucket, downloaded before the worker starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3: Option<S3>,
}

/// Models that the binary carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum Builtin {
    /// 23 million parameters, does sums: for trying things out.
    #[serde(rename = "tiny-r1")]
    TinyR1,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Claim {
    #[schemars(length(min = 1, max = 253))]
    pub claim_name: String,
    /// The checkpoint's folder within the volume. Default: the volume itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("!self.startsWith('/') && !self.split('/').exists(p, p == '..')").message("path is relative to the volume, without .."))]
    #[schemars(length(max = 1024))]
    pub path: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HostPath {
    /// A folder that is there on every node. User 65532 must be able to read it, and to write to it if
    /// downloads are kept there. Restricted Pod Security does not allow pods to use host paths: the
    /// namespace must be privileged for it.
    #[x_kube(validation = Rule::new("self.startsWith('/')").message("a host path begins with /"))]
    #[schemars(length(min = 1, max = 1024))]
    pub path: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Image {
    #[schemars(length(min = 1, max = 1024))]
    pub reference: String,
    /// Always, IfNotPresent or Never. Default: as for containers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_policy: Option<String>,
    /// The checkpoint's folder within the image. Default: its root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("!self.startsWith('/') && !self.split('/').exists(p, p == '..')").message("path is relative to the image, without .."))]
    #[schemars(length(max = 1024))]
    pub path: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Http {
    /// The folder's address. It must contain a file SHA256SUMS (as sha256sum prints it) that names
    /// every file of the checkpoint.
    #[x_kube(validation = Rule::new("self.startsWith('http://') || self.startsWith('https://')").message("url begins with http:// or https://"))]
    #[schemars(length(max = 2048))]
    pub url: String,
    /// `sha256:` and the checksum of SHA256SUMS itself.
    #[schemars(regex(pattern = r"^sha256:[0-9a-f]{64}$"))]
    pub checksum: String,
    /// A Secret with a key `token`, sent as a bearer token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_name: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct S3 {
    /// `s3://bucket/prefix`. It must contain a file SHA256SUMS (as sha256sum prints it) that names
    /// every file of the checkpoint.
    #[schemars(regex(pattern = r"^s3://[^/]+/.+$"), length(max = 2048))]
    pub url: String,
    /// `sha256:` and the checksum of SHA256SUMS itself.
    #[schemars(regex(pattern = r"^sha256:[0-9a-f]{64}$"))]
    pub checksum: String,
    /// For object stores that are not Amazon's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// A Secret with keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. Default: the pod's own
    /// identity, or none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_name: Option<String>,
}

/// At most one of these.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new(
    "[has(self.persistentVolumeClaim), has(self.hostPath)].filter(x, x).size() <= 1"
).message("set at most one of persistentVolumeClaim and hostPath"))]
pub struct Cache {
    /// Shared by all pods, which must be able to write to it (ReadWriteMany, or one node).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<Claim>,
    /// Kept on each node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_path: Option<HostPath>,
    /// Of the emptyDir, if it is neither of the above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_limit: Option<Quantity>,
}
