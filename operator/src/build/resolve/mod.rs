//! From what people wrote to what is meant: defaults filled in, and everything checked that CEL rules
//! cannot say.

mod checks;
mod model;
mod overrides;
mod pools;
mod quantity;
mod router;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt as _;

use self::checks::Report;
use super::{meta, names, revision};
use crate::api::{Model, ModelDeployment, Monitoring, Role, Rollout, RouterSpec, WorkerSpec};

/// What specs may leave out and the operator knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defaults {
    pub image: String,
    /// `host:port` each.
    pub etcd: Vec<String>,
    pub operator_namespace: String,
}

/// A field that cannot be carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct Invalid {
    /// As in YAML: `spec.decode.engine.kvPages`.
    pub field: String,
    /// What is wrong, and what to write instead.
    pub message: String,
}

/// A ModelDeployment that can be carried out.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    pub name: String,
    pub namespace: String,
    pub owner: OwnerReference,
    pub revision: String,
    pub image: String,
    pub image_pull_policy: Option<String>,
    pub image_pull_secrets: Vec<String>,
    /// With at least one served name.
    pub model: Model,
    pub router: RouterSpec,
    /// `None`: decode workers compute prompts themselves.
    pub prefill: Option<PoolShape>,
    pub decode: PoolShape,
    /// `None`: routers keep epochs in memory.
    pub etcd: Option<EtcdPlace>,
    pub drain_seconds: u32,
    pub rollout: Rollout,
    pub monitoring: Monitoring,
    pub network_policy: bool,
    pub operator_namespace: String,
}

/// The workers of one role.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolShape {
    pub worker: WorkerSpec,
    /// Groups. `None`: whoever scales the pool decides.
    pub replicas: Option<i32>,
}

/// Where a deployment's epochs are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdPlace {
    /// `host:port` each; never empty.
    pub endpoints: Vec<String>,
    pub prefix: String,
}

impl Resolved {
    pub fn pool(&self, role: Role) -> Option<&PoolShape> {
        match role {
            Role::Prefill => self.prefill.as_ref(),
            Role::Decode => Some(&self.decode),
        }
    }

    pub fn router_replicas(&self) -> i32 {
        self.router.replicas.unwrap_or(1)
    }

    /// What answers call the model.
    pub fn served_name(&self) -> &str {
        &self.model.served_names[0]
    }
}

/// What `deployment` means.
///
/// # Errors
/// Every field that stands in the way, in the order of the spec.
pub fn resolve(
    deployment: &ModelDeployment,
    defaults: &Defaults,
) -> Result<Resolved, Vec<Invalid>> {
    let spec = &deployment.spec;
    let (name, namespace) = (
        deployment.name_any(),
        deployment.namespace().unwrap_or_default(),
    );
    let mut report = Report::default();
    checks::name(&mut report, &name);
    checks::images(&mut report, spec);
    let model = model::resolve(&mut report, &spec.model, &name);
    router::check(&mut report, spec);
    let image = spec.image.clone().unwrap_or_else(|| defaults.image.clone());
    let mut shape = |role, pool| pools::resolve(&mut report, spec, role, pool, &image, &model);
    let prefill = spec.prefill.as_ref().map(|pool| shape(Role::Prefill, pool));
    let decode = shape(Role::Decode, &spec.decode);
    pools::check_together(&mut report, spec);
    checks::rollout(&mut report, &spec.rollout);
    let endpoints = match &spec.etcd {
        Some(etcd) => &etcd.endpoints,
        None => &defaults.etcd,
    };
    checks::etcd(&mut report, spec, endpoints);
    let etcd = (!endpoints.is_empty()).then(|| EtcdPlace {
        endpoints: endpoints.clone(),
        prefix: names::etcd_prefix(&name, &namespace),
    });
    report.done()?;
    Ok(Resolved {
        revision: revision(prefill.as_ref().map(|pool| &pool.worker), &decode.worker),
        owner: meta::owner(deployment),
        name,
        namespace,
        image,
        image_pull_policy: spec.image_pull_policy.clone(),
        image_pull_secrets: spec.image_pull_secrets.clone(),
        model,
        router: spec.router.clone(),
        prefill,
        decode,
        etcd,
        drain_seconds: pools::drain_seconds(spec),
        rollout: spec.rollout.clone(),
        monitoring: spec.monitoring.clone(),
        network_policy: spec.network_policy.unwrap_or(true),
        operator_namespace: defaults.operator_namespace.clone(),
    })
}
