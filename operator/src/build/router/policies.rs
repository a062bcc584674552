//! Who may reach whom, and how many routers may be taken away at once.

use k8s_openapi::api::networking::v1::{
    NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::api::policy::v1::PodDisruptionBudgetSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::metadata;
use crate::api::{Role, labels};
use crate::build::meta::{Labels, matching, routers, selector};
use crate::build::ports::{Port, router, worker};
use crate::build::{Child, Resolved, kinds, names};

/// One at a time; a pod that does not serve may always go.
pub fn budget(selector: Labels) -> PodDisruptionBudgetSpec {
    PodDisruptionBudgetSpec {
        max_unavailable: Some(IntOrString::Int(1)),
        selector: Some(matching(selector)),
        unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
        ..PodDisruptionBudgetSpec::default()
    }
}

/// `None`: of a lone router, a budget of one would allow everything.
pub fn disruption(resolved: &Resolved) -> Option<Child> {
    (resolved.router_replicas() > 1).then(|| {
        let metadata = metadata(resolved, names::router(&resolved.name));
        let spec = budget(routers(&resolved.name));
        Child::with_spec(&kinds::DISRUPTION_BUDGET, metadata, &spec)
    })
}

/// Into pods only: where they connect to (object stores, etcd, DNS) is not known here.
pub fn network(resolved: &Resolved) -> Vec<Child> {
    if !resolved.network_policy {
        return Vec::new();
    }
    let name = &resolved.name;
    let deployment = || matching(selector([(labels::DEPLOYMENT, name)]));
    let ours = NetworkPolicyPeer {
        pod_selector: Some(deployment()),
        ..NetworkPolicyPeer::default()
    };
    let operator = NetworkPolicyPeer {
        namespace_selector: Some(matching(selector([(
            "kubernetes.io/metadata.name",
            &resolved.operator_namespace,
        )]))),
        ..NetworkPolicyPeer::default()
    };
    let workers = LabelSelector {
        match_expressions: Some(vec![LabelSelectorRequirement {
            key: labels::ROLE.to_owned(),
            operator: "In".to_owned(),
            values: Some(Role::ALL.map(|role| role.as_str().to_owned()).into()),
        }]),
        ..deployment()
    };
    let policy = |name, pods, ingress| {
        let spec = NetworkPolicySpec {
            pod_selector: Some(pods),
            policy_types: Some(vec!["Ingress".to_owned()]),
            ingress: Some(ingress),
            egress: None,
        };
        Child::with_spec(&kinds::NETWORK_POLICY, metadata(resolved, name), &spec)
    };
    vec![
        policy(
            names::router(name),
            matching(routers(name)),
            vec![
                allow(&[router::HTTP, router::GRPC, router::PROBE], None),
                allow(&[router::WORKERS], Some(vec![ours.clone(), operator])),
            ],
        ),
        policy(
            names::workers(name),
            workers,
            vec![
                allow(
                    &[worker::GRPC, worker::TRANSFER, worker::EXCHANGE],
                    Some(vec![ours]),
                ),
                // Prometheus, wherever it is.
                allow(&[worker::HTTP], None),
            ],
        ),
    ]
}

/// `None`: from anywhere.
fn allow(ports: &[Port], from: Option<Vec<NetworkPolicyPeer>>) -> NetworkPolicyIngressRule {
    let port = |port: &Port| NetworkPolicyPort {
        port: Some(IntOrString::Int(port.number)),
        protocol: Some("TCP".to_owned()),
        end_port: None,
    };
    NetworkPolicyIngressRule {
        ports: Some(ports.iter().map(port).collect()),
        from,
    }
}
