//! Workers: what their pods are told, mount and ask for.

use k8s_openapi::api::core::v1::{Container, PodSpec, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::scheduling::v1beta1::PodGroup;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use millrace_operator::api::{Device, Role, WorkerPool};
use millrace_operator::build::group;

use crate::cases::{args, find, resolved, spec, stateful_set, variable, worker_pod, worker_pool};

fn worker(case: &str, role: Role) -> Container {
    worker_pod(&resolved(spec(case)), role).containers.remove(0)
}

#[test]
fn workers_are_told_who_they_are() {
    let resolved = resolved(spec("groups"));
    let pod = worker_pod(&resolved, Role::Decode);
    let container = &pod.containers[0];
    assert_eq!(
        args(container),
        [
            "decode",
            "--served-model-name=r1",
            "--listen=0.0.0.0:9100",
            "--metrics=0.0.0.0:9102",
            "--transfer-listen=0.0.0.0:9103",
            "--transfer=tcp",
            "--group-listen=0.0.0.0:9104",
            "--redundant-experts=8",
        ]
    );
    let group = format!("m-{}-decode-0", resolved.revision);
    for (name, value) in [
        ("MILLRACE_WORKER_ID", "metadata.name"),
        ("MILLRACE_ADVERTISE_HOST", "status.podIP"),
        ("MILLRACE_ROUTER", "m-router.models.svc:9001"),
        ("MILLRACE_REVISION", &resolved.revision),
        ("MILLRACE_GROUP", &group),
        (
            "MILLRACE_RANK",
            "metadata.labels['apps.kubernetes.io/pod-index']",
        ),
        ("MILLRACE_RANKS", "4"),
        ("MILLRACE_DRAIN_SECONDS", "60"),
        ("XDG_CACHE_HOME", "/cache"),
    ] {
        assert_eq!(variable(container, name), Some(value), "{name}");
    }
    assert_eq!(pod.termination_grace_period_seconds, Some(75));
    let ports = container.ports.iter().flatten();
    let ports: Vec<_> = ports.map(|port| port.name.clone().unwrap()).collect();
    assert_eq!(ports, ["grpc", "http", "transfer", "exchange"]);
    let gates = pod.readiness_gates.unwrap();
    assert_eq!(gates[0].condition_type, "serving.millrace.dev/routable");
}

#[test]
fn lone_workers_are_in_no_group() {
    let prefill = worker("split", Role::Prefill);
    assert_eq!(variable(&prefill, "MILLRACE_GROUP"), None);
    assert_eq!(
        args(&prefill),
        [
            "prefill",
            "--served-model-name=m",
            "--listen=0.0.0.0:9100",
            "--metrics=0.0.0.0:9102",
            "--transfer=tcp"
        ]
    );
    assert!(!args(&worker("split", Role::Decode)).contains(&"--aggregated"));
    assert!(args(&worker("aggregated", Role::Decode)).contains(&"--aggregated"));
}

#[test]
fn engines_are_as_the_spec_says() {
    let decode = worker("claim", Role::Decode);
    let given = args(&decode);
    for arg in [
        "--model=/model/hub/r1/snapshots/1",
        "--max-model-len=4096",
        "--kv-pages=100",
        "--kv-dtype=f32",
        "--max-running=8",
        "--max-batch-tokens=256",
        "--local-prefill-tokens=32",
        "--threads=2",
        "--no-mtp",
        "--no-prefix-cache",
    ] {
        assert!(given.contains(&arg), "{arg}");
    }
    let resources = decode.resources.unwrap();
    assert_eq!(resources.limits.unwrap()["memory"], Quantity("8Gi".into()));
    assert_eq!(resources.requests.unwrap()["cpu"], Quantity("2".into()));
}

#[test]
fn nothing_ends_a_start_that_takes_long() {
    let container = worker("split", Role::Decode);
    assert_eq!(container.startup_probe, None);
    let path = |probe: Option<k8s_openapi::api::core::v1::Probe>| probe.unwrap().http_get.unwrap();
    let live = path(container.liveness_probe);
    assert_eq!(live.path.as_deref(), Some("/health"));
    assert_eq!(live.port, IntOrString::String("http".into()));
    assert_eq!(
        path(container.readiness_probe).path.as_deref(),
        Some("/ready")
    );
}

#[test]
fn groups_start_at_once_and_are_never_rolled() {
    let resolved = resolved(spec("groups"));
    let set = stateful_set(&resolved, Role::Decode, false).spec;
    assert_eq!(set.replicas, Some(4));
    assert_eq!(set.pod_management_policy.as_deref(), Some("Parallel"));
    assert_eq!(
        set.update_strategy.unwrap().type_.as_deref(),
        Some("OnDelete")
    );
    assert_eq!(
        set.service_name,
        Some(format!("m-{}-decode", resolved.revision))
    );
    let template = set.template.metadata.unwrap().labels.unwrap();
    for (key, value) in set.selector.match_labels.unwrap() {
        assert_eq!(template[&key], value);
    }
    assert_eq!(set.template.spec.unwrap().scheduling_group, None);
}

#[test]
fn gangs_are_groups_of_several_where_wanted() {
    let resolved = resolved(spec("groups"));
    let pool = worker_pool(&resolved, Role::Decode).unwrap();
    let children = group::group(&pool, 7, true);
    let name = format!("m-{}-decode-7", resolved.revision);
    // First, so that no pod waits for it.
    assert_eq!(children[0].kind().kind, "PodGroup");
    let gang: PodGroup = find(&children, "PodGroup", &name);
    assert_eq!(gang.spec.scheduling_policy.gang.unwrap().min_count, 4);
    let constraints = gang.spec.scheduling_constraints.unwrap().topology.unwrap();
    assert_eq!(constraints[0].key, "topology.kubernetes.io/rack");
    let pod = worker_pod(&resolved, Role::Decode);
    let of = pod.scheduling_group.unwrap().pod_group_name.unwrap();
    assert_eq!(of, format!("m-{}-decode-0", resolved.revision));
    for (case, role) in [("split", Role::Decode), ("overrides", Role::Decode)] {
        let resolved = crate::cases::resolved(spec(case));
        let pool = worker_pool(&resolved, role).unwrap();
        assert_eq!(group::group(&pool, 0, true).len(), 1, "{case}");
    }
}

#[test]
fn groups_are_packed_and_pools_spread() {
    let resolved = resolved(spec("groups"));
    let pod = worker_pod(&resolved, Role::Decode);
    let affinity = pod.affinity.unwrap().pod_affinity.unwrap();
    let required = affinity
        .required_during_scheduling_ignored_during_execution
        .unwrap();
    assert_eq!(required[0].topology_key, "topology.kubernetes.io/rack");
    let group = format!("m-{}-decode-0", resolved.revision);
    let selector = required[0]
        .label_selector
        .clone()
        .unwrap()
        .match_labels
        .unwrap();
    assert_eq!(selector["serving.millrace.dev/group"], group);
    let spread = &pod.topology_spread_constraints.unwrap()[0];
    assert_eq!(spread.topology_key, "topology.kubernetes.io/zone");
    assert_eq!(spread.when_unsatisfiable, "ScheduleAnyway");
}

#[test]
fn pools_have_names_and_a_budget() {
    let resolved = resolved(spec("groups"));
    let pool = worker_pool(&resolved, Role::Decode).unwrap();
    let shared = group::shared(&pool);
    let name = format!("m-{}-decode", resolved.revision);
    let service: Service = find(&shared, "Service", &name);
    let service = service.spec.unwrap();
    assert_eq!(service.cluster_ip.as_deref(), Some("None"));
    assert_eq!(service.publish_not_ready_addresses, Some(true));
    let budget: PodDisruptionBudget = find(&shared, "PodDisruptionBudget", &name);
    let budget = budget.spec.unwrap();
    assert_eq!(budget.max_unavailable, Some(IntOrString::Int(1)));
    assert_eq!(
        budget.unhealthy_pod_eviction_policy.as_deref(),
        Some("AlwaysAllow")
    );
    let selector = budget.selector.unwrap().match_labels.unwrap();
    assert_eq!(selector, service.selector.unwrap());
    assert_eq!(selector["serving.millrace.dev/pool"], name);
}

#[test]
fn overrides_are_merged() {
    let resolved = resolved(spec("overrides"));
    let set = stateful_set(&resolved, Role::Decode, true);
    let key = "kueue.x-k8s.io/queue-name";
    assert_eq!(set.metadata.labels.unwrap()[key], "gpus");
    let template = set.spec.template;
    let metadata = template.metadata.unwrap();
    assert_eq!(metadata.labels.unwrap()[key], "gpus");
    assert_eq!(metadata.annotations.unwrap()["example.org/team"], "a");
    let pod = template.spec.unwrap();
    let container = &pod.containers[0];
    assert_eq!(args(container).last(), Some(&"--stage-bandwidth=1G"));
    // Replaced, not repeated.
    assert_eq!(variable(container, "MILLRACE_LOG_FORMAT"), Some("human"));
    assert_eq!(variable(container, "RUST_LOG"), Some("debug"));
    let names = container.env.iter().flatten().map(|it| &it.name);
    let mut names: Vec<_> = names.collect();
    let all = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), all);
    let affinity = pod.affinity.unwrap().pod_affinity.unwrap();
    let required = affinity
        .required_during_scheduling_ignored_during_execution
        .unwrap();
    assert_eq!(required.len(), 2);
    let spread = &pod.topology_spread_constraints.unwrap()[0];
    let over = spread.label_selector.clone().unwrap().match_labels.unwrap();
    let pool = format!("m-{}-decode", resolved.revision);
    assert_eq!(over["serving.millrace.dev/pool"], pool);
    assert_eq!(pod.scheduler_name.as_deref(), Some("volcano"));
    assert_eq!(pod.priority_class_name.as_deref(), Some("high"));
    assert_eq!(pod.runtime_class_name.as_deref(), Some("nvidia"));
    assert_eq!(pod.service_account_name.as_deref(), Some("models"));
    assert_eq!(pod.node_selector.unwrap()["example.org/pool"], "gpus");
    assert_eq!(pod.tolerations.unwrap().len(), 1);
}

#[test]
fn models_are_where_the_source_says() {
    let folder = |pod: &PodSpec| {
        let container = &pod.containers[0];
        let arg = args(container)
            .into_iter()
            .find(|arg| arg.starts_with("--model="));
        arg.map(|arg| arg["--model=".len()..].to_owned())
    };
    let claim = worker_pod(&resolved(spec("claim")), Role::Decode);
    let volume = claim
        .volumes
        .iter()
        .flatten()
        .find(|it| it.name == "model")
        .unwrap();
    assert_eq!(
        volume.persistent_volume_claim.as_ref().unwrap().read_only,
        Some(true)
    );
    let image = worker_pod(&resolved(spec("image")), Role::Decode);
    assert_eq!(folder(&image).as_deref(), Some("/model/r1"));
    assert_eq!(
        image.image_pull_secrets.as_ref().unwrap()[0].name,
        "registry"
    );
    assert_eq!(
        image.containers[0].image.as_deref(),
        Some("registry.example/millrace:1")
    );
    let rdma = worker_pod(&resolved(spec("rdma")), Role::Decode);
    assert_eq!(folder(&rdma).as_deref(), Some("/model"));
    let builtin = worker_pod(&resolved(spec("split")), Role::Decode);
    assert_eq!(folder(&builtin), None);
}

#[test]
fn downloads_come_before_the_worker() {
    let pod = worker_pod(&resolved(spec("http")), Role::Prefill);
    let fetch = &pod.init_containers.as_ref().unwrap()[0];
    let digits = "0".repeat(64);
    let folder = format!("/cache/model/{digits}");
    assert_eq!(
        args(fetch),
        [
            "fetch",
            "--url=https://models.example/r1",
            "--token-file=/etc/millrace/source/token",
            &format!("--checksum=sha256:{digits}"),
            &format!("--to={folder}"),
        ]
    );
    assert!(args(&pod.containers[0]).contains(&format!("--model={folder}").as_str()));
    // It computes nothing on the device.
    let limits = fetch.resources.clone().unwrap().limits.unwrap();
    assert_eq!(limits.keys().collect::<Vec<_>>(), ["cpu"]);
    let mounts = pod.containers[0].volume_mounts.as_ref().unwrap();
    let download = mounts.iter().find(|it| it.name == "download").unwrap();
    assert_eq!(download.read_only, Some(true));
    assert!(
        !mounts.iter().any(|it| it.name == "source"),
        "the token is not the worker's"
    );

    let pod = worker_pod(&resolved(spec("s3")), Role::Decode);
    let fetch = &pod.init_containers.as_ref().unwrap()[0];
    for arg in [
        "--s3-endpoint=https://s3.example",
        "--s3-region=eu-central-1",
    ] {
        assert!(args(fetch).contains(&arg));
    }
    assert!(
        args(fetch)
            .last()
            .unwrap()
            .starts_with("--to=/cache/model/models/1111")
    );
    let keys = fetch
        .env
        .iter()
        .flatten()
        .filter(|it| it.value_from.is_some());
    assert_eq!(keys.count(), 2);
    let keys = pod.containers[0].env.iter().flatten();
    assert!(!keys.into_iter().any(|it| it.name.starts_with("AWS_")));
}

#[test]
fn pages_go_by_nixl_where_devices_are_or_where_it_is_asked_for() {
    let transfer = |text: &str| {
        let pod = worker_pod(
            &resolved(&format!(
                "model: {{source: {{hostPath: {{path: /m}}}}}}\nprefill: {{}}\ndecode: {{}}\ntransfer: {text}"
            )),
            Role::Decode,
        );
        let args = pod.containers[0].args.clone().unwrap();
        let transfer = args.into_iter().filter(|arg| arg.starts_with("--transfer"));
        transfer.skip(1).collect::<Vec<_>>()
    };
    assert_eq!(transfer("{}"), ["--transfer=tcp"]);
    assert_eq!(
        transfer("{rdmaResources: {rdma/hca: 1}}"),
        ["--transfer=auto"]
    );
    assert_eq!(
        transfer("{transport: nixl, devices: [mlx5_0, mlx5_1]}"),
        ["--transfer=nixl", "--transfer-devices=mlx5_0,mlx5_1"]
    );
}

#[test]
fn devices_are_limits() {
    let rdma = worker_pod(&resolved(spec("rdma")), Role::Prefill);
    let limits = rdma.containers[0]
        .resources
        .clone()
        .unwrap()
        .limits
        .unwrap();
    assert_eq!(limits["rdma/hca"], Quantity("1".into()));
    let set = stateful_set(&resolved(spec("rdma")), Role::Decode, false);
    let metadata = set.spec.template.metadata.unwrap();
    assert_eq!(
        metadata.annotations.unwrap()["k8s.v1.cni.cncf.io/networks"],
        "fabric"
    );

    let mut pool = worker_pool(&resolved(spec("http")), Role::Prefill).unwrap();
    let gpus = |pool: &WorkerPool| {
        let children = group::group(pool, 0, false);
        let limits = &children[0].object()["spec"]["template"]["spec"]["containers"][0]["resources"]
            ["limits"];
        limits["nvidia.com/gpu"].clone()
    };
    let args = |pool: &WorkerPool| {
        let children = group::group(pool, 0, false);
        let args = &children[0].object()["spec"]["template"]["spec"]["containers"][0]["args"];
        args.to_string()
    };
    assert!(!args(&pool).contains("--device"));
    pool.spec.worker.device = Device::Cuda;
    assert_eq!(gpus(&pool), "1", "what the spec says");
    assert!(args(&pool).contains("\"--device=cuda\""));
    pool.spec.worker.resources = None;
    assert_eq!(gpus(&pool), "1", "one if it says nothing");
    pool.spec.worker.device = Device::Cpu;
    assert!(gpus(&pool).is_null());
}
