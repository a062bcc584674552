//! What there is of a ModelDeployment, as watches showed it.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;

use super::super::{Context, autoscaler};
use crate::api::{
    GroupStatus, ModelDeployment, PoolAutoscaler, Role, ScaledPool, WorkerPool, labels,
};
use crate::build::names;
use crate::cache::{Key, Whole};
use crate::rollout::{Groups, Pool, Revision, Revisions};

#[derive(Debug, Clone, Default)]
pub struct There {
    pub pools: Vec<PoolFacts>,
    pub router: RouterFacts,
    /// Something of an earlier ModelDeployment of this name is still there, and goes.
    pub predecessor: bool,
}

#[derive(Debug, Clone)]
pub struct PoolFacts {
    pub revision: String,
    pub role: Role,
    pub pool: Pool,
    /// Nobody has ever said how many groups it should have.
    pub fresh: bool,
    pub running: i32,
    pub groups: BTreeMap<String, GroupStatus>,
    /// What its groups wait for, in words.
    pub waits: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct RouterFacts {
    pub ready: i32,
    /// All pods are of the latest template, and ready.
    pub done: bool,
    /// What its pods wait for, in words.
    pub waits: Option<String>,
}

/// What the PoolAutoscaler wants that scales a ModelDeployment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scaled {
    /// Groups; 0: none more than there are.
    pub asked: Groups,
    /// There may be none, and a request brings them back.
    pub to_zero: bool,
}

impl Scaled {
    pub fn look(context: &Context, key: &Key) -> Scaled {
        let acting = autoscaler::acting(&context.cache, key);
        acting.map_or(Scaled::default(), |acting| Scaled::of(&acting.0))
    }

    fn of(autoscaler: &PoolAutoscaler) -> Scaled {
        let status = autoscaler.status.clone().unwrap_or_default();
        let mut conditions = status.conditions.iter();
        let active = conditions.any(|c| c.type_ == "Active" && c.status == "True");
        let groups = |pool: &ScaledPool| u32::try_from(pool.desired).unwrap_or(0);
        Scaled {
            asked: match active {
                true => Groups {
                    prefill: status.prefill.as_ref().map_or(0, groups),
                    decode: groups(&status.decode),
                },
                false => Groups::default(),
            },
            to_zero: autoscaler.spec.scale_to_zero.is_some(),
        }
    }
}

impl There {
    pub fn look(context: &Context, key: &Key, deployment: &ModelDeployment) -> There {
        let (namespace, name) = (&*key.namespace, &*key.name);
        let uid = deployment.uid().unwrap_or_default();
        let pools = context.cache.pools.of(namespace, name);
        let router = context.cache.routers.get(namespace, &names::router(name));
        let foreign = |meta: &ObjectMeta| is_foreign(meta, &uid);
        There {
            predecessor: pools.iter().any(|pool| foreign(&pool.object.metadata))
                || router.as_ref().is_some_and(|r| foreign(&r.object.metadata)),
            pools: pools
                .iter()
                .filter(|pool| !foreign(&pool.object.metadata))
                .map(|pool| pool_facts(context, pool))
                .collect(),
            router: router
                .map(|router| router_facts(context, key, &router.object))
                .unwrap_or_default(),
        }
    }

    pub fn pool(&self, revision: &str, role: Role) -> Option<&PoolFacts> {
        let mut pools = self.pools.iter();
        pools.find(|pool| pool.revision == revision && pool.role == role)
    }

    /// As the planner of rollouts takes it.
    pub fn revisions(&self, served: impl Fn(&str) -> bool) -> Revisions {
        let mut revisions = Revisions::new();
        for facts in &self.pools {
            let revision = revisions.entry(facts.revision.clone()).or_insert(Revision {
                served: served(&facts.revision),
                ..Revision::default()
            });
            match facts.role {
                Role::Prefill => revision.prefill = Some(facts.pool),
                Role::Decode => revision.decode = Some(facts.pool),
            }
        }
        revisions
    }
}

fn is_foreign(meta: &ObjectMeta, uid: &str) -> bool {
    let mut owners = meta.owner_references.iter().flatten();
    owners.any(|owner| owner.controller == Some(true) && owner.uid != uid)
}

fn pool_facts(context: &Context, found: &Whole<WorkerPool>) -> PoolFacts {
    let pool = &found.object;
    let status = pool.status.clone().unwrap_or_default();
    let count = |n: i32| u32::try_from(n).unwrap_or(0);
    let generation = pool.metadata.generation;
    let replicas = count(pool.spec.replicas);
    let fresh = generation <= Some(1) && replicas == 0;
    let counted = status.observed_generation == generation || fresh && pool.status.is_none();
    let condition = |kind: &str| status.conditions.iter().find(|c| c.type_ == kind);
    // "1 of 2 groups get requests; what they wait for".
    let missing = condition("Available")
        .filter(|c| c.status == "False")
        .and_then(|c| Some(c.message.split_once("; ")?.1.to_owned()));
    let failed = condition("Progressing")
        .filter(|c| c.reason == "ApplyFailed")
        .map(|c| c.message.clone());
    PoolFacts {
        revision: pool.spec.revision.clone(),
        role: pool.spec.role,
        pool: Pool {
            replicas,
            groups: count(status.replicas),
            ready: count(status.ready_replicas),
            deleting: context.applier.is_going(&found.meta),
            outdated: !counted || context.applier.is_behind(&pool.metadata),
        },
        fresh,
        running: status.running_requests,
        groups: status.groups.clone(),
        waits: failed.or(missing),
    }
}

fn router_facts(context: &Context, key: &Key, router: &Deployment) -> RouterFacts {
    let status = router.status.clone().unwrap_or_default();
    let wanted = router.spec.replicas.unwrap_or(1);
    let current = status.observed_generation == router.metadata.generation
        && !context.applier.is_behind(&router.metadata);
    let of = |n: Option<i32>| n.unwrap_or(0);
    let done = current
        && of(status.updated_replicas) == wanted
        && of(status.replicas) == wanted
        && of(status.available_replicas) == wanted;
    let failure = status.conditions.iter().flatten().find_map(|c| {
        let failed =
            c.type_.as_deref() == Some("ReplicaFailure") && c.status.as_deref() == Some("True");
        c.message.clone().filter(|_| failed)
    });
    RouterFacts {
        ready: of(status.ready_replicas),
        done,
        waits: (!done)
            .then(|| failure.or_else(|| waiting_router(context, key)))
            .flatten(),
    }
}

fn waiting_router(context: &Context, key: &Key) -> Option<String> {
    let pods = context.cache.pods.of(&key.namespace, &key.name);
    let mut routers = pods
        .iter()
        .filter(|pod| pod.meta.label(labels::POOL).is_none() && pod.gone_by.is_none());
    routers.find_map(|pod| {
        let waits_for = pod.waits_for.as_ref()?;
        Some(format!("{} waits for {waits_for}", pod.name()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn autoscaler(active: &str) -> PoolAutoscaler {
        let json = serde_json::json!({
            "apiVersion": "serving.millrace.dev/v1alpha1", "kind": "PoolAutoscaler",
            "metadata": {"name": "a"},
            "spec": {
                "target": {"name": "m"}, "objectives": {"ttftMilliseconds": 500},
                "decode": {"maxReplicas": 4}, "scaleToZero": {"idleSeconds": 600},
                "profile": {
                    "prefill": {"chunkTokens": 1, "baseSeconds": 1.0, "secondsPerToken": 0.0, "secondsPerTokenContext": 0.0},
                    "decode": {"baseSeconds": 1.0, "secondsPerSequence": 0.0, "secondsPerContextToken": 0.0},
                    "maxRunning": 1, "kvTokens": 64,
                },
            },
            "status": {
                "decode": {"ready": 1, "current": 1, "desired": 3},
                "conditions": [{"type": "Active", "status": active, "reason": "", "message": "",
                    "lastTransitionTime": "2026-01-01T00:00:00Z"}],
            },
        });
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn only_one_that_acts_asks_for_groups() {
        let asked = |active| Scaled::of(&autoscaler(active)).asked;
        let three = Groups {
            prefill: 0,
            decode: 3,
        };
        assert_eq!(asked("True"), three);
        assert_eq!(asked("False"), Groups::default());
        assert!(
            Scaled::of(&autoscaler("False")).to_zero,
            "it may sleep, whoever acts"
        );
    }
}
