//! WorkerPools: groups are made and told to go, gates open and close, and the status says it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams};
use tokio::time::Instant;

use super::apply::{Cascade, gone, only};
use super::pool_lost::Verdict;
use super::pool_plan::{Found, Plan, plan};
use super::pool_status::{GroupFacts, status};
use super::{Context, Next, pool_gate};
use crate::api::{WorkerPool, labels};
use crate::build::kinds::{POD_GROUP, STATEFUL_SET};
use crate::build::{Child, group, names};
use crate::cache::{Key, Meta, PodView};
use crate::error::Error;
use crate::fleet::{DeploymentView, SETTLES_IN};

/// What there is of a pool.
struct There {
    pods: Vec<Arc<PodView>>,
    /// StatefulSets by name.
    groups: BTreeMap<String, Meta>,
    view: Option<DeploymentView>,
}

pub async fn reconcile(context: &Context, key: &Key) -> Next {
    let Some(pool) = context.cache.pools.get(&key.namespace, &key.name) else {
        return Ok(None);
    };
    let there = There::look(context, &pool.object, key);
    // What it owns goes with it, but for what a lost node keeps.
    if pool.meta.deleting {
        return take_lost_away(context, &pool.object, &there).await;
    }
    let facts = there.facts(context, key);
    let found: Vec<Found> = facts
        .iter()
        .filter_map(|group| found(&key.name, group))
        .collect();
    let plan = plan(&found, pool.spec.replicas);

    let gates = open_gates(context, &there).await;
    let lost = take_lost_away(context, &pool.object, &there).await;
    let applied = apply(context, &pool.object, &there, &plan).await;

    let groups = after(&key.name, facts, &plan);
    let trouble = applied.as_ref().err().filter(|error| !error.is_transient());
    let now = status(
        &pool.object,
        &groups,
        there.view.as_ref(),
        trouble.map(Error::to_string),
        Timestamp::now(),
    );
    let written = context
        .applier
        .status(&pool.object, pool.object.status.as_ref(), &now)
        .await;
    gates.and(applied).and(written)?;
    let unsettled = there.view.as_ref().is_some_and(|view| {
        let unsettled = |pod: &Arc<PodView>| view.routable(pod.name()).is_unsettled();
        there.pods.iter().any(unsettled)
    });
    let settles = unsettled.then_some(SETTLES_IN);
    Ok(lost?.into_iter().chain(settles).min())
}

impl There {
    fn look(context: &Context, pool: &WorkerPool, key: &Key) -> There {
        let (namespace, deployment) = (&*key.namespace, pool.spec.deployment.as_str());
        let cache = &context.cache;
        let mine = |meta: &Meta| meta.label(labels::POOL) == Some(&*key.name);
        There {
            pods: cache
                .pods
                .of(namespace, deployment)
                .into_iter()
                .filter(|pod| mine(&pod.meta))
                .collect(),
            groups: cache
                .of(&STATEFUL_SET, namespace, deployment)
                .into_iter()
                .filter(mine)
                .map(|meta| (meta.key.name.to_string(), meta))
                .collect(),
            view: context.fleet.view(namespace, deployment),
        }
    }

    /// By name: StatefulSets, and what pods are left of one that is gone.
    fn facts(&self, context: &Context, key: &Key) -> Vec<GroupFacts> {
        let mut pods: BTreeMap<String, Vec<Arc<PodView>>> = BTreeMap::new();
        for pod in &self.pods {
            if let Some(group) = pod.meta.label(labels::GROUP)
                && names::ordinal(&key.name, group).is_some()
            {
                pods.entry(group.to_owned()).or_default().push(pod.clone());
            }
        }
        for name in self.groups.keys() {
            pods.entry(name.clone()).or_default();
        }
        pods.into_iter()
            .map(|(name, pods)| GroupFacts {
                going: match self.groups.get(&name) {
                    Some(group) => context.applier.is_going(group),
                    None => pods.iter().any(|pod| pod.gone_by.is_some()),
                },
                name,
                pods,
            })
            .collect()
    }
}

fn found(pool: &str, group: &GroupFacts) -> Option<Found> {
    let ranks = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    Some(Found {
        ordinal: names::ordinal(pool, &group.name)?,
        ready: ranks(group.ready_ranks()),
        placed: ranks(group.placed_ranks()),
        going: group.going,
    })
}

async fn apply(
    context: &Context,
    pool: &WorkerPool,
    there: &There,
    plan: &Plan,
) -> Result<(), Error> {
    let gangs = context.cache.serves(&POD_GROUP);
    let mut children = group::shared(pool);
    for ordinal in plan.keep.iter().chain(&plan.create) {
        children.extend(group::group(pool, *ordinal, gangs));
    }
    let applied = context.applier.apply_all(&children).await;
    let removed = remove(context, pool, there, plan).await;
    let pruned = prune(context, pool, there, &children).await;
    applied.and(removed).and(pruned)
}

async fn remove(
    context: &Context,
    pool: &WorkerPool,
    there: &There,
    plan: &Plan,
) -> Result<(), Error> {
    let name = pool.metadata.name.as_deref().unwrap_or_default();
    for ordinal in &plan.remove {
        let group = names::group(name, *ordinal);
        if let Some(meta) = there.groups.get(&group) {
            tracing::info!(group, "told to go; it drains first");
            // Pods end first, with all the time they have; the StatefulSet shows until then that the
            // group drains.
            context
                .applier
                .delete(&STATEFUL_SET, meta, Cascade::Foreground)
                .await?;
            let note = format!(
                "{group} drains, because {} groups are wanted",
                pool.spec.replicas
            );
            context
                .events
                .normal(pool, "Draining", "Delete", note)
                .await;
        }
    }
    Ok(())
}

/// PodGroups of groups that are gone.
async fn prune(
    context: &Context,
    pool: &WorkerPool,
    there: &There,
    keep: &[Child],
) -> Result<(), Error> {
    let name = pool.metadata.name.as_deref().unwrap_or_default();
    let namespace = pool.metadata.namespace.as_deref().unwrap_or_default();
    let left_over = |meta: &Meta| {
        meta.label(labels::POOL) == Some(name) && !there.groups.contains_key(&*meta.key.name)
    };
    let kinds = [&POD_GROUP];
    let applier = &context.applier;
    applier
        .prune(&kinds, namespace, &pool.spec.deployment, left_over, keep)
        .await
}

async fn open_gates(context: &Context, there: &There) -> Result<(), Error> {
    let Some(view) = &there.view else {
        return Ok(());
    };
    let changes: Vec<_> = there
        .pods
        .iter()
        .filter_map(|pod| Some((pod.clone(), pool_gate::change(pod, view)?)))
        .collect();
    pool_gate::write(context, changes).await
}

/// When to look again at pods that may be dead.
async fn take_lost_away(
    context: &Context,
    pool: &WorkerPool,
    there: &There,
) -> Result<Option<Duration>, Error> {
    let mut again: Option<Duration> = None;
    let now = (Instant::now(), Timestamp::now());
    for pod in &there.pods {
        match context.detached.judge(pod, there.view.as_ref(), now) {
            Verdict::Alive => {}
            Verdict::LookAgain(after) => again = Some(again.map_or(after, |a| a.min(after))),
            Verdict::Dead => {
                let node = pod.node.as_deref().unwrap_or("no node");
                let note = format!(
                    "{} is taken away by force: {node} does not say that it ended, and no router has its worker",
                    pod.name()
                );
                tracing::warn!("{note}");
                force(context, pod).await?;
                context
                    .events
                    .warning(pool, "RankLost", "Delete", note)
                    .await;
            }
        }
    }
    Ok(again)
}

async fn force(context: &Context, pod: &PodView) -> Result<(), Error> {
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &pod.meta.key.namespace);
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: only(&pod.meta.uid),
        ..DeleteParams::default()
    };
    let what = format!("pods {}", pod.meta.key);
    gone(api.delete(pod.name(), &params).await, &what)
}

/// The groups as they are once a plan was carried out, so that what is counted is never older than the
/// generation that it is said to be of.
fn after(pool: &str, mut groups: Vec<GroupFacts>, plan: &Plan) -> Vec<GroupFacts> {
    for group in &mut groups {
        let ordinal = names::ordinal(pool, &group.name);
        group.going |= ordinal.is_some_and(|ordinal| plan.remove.contains(&ordinal));
    }
    groups.extend(plan.create.iter().map(|ordinal| GroupFacts {
        name: names::group(pool, *ordinal),
        going: false,
        pods: Vec::new(),
    }));
    groups
}
