//! Restricted Pod Security, as the API server checks it.

use k8s_openapi::api::core::v1::{PodSpec, Volume};
use millrace_operator::api::Role;

use crate::cases::{PRIVILEGED, RESTRICTED, resolved, router_pod, spec, worker_pod};

/// What the restricted standard would refuse a pod for.
fn violations(pod: &PodSpec) -> Vec<String> {
    let mut found = Vec::new();
    let mut check = |fine: bool, what: &str| {
        if !fine {
            found.push(what.to_owned());
        }
    };
    let context = pod.security_context.as_ref().unwrap();
    let seccomp = context.seccomp_profile.as_ref().map(|it| it.type_.as_str());
    check(context.run_as_non_root == Some(true), "runAsNonRoot");
    check(
        context.run_as_user.is_some_and(|user| user != 0),
        "runAsUser",
    );
    check(seccomp == Some("RuntimeDefault"), "seccompProfile");
    check(pod.host_network != Some(true), "hostNetwork");
    check(
        pod.host_pid.is_none() && pod.host_ipc.is_none(),
        "host namespaces",
    );
    for container in pod
        .containers
        .iter()
        .chain(pod.init_containers.iter().flatten())
    {
        let context = container.security_context.as_ref().unwrap();
        let capabilities = context.capabilities.as_ref().unwrap();
        check(
            context.allow_privilege_escalation == Some(false),
            "allowPrivilegeEscalation",
        );
        check(context.privileged != Some(true), "privileged");
        check(
            capabilities.drop == Some(vec!["ALL".to_owned()]),
            "capabilities.drop",
        );
        check(capabilities.add.is_none(), "capabilities.add");
        check(
            context.read_only_root_filesystem == Some(true),
            "readOnlyRootFilesystem",
        );
        let ports = container.ports.iter().flatten();
        check(
            ports.into_iter().all(|port| port.host_port.is_none()),
            "hostPort",
        );
    }
    for volume in pod.volumes.iter().flatten() {
        check(is_allowed(volume), "volumes");
    }
    found
}

fn is_allowed(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.csi.is_some()
        || volume.downward_api.is_some()
        || volume.empty_dir.is_some()
        || volume.ephemeral.is_some()
        || volume.image.is_some()
        || volume.persistent_volume_claim.is_some()
        || volume.projected.is_some()
        || volume.secret.is_some()
}

fn pods(spec: &str) -> Vec<PodSpec> {
    let resolved = resolved(spec);
    let mut pods = vec![router_pod(&resolved)];
    for role in Role::ALL {
        if resolved.pool(role).is_some() {
            pods.push(worker_pod(&resolved, role));
        }
    }
    pods
}

#[test]
fn pods_run_where_security_is_restricted() {
    for (case, spec) in RESTRICTED {
        for pod in pods(spec) {
            assert_eq!(violations(&pod), Vec::<String>::new(), "{case}");
            assert_eq!(pod.automount_service_account_token, Some(false), "{case}");
        }
    }
}

#[test]
fn what_needs_privileges_is_what_was_asked_for() {
    for pod in pods(spec("host-paths")) {
        assert_eq!(violations(&pod), ["volumes"]);
    }
    let pods = pods(spec("rdma"));
    assert_eq!(violations(&pods[0]), ["volumes"]);
    for worker in &pods[1..] {
        assert_eq!(
            violations(worker),
            ["hostNetwork", "capabilities.add", "volumes"]
        );
        let context = worker.containers[0].security_context.as_ref().unwrap();
        let added = context.capabilities.as_ref().unwrap().add.clone().unwrap();
        assert_eq!(added, ["IPC_LOCK"]);
        assert_eq!(
            worker.dns_policy.as_deref(),
            Some("ClusterFirstWithHostNet")
        );
    }
    assert_eq!(PRIVILEGED.len(), 2);
}
