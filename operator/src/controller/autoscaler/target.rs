//! What a PoolAutoscaler is to scale, and whether it may. Pure.

use millrace_autoscaler::ByRole;
use millrace_autoscaler::observation::Pool;

use crate::api::{DeploymentStatus, PoolAutoscalerSpec, PoolCounts, Role};
use crate::build::{Resolved, group};
use crate::controller::deployment::There;

/// A ModelDeployment that can be scaled.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    pub pools: ByRole<Pool>,
    pub shapes: ByRole<Shape>,
    pub local_prefill_tokens: u32,
    /// There are pools of other revisions, whose replicas the rollout sets.
    pub rollout: bool,
}

/// What a group is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shape {
    pub ranks: u32,
    pub gpus: u32,
}

/// Why nothing is scaled, and what to do about it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Barred {
    #[error(
        "there is no ModelDeployment {0} in this namespace; create it, or change spec.target.name"
    )]
    Missing(String),
    #[error("the ModelDeployment {0} is being deleted")]
    Deleting(String),
    #[error(
        "PoolAutoscaler {0} scales this ModelDeployment already, and is older; delete one of the two"
    )]
    OlderActs(String),
    #[error("the ModelDeployment's spec is invalid; see its condition Valid")]
    Invalid,
    #[error(
        "spec.{0}.replicas of the ModelDeployment says how many groups there are; leave it out there"
    )]
    Declared(Role),
    #[error("the ModelDeployment has no prefill workers; remove spec.prefill")]
    NoPrefill,
    #[error("the ModelDeployment has prefill workers; set spec.prefill.maxReplicas")]
    Prefill,
    #[error("the ModelDeployment's pools are being made")]
    NoPools,
    /// The definition does not let this happen.
    #[error(
        "spec.profile is incomplete; set configMap, or all of prefill, decode, maxRunning and kvTokens"
    )]
    Profile,
    #[error(
        "there is no ConfigMap {name} in this namespace, which spec.profile.configMap names; make it of what `millrace bench profile` printed: kubectl create configmap {name} --from-file={key}=FILE"
    )]
    NoConfigMap { name: String, key: String },
    #[error(
        "the ConfigMap {name} has no key {key}; put what `millrace bench profile` printed there, or change spec.profile.configMap.key"
    )]
    NoKey { name: String, key: String },
    #[error(
        "{key} of the ConfigMap {name} is no profile: {error}; replace it by what `millrace bench profile` prints"
    )]
    NoProfile {
        name: String,
        key: String,
        error: String,
    },
    /// The policy contradicts itself.
    #[error("{0}")]
    Policy(#[from] millrace_autoscaler::PolicyError),
}

impl Barred {
    /// Of the condition.
    pub fn reason(&self) -> &'static str {
        match self {
            Barred::Missing(_) => "TargetMissing",
            Barred::Deleting(_) => "TargetDeleting",
            Barred::OlderActs(_) => "OlderActs",
            Barred::Invalid => "TargetInvalid",
            Barred::Declared(_) => "ReplicasDeclared",
            Barred::NoPrefill | Barred::Prefill => "PoolsDiffer",
            Barred::NoPools => "TargetStarting",
            Barred::NoConfigMap { .. } | Barred::NoKey { .. } => "ProfileMissing",
            Barred::NoProfile { .. } => "ProfileInvalid",
            Barred::Policy(_) | Barred::Profile => "InvalidSpec",
        }
    }
}

/// The engine's own, where the spec does not say it.
const LOCAL_PREFILL_TOKENS: u32 = 16;

/// # Errors
/// Why it must not be scaled.
pub fn target(
    spec: &PoolAutoscalerSpec,
    resolved: &Resolved,
    there: &There,
    status: &DeploymentStatus,
) -> Result<Target, Barred> {
    match (&spec.prefill, &resolved.prefill) {
        (Some(_), None) => return Err(Barred::NoPrefill),
        (None, Some(_)) => return Err(Barred::Prefill),
        _ => {}
    }
    for role in Role::ALL {
        let shape = resolved.pool(role);
        if shape.is_some_and(|shape| shape.replicas.is_some()) {
            return Err(Barred::Declared(role));
        }
    }
    let rollout = there.pools.iter().any(|p| p.revision != resolved.revision);
    let pool = |role, counts: &PoolCounts| match (resolved.pool(role), rollout) {
        (None, _) => Ok(Pool::default()),
        (Some(_), true) => Ok(of_revisions(there, role, counts)),
        (Some(_), false) => alone(there, &resolved.revision, role).ok_or(Barred::NoPools),
    };
    let engine = &resolved.decode.worker.engine;
    Ok(Target {
        pools: ByRole {
            prefill: pool(Role::Prefill, &status.prefill)?,
            decode: pool(Role::Decode, &status.decode)?,
        },
        shapes: ByRole {
            prefill: shape(resolved, Role::Prefill),
            decode: shape(resolved, Role::Decode),
        },
        local_prefill_tokens: engine.local_prefill_tokens.unwrap_or(LOCAL_PREFILL_TOKENS),
        rollout,
    })
}

/// The one pool of a role, once somebody has said how many groups it has.
fn alone(there: &There, revision: &str, role: Role) -> Option<Pool> {
    let found = there.pool(revision, role)?;
    (!found.fresh && !found.pool.deleting).then_some(Pool {
        wanted: found.pool.replicas,
        ready: found.pool.ready,
        existing: found.pool.groups,
    })
}

/// All pools of a role. How many groups they should have together is what the ModelDeployment's status
/// says: the pools' own numbers have the rollout's surge in them.
fn of_revisions(there: &There, role: Role, counts: &PoolCounts) -> Pool {
    let pools = there.pools.iter().filter(|pool| pool.role == role);
    let (mut ready, mut existing) = (0, 0);
    for found in pools {
        ready += found.pool.ready.min(found.pool.replicas);
        existing += found.pool.groups;
    }
    Pool {
        wanted: u32::try_from(counts.wanted).unwrap_or(0),
        ready,
        existing,
    }
}

fn shape(resolved: &Resolved, role: Role) -> Shape {
    resolved.pool(role).map_or(Shape::default(), |shape| Shape {
        ranks: u32::try_from(shape.worker.ranks).unwrap_or(1),
        gpus: group::gpus(&shape.worker),
    })
}

#[cfg(test)]
#[path = "target_tests.rs"]
pub(super) mod tests;
