//! PoolAutoscalers: what routers saw, what the decision is, and the WorkerPools scaled to it.
//!
//! The decision itself is `millrace_autoscaler`'s, which knows neither Kubernetes nor clocks. Pools are
//! scaled as anybody would scale them, through `/scale`, as long as there is one of a role. During a
//! rollout there are two, whose replicas the rollout sets: then the status alone says how many groups
//! are wanted, and the ModelDeployment's controller reads it there.

mod inputs;
mod news;
mod profile;
mod recollections;
mod status;
mod target;
mod words;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;
use millrace_autoscaler::{ByRole, Decision};

pub use recollections::Recollections;

use self::recollections::Recollection;
use self::target::{Barred, Target};
use super::deployment::There;
use super::{Context, Next};
use crate::api::{AutoscalerStatus, PoolAutoscaler, Role};
use crate::build::{self, Resolved, names};
use crate::cache::{Cache, Cached as _, Key, Scaler};
use crate::error::Error;

/// As often as routers say something. A look costs no request, unless the profile is in a ConfigMap.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Changes come in crowds, and a decision takes samples that are apart.
const LOOK_AT_MOST_EVERY: Duration = Duration::from_secs(1);

pub async fn reconcile(context: &Context, key: &Key) -> Next {
    let found = context.cache.autoscalers.get(&key.namespace, &key.name);
    let Some(found) = found.filter(|found| found.metadata.deletion_timestamp.is_none()) else {
        // Groups stay as they are.
        context.recollections.forget(key);
        context.metrics.autoscaler.forget(key);
        return Ok(None);
    };
    let now = context.recollections.now();
    let mut recollection = context.recollections.take(key, &found);
    let since = recollection.looked.map(|looked| now.saturating_sub(looked));
    if let Some(since) = since.filter(|since| *since < LOOK_AT_MOST_EVERY) {
        context.recollections.keep(key, recollection);
        return Ok(Some(LOOK_AT_MOST_EVERY - since));
    }
    recollection.looked = Some(now);
    let looked = look(context, key, &found, &mut recollection).await;
    context.recollections.keep(key, recollection);
    looked.map(Some)
}

/// The one that scales a ModelDeployment, of those that name it: the oldest.
pub fn acting(cache: &Cache, target: &Key) -> Option<std::sync::Arc<Scaler>> {
    let all = cache.autoscalers.of(&target.namespace, &target.name);
    let staying = all
        .into_iter()
        .filter(|one| one.metadata.deletion_timestamp.is_none());
    staying.min_by_key(|one| (one.creation_timestamp().map(|at| at.0), one.name_any()))
}

/// When to look again.
async fn look(
    context: &Context,
    key: &Key,
    autoscaler: &PoolAutoscaler,
    recollection: &mut Recollection,
) -> Result<Duration, Error> {
    let name = &autoscaler.spec.target.name;
    let (said, now) = (recollection.said.clone(), Timestamp::now());
    let source = &autoscaler.spec.profile;
    let profile = profile::profile(context, key, source, recollection).await?;
    let decided = find(context, key, autoscaler).and_then(|(resolved, target, uid)| {
        let policy = inputs::policy(&autoscaler.spec, &profile?, &target);
        let traffic = context.fleet.traffic(&key.namespace, name);
        let view = context.fleet.view(&key.namespace, name);
        let unix = SystemTime::now().duration_since(UNIX_EPOCH);
        let observation = inputs::observation(
            &target,
            &traffic,
            view.as_ref(),
            context.recollections.now(),
            unix.unwrap_or_default(),
        );
        let memory = recollection.of(&uid);
        let decision = millrace_autoscaler::decide(&policy, &observation, memory)?;
        let seen = status::Seen {
            spec: &autoscaler.spec,
            target: &target,
            decision: &decision,
            traffic: &traffic,
        };
        let next = status::status(&said, autoscaler.metadata.generation, &seen, now);
        context.metrics.autoscaler.decided(key, &next);
        Ok((resolved, target, decision, next))
    });
    match decided {
        Ok((resolved, target, decision, next)) => {
            tell(context, autoscaler, recollection, next).await?;
            act(context, autoscaler, &resolved, &target, &decision).await?;
            Ok(LOOK_EVERY)
        }
        Err(barred) => {
            // Nobody was asked meanwhile, so that what was seen says nothing about what is.
            recollection.start_anew();
            context.metrics.autoscaler.forget(key);
            let next = status::barred(&said, autoscaler.metadata.generation, &barred, now);
            tell(context, autoscaler, recollection, next).await?;
            Ok(LOOK_EVERY)
        }
    }
}

/// What is to be scaled, and its uid.
fn find(
    context: &Context,
    key: &Key,
    autoscaler: &PoolAutoscaler,
) -> Result<(Resolved, Target, String), Barred> {
    let name = &autoscaler.spec.target.name;
    let target = Key::new(&key.namespace, name);
    let acting = acting(&context.cache, &target).filter(|acting| acting.key() != *key);
    if let Some(acting) = acting {
        return Err(Barred::OlderActs(acting.name_any()));
    }
    let found = context.cache.deployments.get(&key.namespace, name);
    let deployment = &found.ok_or_else(|| Barred::Missing(name.clone()))?.0;
    if deployment.metadata.deletion_timestamp.is_some() {
        return Err(Barred::Deleting(name.clone()));
    }
    let resolved = build::resolve(deployment, &context.defaults).map_err(|_| Barred::Invalid)?;
    let there = There::look(context, &target, deployment);
    let status = context.memory.status(&target, deployment);
    let target = target::target(&autoscaler.spec, &resolved, &there, &status)?;
    let uid = deployment.uid().unwrap_or_default();
    Ok((resolved, target, uid))
}

/// Writes the status if it says something new, or has not been written for a while; and says what is
/// new in it.
async fn tell(
    context: &Context,
    autoscaler: &PoolAutoscaler,
    recollection: &mut Recollection,
    next: AutoscalerStatus,
) -> Result<(), Error> {
    if !status::worth_writing(&recollection.said, &next) {
        return Ok(());
    }
    let was = autoscaler.status.as_ref();
    context.applier.status(autoscaler, was, &next).await?;
    let news = news::between(&recollection.said, &next);
    context.events.tell(autoscaler, news).await;
    recollection.said = next;
    Ok(())
}

/// Scales the pools. During a rollout the status, which was written, is all that there is to do.
async fn act(
    context: &Context,
    autoscaler: &PoolAutoscaler,
    resolved: &Resolved,
    target: &Target,
    decision: &Decision,
) -> Result<(), Error> {
    if target.rollout {
        return Ok(());
    }
    let desired: &ByRole<u32> = &decision.desired;
    for role in Role::ALL {
        let name = names::pool(&resolved.name, &resolved.revision, role);
        let Some(pool) = context.cache.pools.get(&resolved.namespace, &name) else {
            continue;
        };
        let replicas = i32::try_from(*desired.of(inputs::role(role))).unwrap_or(i32::MAX);
        if pool.spec.replicas == replicas {
            continue;
        }
        let from = pool.spec.replicas;
        context.applier.scale_pool(&pool.object, replicas).await?;
        tracing::info!(
            pool = name,
            from,
            to = replicas,
            by = autoscaler.name_any(),
            "scaled"
        );
    }
    Ok(())
}
