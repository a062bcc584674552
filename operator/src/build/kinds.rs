//! The kinds of objects that the operator makes.

use kube::api::ApiResource;
use kube::core::GroupVersionKind;

/// One of [`KINDS`].
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Kind {
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    /// Not every cluster serves it.
    pub optional: bool,
}

const fn kind(
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    optional: bool,
) -> Kind {
    Kind {
        group,
        version,
        kind,
        plural,
        optional,
    }
}

pub static WORKER_POOL: Kind = kind(
    crate::api::GROUP,
    crate::api::VERSION,
    "WorkerPool",
    "workerpools",
    false,
);
pub static DEPLOYMENT: Kind = kind("apps", "v1", "Deployment", "deployments", false);
pub static STATEFUL_SET: Kind = kind("apps", "v1", "StatefulSet", "statefulsets", false);
pub static SERVICE: Kind = kind("", "v1", "Service", "services", false);
pub static DISRUPTION_BUDGET: Kind = kind(
    "policy",
    "v1",
    "PodDisruptionBudget",
    "poddisruptionbudgets",
    false,
);
pub static NETWORK_POLICY: Kind = kind(
    "networking.k8s.io",
    "v1",
    "NetworkPolicy",
    "networkpolicies",
    false,
);
pub static POD_GROUP: Kind = kind(
    "scheduling.k8s.io",
    "v1beta1",
    "PodGroup",
    "podgroups",
    true,
);
pub static POD_MONITOR: Kind = kind(
    "monitoring.coreos.com",
    "v1",
    "PodMonitor",
    "podmonitors",
    true,
);
pub static HTTP_ROUTE: Kind = kind(
    "gateway.networking.k8s.io",
    "v1",
    "HTTPRoute",
    "httproutes",
    true,
);
pub static GRPC_ROUTE: Kind = kind(
    "gateway.networking.k8s.io",
    "v1",
    "GRPCRoute",
    "grpcroutes",
    true,
);

pub static KINDS: [&Kind; 10] = [
    &WORKER_POOL,
    &DEPLOYMENT,
    &STATEFUL_SET,
    &SERVICE,
    &DISRUPTION_BUDGET,
    &NETWORK_POLICY,
    &POD_GROUP,
    &POD_MONITOR,
    &HTTP_ROUTE,
    &GRPC_ROUTE,
];

impl Kind {
    /// By `apiVersion` and `kind` of an object.
    pub fn find(api_version: &str, kind: &str) -> Option<&'static Kind> {
        KINDS
            .into_iter()
            .find(|known| known.kind == kind && known.api_version() == api_version)
    }

    pub fn api_version(&self) -> String {
        match self.group {
            "" => self.version.to_owned(),
            group => format!("{group}/{}", self.version),
        }
    }

    pub fn resource(&self) -> ApiResource {
        let kind = GroupVersionKind::gvk(self.group, self.version, self.kind);
        ApiResource::from_gvk_with_plural(&kind, self.plural)
    }

    /// As kubectl takes it: `statefulsets.apps`.
    pub fn full_name(&self) -> String {
        match self.group {
            "" => self.plural.to_owned(),
            group => format!("{}.{group}", self.plural),
        }
    }
}
