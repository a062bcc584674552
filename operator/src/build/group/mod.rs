//! What a pool has: one StatefulSet a group, and what its groups share.

mod placement;
mod worker;

use k8s_openapi::api::apps::v1::{StatefulSetSpec, StatefulSetUpdateStrategy};
use k8s_openapi::api::core::v1::{PodSchedulingGroup, ServiceSpec};
use k8s_openapi::api::scheduling::v1beta1::{
    GangSchedulingPolicy, PodGroupSchedulingConstraints, PodGroupSchedulingPolicy, PodGroupSpec,
    TopologyConstraint,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;

pub use worker::gpus;

use super::kinds::Kind;
use super::meta::{self, Labels};
use super::ports::worker as ports;
use super::router::{budget, service_port};
use super::{Child, kinds, names};
use crate::api::{WorkerPool, labels};

/// The kinds of [`shared`].
pub static SHARED_KINDS: [&Kind; 2] = [&kinds::SERVICE, &kinds::DISRUPTION_BUDGET];
/// The kinds of [`group`].
pub static GROUP_KINDS: [&Kind; 2] = [&kinds::POD_GROUP, &kinds::STATEFUL_SET];

/// What the groups of a pool share: their names in DNS, and how many of their pods may be taken away at
/// once.
pub fn shared(pool: &WorkerPool) -> Vec<Child> {
    let name = pool.name_any();
    let metadata = || meta::of(pool, name.clone(), pool_labels(pool));
    let selector = pool_selector(pool);
    let service = ServiceSpec {
        cluster_ip: Some("None".to_owned()),
        publish_not_ready_addresses: Some(true),
        selector: Some(selector.clone()),
        ports: Some(vec![
            service_port(ports::GRPC, None),
            service_port(ports::HTTP, None),
        ]),
        ..ServiceSpec::default()
    };
    vec![
        Child::with_spec(&kinds::SERVICE, metadata(), &service),
        Child::with_spec(&kinds::DISRUPTION_BUDGET, metadata(), &budget(selector)),
    ]
}

/// Selects the pods of a pool.
pub fn pool_selector(pool: &WorkerPool) -> Labels {
    meta::selector([(labels::POOL, &pool.name_any())])
}

/// One group. `gang`: the cluster can schedule its pods together or not at all; it does so if the pool
/// wants it.
pub fn group(pool: &WorkerPool, ordinal: i32, gang: bool) -> Vec<Child> {
    let name = names::group(&pool.name_any(), ordinal);
    let worker = &pool.spec.worker;
    let gang = gang && worker.ranks > 1 && worker.gang.unwrap_or(true);
    let mut template = worker::template(pool, &name);
    if gang && let Some(pod) = &mut template.spec {
        pod.scheduling_group = Some(PodSchedulingGroup {
            pod_group_name: Some(name.clone()),
        });
    }
    // Queueing systems look at the labels of the StatefulSet.
    let mut labels = worker.pod.labels.clone();
    labels.extend(group_labels(pool, &name));
    let spec = StatefulSetSpec {
        // Ranks wait for each other, so one after another would never start.
        pod_management_policy: Some("Parallel".to_owned()),
        // A newer operator may want pods otherwise: those that serve stay as they are.
        update_strategy: Some(StatefulSetUpdateStrategy {
            type_: Some("OnDelete".to_owned()),
            rolling_update: None,
        }),
        replicas: Some(worker.ranks),
        revision_history_limit: Some(2),
        selector: meta::matching(meta::selector([(labels::GROUP, &name)])),
        service_name: Some(pool.name_any()),
        template,
        ..StatefulSetSpec::default()
    };
    let metadata = |labels| meta::of(pool, name.clone(), labels);
    let set = Child::with_spec(&kinds::STATEFUL_SET, metadata(labels), &spec);
    let together = gang.then(|| pod_group(pool, metadata(group_labels(pool, &name))));
    together.into_iter().chain([set]).collect()
}

fn pod_group(pool: &WorkerPool, metadata: ObjectMeta) -> Child {
    let worker = &pool.spec.worker;
    let pack = worker.topology.pack.as_ref();
    let spec = PodGroupSpec {
        scheduling_policy: PodGroupSchedulingPolicy {
            gang: Some(GangSchedulingPolicy {
                min_count: worker.ranks,
            }),
            basic: None,
        },
        scheduling_constraints: pack.map(|key| PodGroupSchedulingConstraints {
            topology: Some(vec![TopologyConstraint { key: key.clone() }]),
        }),
        priority_class_name: worker.pod.priority_class_name.clone(),
        ..PodGroupSpec::default()
    };
    Child::with_spec(&kinds::POD_GROUP, metadata, &spec)
}

fn pool_labels(pool: &WorkerPool) -> Labels {
    let spec = &pool.spec;
    meta::of_pool(
        &spec.deployment,
        &spec.revision,
        spec.role,
        &pool.name_any(),
    )
}

fn group_labels(pool: &WorkerPool, group: &str) -> Labels {
    let mut all = pool_labels(pool);
    all.insert(labels::GROUP.to_owned(), group.to_owned());
    all
}
