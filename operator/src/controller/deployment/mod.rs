//! ModelDeployments: what is there, what is meant, the next steps from the one to the other, and what
//! that looks like from outside.
//!
//! The status is written before the steps that it leads to. What it remembers, how many groups a role
//! is to have and which revisions have served, is thereby never younger than what was done on it.

mod act;
mod conditions;
mod going;
mod judged;
mod memory;
mod news;
mod status;
mod targets;
mod there;

use k8s_openapi::jiff::Timestamp;

pub use memory::Memory;
#[cfg(test)]
pub use there::PoolFacts;
pub use there::There;

use super::{Context, Next};
use crate::api::{DeploymentStatus, ModelDeployment, labels};
use crate::build::{self, Resolved};
use crate::cache::Key;
use crate::error::Error;
use crate::etcd::CAN_FORGET;
use crate::rollout::{self, Plan, Wanted};
use there::Scaled;

pub async fn reconcile(context: &Context, key: &Key) -> Next {
    let Some(root) = context.cache.deployments.get(&key.namespace, &key.name) else {
        context.memory.forget(key);
        return Ok(None);
    };
    let deployment = &root.0;
    let previous = context.memory.status(key, deployment);
    if deployment.metadata.deletion_timestamp.is_some() {
        return going::go(context, key, deployment, &previous).await;
    }
    match build::resolve(deployment, &context.defaults) {
        Ok(resolved) => carry_out(context, key, deployment, &resolved, &previous).await,
        Err(invalid) => {
            let there = There::look(context, key, deployment);
            let next = status::invalid(deployment, &previous, &invalid, &there, Timestamp::now());
            tell(context, key, deployment, &previous, &next).await?;
            Ok(None)
        }
    }
}

async fn carry_out(
    context: &Context,
    key: &Key,
    deployment: &ModelDeployment,
    resolved: &Resolved,
    previous: &DeploymentStatus,
) -> Next {
    let applier = &context.applier;
    let forget = resolved.etcd.is_some() && CAN_FORGET;
    applier
        .finalizer(deployment, labels::FINALIZER, forget)
        .await?;
    let mut applied = Ok(());
    let scaled = Scaled::look(context, key);
    let there = There::look(context, key, deployment);
    if !there.predecessor {
        // Routers without workers are not ready, and the request that is to wake them must reach one.
        let wakes = scaled.to_zero && there.router.ready == 0;
        applied = act::apply_router(context, resolved, wakes).await;
    }
    let there = There::look(context, key, deployment);
    let wanted = targets::wanted(resolved, &there, previous, scaled.asked);
    let plan = plan(resolved, &wanted, &there, previous, applied.is_ok());
    let say = |trouble: Option<&Error>| {
        let seen = status::Seen {
            deployment,
            resolved,
            there: &there,
            wanted: &wanted,
            plan: &plan,
            trouble: trouble.filter(|e| !e.is_transient()).map(Error::to_string),
        };
        status::status(previous, &seen, Timestamp::now())
    };
    let next = say(applied.as_ref().err());
    tell(context, key, deployment, previous, &next).await?;
    if there.predecessor {
        return Ok(Some(conditions::LOOK_AGAIN));
    }
    let acted = act::take(context, deployment, resolved, &there, &plan, previous).await;
    if acted.as_ref().is_err_and(|error| !error.is_transient()) && applied.is_ok() {
        let after = say(acted.as_ref().err());
        tell(context, key, deployment, &next, &after).await?;
    }
    applied.and(acted)?;
    Ok(conditions::deadline(resolved, &next, Timestamp::now()))
}

fn plan(
    resolved: &Resolved,
    wanted: &Wanted,
    there: &There,
    previous: &DeploymentStatus,
    router_applied: bool,
) -> Plan {
    let strategy = targets::strategy(resolved, wanted);
    let served = |revision: &str| {
        // One that is not known yet is given the benefit of the doubt.
        let known = previous.revisions.get(revision);
        known.is_none_or(|known| known.served)
    };
    let router_done = router_applied && there.router.done;
    rollout::plan(wanted, strategy, router_done, &there.revisions(served))
}

/// Writes a status, remembers it, and says what is new in it.
async fn tell(
    context: &Context,
    key: &Key,
    deployment: &ModelDeployment,
    previous: &DeploymentStatus,
    next: &DeploymentStatus,
) -> Result<(), Error> {
    context
        .applier
        .status(deployment, deployment.status.as_ref(), next)
        .await?;
    context.memory.remember(key, deployment, next);
    let news = news::between(previous, next);
    context.events.tell(deployment, news).await;
    Ok(())
}
