//! The write side of a look: router objects, then the steps of a plan.

use super::super::{Cascade, Context};
use super::there::There;
use crate::api::{DeploymentStatus, ModelDeployment, Role, labels};
use crate::build::kinds::WORKER_POOL;
use crate::build::{self, Resolved, names};
use crate::error::Error;
use crate::rollout::{Plan, Step};

/// Everything but pools; and what is not wanted any more of it goes.
pub async fn apply_router(
    context: &Context,
    resolved: &Resolved,
    wakes: bool,
) -> Result<(), Error> {
    let objects = build::router::objects(resolved, wakes);
    let applied = context.applier.apply_all(&objects).await;
    let of_router = |meta: &crate::cache::Meta| meta.label(labels::ROLE) == Some("router");
    let pruned = context
        .applier
        .prune(
            &build::router::KINDS,
            &resolved.namespace,
            &resolved.name,
            of_router,
            &objects,
        )
        .await;
    applied.and(pruned)
}

/// Puts right what somebody changed of the wanted revision's pools, and takes the steps of a plan, in
/// order; after one that fails, none.
pub async fn take(
    context: &Context,
    deployment: &ModelDeployment,
    resolved: &Resolved,
    there: &There,
    plan: &Plan,
    previous: &DeploymentStatus,
) -> Result<(), Error> {
    for role in Role::ALL {
        let pool = there.pool(&resolved.revision, role);
        if pool.is_some_and(|pool| !pool.pool.deleting) {
            apply_pool(context, resolved, role).await?;
        }
    }
    for step in &plan.steps {
        match step {
            Step::Create { role, .. } => apply_pool(context, resolved, *role).await?,
            Step::Scale {
                revision,
                role,
                from,
                to,
            } => {
                let name = names::pool(&resolved.name, revision, *role);
                scale(context, resolved, &name, *to).await?;
                tracing::info!(pool = name, from, to, "scaled");
                if put_back(deployment, there, previous, resolved, (revision, *role)) {
                    let note = format!(
                        "{name} was scaled to {from}; {to} is what spec.{role}.replicas says. Change it there, or leave it out to scale the pool"
                    );
                    let events = &context.events;
                    events
                        .normal(deployment, "ScalePutBack", "Scale", note)
                        .await;
                }
            }
            Step::Delete { revision, role } => {
                let name = names::pool(&resolved.name, revision, *role);
                if let Some(pool) = context.cache.pools.get(&resolved.namespace, &name) {
                    let applier = &context.applier;
                    applier
                        .delete(&WORKER_POOL, &pool.meta, Cascade::Background)
                        .await?;
                    tracing::info!(pool = name, "deleted, as nothing of it is left");
                }
            }
        }
    }
    Ok(())
}

async fn apply_pool(context: &Context, resolved: &Resolved, role: Role) -> Result<(), Error> {
    match build::pool::pool(resolved, role, None) {
        Some(child) => context.applier.apply(&child).await.map(drop),
        None => Ok(()),
    }
}

async fn scale(
    context: &Context,
    resolved: &Resolved,
    name: &str,
    replicas: u32,
) -> Result<(), Error> {
    // Gone meanwhile: the next look is on its way.
    let Some(pool) = context.cache.pools.get(&resolved.namespace, name) else {
        return Ok(());
    };
    let replicas = i32::try_from(replicas).unwrap_or(i32::MAX);
    context.applier.scale(&pool.object, replicas).await
}

/// Somebody scaled a pool whose number the ModelDeployment says: nothing else changed, and the pool had
/// that number before.
fn put_back(
    deployment: &ModelDeployment,
    there: &There,
    previous: &DeploymentStatus,
    resolved: &Resolved,
    (revision, role): (&str, Role),
) -> bool {
    let pools = there.pools.iter();
    let declared = resolved.pool(role).and_then(|shape| shape.replicas);
    let remembered = match role {
        Role::Prefill => previous.prefill.wanted,
        Role::Decode => previous.decode.wanted,
    };
    let fresh = there.pool(revision, role).is_some_and(|pool| pool.fresh);
    pools.map(|pool| &pool.revision).all(|r| r == revision)
        && revision == resolved.revision
        && !fresh
        && declared == Some(remembered)
        && previous.observed_generation == deployment.metadata.generation
}
