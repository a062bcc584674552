//! The custom resources of `serving.millrace.dev/v1alpha1`.
//!
//! A [`ModelDeployment`] is what people write. The operator makes of it a router and, for each
//! revision, two [`WorkerPool`]s. What a pool's pods look like is said completely by its
//! [`WorkerSpec`], and a revision is a hash over the two of them: nothing else needs to be remembered.
//! A [`PoolAutoscaler`] says how many groups they have.

mod autoscaler;
mod autoscaler_status;
mod conditions;
mod deployment;
mod model;
mod pod;
mod pool;
mod status;

pub use autoscaler::{
    AutoscalerTarget, Budget, ConfigMapKey, Day, DecodeProfile, Objectives, PoolAutoscaler,
    PoolAutoscalerSpec, PrefillProfile, Profile, ProfileSource, ReplicaBounds, ScaleToZero,
    ScalingBehavior, ScalingRules, ScheduledReplicas,
};
pub use autoscaler_status::{AutoscalerStatus, Measured, ScaledPool, SeenTraffic};
pub use conditions::{Condition, set_condition};
pub use deployment::{
    Auth, Drain, Etcd, Gateway, ModelDeployment, ModelDeploymentSpec, Monitoring, ParentGateway,
    PoolSpec, Rollout, RouterService, RouterSpec, Tls, Transfer, TransferTransport,
};
pub use model::{Builtin, Cache, Claim, HostPath, Http, Image, Model, ModelSource, S3};
pub use pod::{Device, EngineSpec, KvDtype, PodOverrides, Topology};
pub use pool::{GroupStatus, Role, WorkerPool, WorkerPoolSpec, WorkerPoolStatus, WorkerSpec};
pub use status::{DeploymentStatus, Phase, PoolCounts, RevisionStatus, RouterStatus};

pub const GROUP: &str = "serving.millrace.dev";
pub const VERSION: &str = "v1alpha1";

/// Labels and names that others may rely on.
pub mod labels {
    /// The ModelDeployment that an object belongs to.
    pub const DEPLOYMENT: &str = "serving.millrace.dev/deployment";
    /// The WorkerPool that an object belongs to.
    pub const POOL: &str = "serving.millrace.dev/pool";
    /// The revision that a pool, group or pod is of.
    pub const REVISION: &str = "serving.millrace.dev/revision";
    /// `prefill`, `decode` or `router`.
    pub const ROLE: &str = "serving.millrace.dev/role";
    /// The group (a StatefulSet) that a worker's pod is a rank of.
    pub const GROUP: &str = "serving.millrace.dev/group";
    /// The readiness gate of workers: true once the routers send requests there.
    pub const ROUTABLE: &str = "serving.millrace.dev/routable";
    /// The finalizer of a ModelDeployment whose epochs are in etcd.
    pub const FINALIZER: &str = "serving.millrace.dev/epochs";
}

/// For types of Kubernetes' own within ours: what they mean is said in its documentation, and said
/// here again it would make the definitions five times as large, too large for `kubectl apply`.
fn without_descriptions(schema: &mut schemars::Schema) {
    schema.remove("description");
    schemars::transform::transform_subschemas(&mut without_descriptions, schema);
}
