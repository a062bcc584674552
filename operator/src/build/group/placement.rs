//! Which nodes the ranks of a group get.

use k8s_openapi::api::core::v1::{Affinity, PodAffinityTerm, PodSpec, TopologySpreadConstraint};

use crate::api::{Topology, labels};
use crate::build::meta;

pub fn place(pod: &mut PodSpec, topology: &Topology, pool: &str, group: &str) {
    if let Some(key) = &topology.pack {
        let affinity: &mut Affinity = pod.affinity.get_or_insert_default();
        let pods = affinity.pod_affinity.get_or_insert_default();
        let required = &mut pods.required_during_scheduling_ignored_during_execution;
        // The first pod of a group finds nobody, and Kubernetes lets it choose where.
        required.get_or_insert_default().push(PodAffinityTerm {
            label_selector: Some(meta::matching(meta::selector([(labels::GROUP, group)]))),
            topology_key: key.clone(),
            ..PodAffinityTerm::default()
        });
    }
    if let Some(key) = &topology.spread {
        let constraints = pod.topology_spread_constraints.get_or_insert_default();
        constraints.push(TopologySpreadConstraint {
            max_skew: 1,
            topology_key: key.clone(),
            when_unsatisfiable: "ScheduleAnyway".to_owned(),
            label_selector: Some(meta::matching(meta::selector([(labels::POOL, pool)]))),
            ..TopologySpreadConstraint::default()
        });
    }
}
