//! Routers, how they are reached, and by whom.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use millrace_operator::build::{Child, router};
use serde_json::{Value, json};

use crate::cases::{args, find, resolved, router_pod, spec, variable};

fn objects(case: &str) -> Vec<Child> {
    router::objects(&resolved(spec(case)), false)
}

fn names(objects: &[Child], kind: &str) -> Vec<String> {
    let of_kind = objects.iter().filter(|child| child.kind().kind == kind);
    of_kind.map(|child| child.name().to_owned()).collect()
}

#[test]
fn routers_are_told_what_to_serve() {
    let pod = router_pod(&resolved(spec("groups")));
    let container = &pod.containers[0];
    assert_eq!(
        args(container),
        [
            "router",
            "--served-model-name=r1,r1-latest",
            "--http=0.0.0.0:8000",
            "--grpc=0.0.0.0:9000",
            "--workers=0.0.0.0:9001",
            "--probe=0.0.0.0:8001",
            "--etcd=etcd-0.etcd.db.svc:2379,etcd-1.etcd.db.svc:2379",
            "--etcd-prefix=/millrace/models/m",
        ]
    );
    assert_eq!(variable(container, "MILLRACE_DRAIN_SECONDS"), Some("60"));
    // The drain, the pause before it, and some more.
    assert_eq!(pod.termination_grace_period_seconds, Some(80));
    let stop = container.lifecycle.clone().unwrap().pre_stop.unwrap();
    assert_eq!(stop.sleep.unwrap().seconds, 5);
    for probe in [
        &container.startup_probe,
        &container.liveness_probe,
        &container.readiness_probe,
    ] {
        let get = probe.as_ref().unwrap().http_get.as_ref().unwrap();
        assert_eq!(get.port, IntOrString::String("probe".into()));
    }
}

#[test]
fn clients_reach_routers_that_are_not_ready_only_to_wake_workers() {
    let resolved = resolved(spec("groups"));
    for (wakes, published) in [(false, None), (true, Some(true))] {
        let all = router::objects(&resolved, wakes);
        let clients: Service = find(&all, "Service", "m");
        let spec = clients.spec.unwrap();
        assert_eq!(spec.publish_not_ready_addresses, published);
        let workers: Service = find(&all, "Service", "m-router");
        assert_eq!(
            workers.spec.unwrap().publish_not_ready_addresses,
            Some(true)
        );
    }
}

#[test]
fn routers_take_secrets_as_folders() {
    let pod = router_pod(&resolved(spec("open")));
    let container = &pod.containers[0];
    for arg in [
        "--tls-cert=/etc/millrace/tls/tls.crt",
        "--tls-key=/etc/millrace/tls/tls.key",
        "--api-keys=/etc/millrace/api-keys",
        "--max-sequences=100",
        "--max-waiting=0",
        "--request-timeout=60",
        "--balance-interval-seconds=5",
    ] {
        assert!(args(container).contains(&arg), "{arg}");
    }
    for (volume, secret, folder) in [
        ("tls", "certificate", "/etc/millrace/tls"),
        ("api-keys", "keys", "/etc/millrace/api-keys"),
    ] {
        let volume = pod
            .volumes
            .iter()
            .flatten()
            .find(|it| it.name == volume)
            .unwrap();
        let from = volume.secret.as_ref().unwrap();
        assert_eq!(from.secret_name.as_deref(), Some(secret));
        let mounts = container.volume_mounts.as_ref().unwrap();
        let mount = mounts.iter().find(|it| it.name == volume.name).unwrap();
        // A file mounted alone would never change.
        assert_eq!(
            (mount.mount_path.as_str(), &mount.sub_path),
            (folder, &None)
        );
    }
    let plain = router_pod(&resolved(spec("split")));
    assert!(
        !args(&plain.containers[0])
            .iter()
            .any(|arg| arg.starts_with("--tls"))
    );
}

#[test]
fn one_router_more_comes_before_one_goes() {
    let deployment: Deployment = find(&objects("open"), "Deployment", "m-router");
    let spec = deployment.spec;
    assert_eq!(spec.replicas, Some(3));
    let rolling = spec.strategy.unwrap().rolling_update.unwrap();
    assert_eq!(rolling.max_surge, Some(IntOrString::Int(1)));
    assert_eq!(rolling.max_unavailable, Some(IntOrString::Int(0)));
    let pod = spec.template.spec.unwrap();
    let spread = &pod.topology_spread_constraints.unwrap()[0];
    assert_eq!(spread.topology_key, "kubernetes.io/hostname");
    let labels = spec.template.metadata.unwrap().labels.unwrap();
    for (key, value) in spec.selector.match_labels.unwrap() {
        assert_eq!(labels[&key], value);
    }
}

#[test]
fn clients_and_workers_have_a_name_each() {
    let all = objects("open");
    let clients: Service = find(&all, "Service", "m");
    assert_eq!(
        clients.metadata.annotations.unwrap()["example.org/pool"],
        "public"
    );
    let clients = clients.spec.unwrap();
    assert_eq!(clients.type_.as_deref(), Some("LoadBalancer"));
    let ports = clients.ports.unwrap();
    assert_eq!(
        ports.iter().map(|port| port.port).collect::<Vec<_>>(),
        [8000, 9000]
    );
    assert_eq!(ports[0].app_protocol.as_deref(), Some("https"));
    let workers: Service = find(&all, "Service", "m-router");
    let workers = workers.spec.unwrap();
    assert_eq!(workers.cluster_ip.as_deref(), Some("None"));
    assert_eq!(workers.publish_not_ready_addresses, Some(true));
    assert_eq!(workers.ports.unwrap()[0].port, 9001);
    let plain: Service = find(&objects("split"), "Service", "m");
    let ports = plain.spec.unwrap().ports.unwrap();
    assert_eq!(ports[1].app_protocol.as_deref(), Some("kubernetes.io/h2c"));
}

#[test]
fn a_budget_is_for_several() {
    let budget: PodDisruptionBudget = find(&objects("open"), "PodDisruptionBudget", "m-router");
    assert_eq!(
        budget.spec.unwrap().max_unavailable,
        Some(IntOrString::Int(1))
    );
    assert_eq!(
        names(&objects("split"), "PodDisruptionBudget"),
        Vec::<String>::new()
    );
}

#[test]
fn policies_let_in_who_has_to() {
    let all = objects("split");
    assert_eq!(names(&all, "NetworkPolicy"), ["m-router", "m-workers"]);
    let rules = |name| {
        let policy: NetworkPolicy = find(&all, "NetworkPolicy", name);
        let spec = policy.spec.unwrap();
        assert_eq!(spec.policy_types, Some(vec!["Ingress".to_owned()]));
        spec.ingress.unwrap().into_iter().map(|rule| {
            let ports = rule.ports.unwrap().into_iter().map(|port| match port.port {
                Some(IntOrString::Int(port)) => port,
                other => panic!("{other:?}"),
            });
            (ports.collect::<Vec<_>>(), rule.from)
        })
    };
    let routers: Vec<_> = rules("m-router").collect();
    assert_eq!(routers[0], (vec![8000, 9000, 8001], None));
    let (ports, from) = &routers[1];
    assert_eq!(ports, &[9001]);
    let from = serde_json::to_value(from).unwrap();
    let deployment =
        json!({ "podSelector": { "matchLabels": { "serving.millrace.dev/deployment": "m" } } });
    let operator = json!({ "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "millrace-system" } } });
    assert_eq!(from, json!([deployment, operator]));
    let workers: Vec<_> = rules("m-workers").collect();
    assert_eq!(workers[0].0, [9100, 9103, 9104]);
    assert_eq!(
        serde_json::to_value(&workers[0].1).unwrap(),
        json!([deployment])
    );
    assert_eq!(workers[1], (vec![9102], None));
    assert_eq!(
        names(&objects("rdma"), "NetworkPolicy"),
        Vec::<String>::new()
    );
}

fn object<'a>(all: &'a [Child], kind: &str) -> &'a Value {
    let child = all.iter().find(|child| child.kind().kind == kind).unwrap();
    assert!(child.optional());
    &child.object()["spec"]
}

#[test]
fn routes_lead_to_the_service() {
    let all = objects("open");
    let parents = json!([{ "name": "public", "namespace": "gateways", "sectionName": "https" }]);
    for (kind, hostname, port) in [
        ("HTTPRoute", "llm.example.org", 8000),
        ("GRPCRoute", "grpc.llm.example.org", 9000),
    ] {
        let expected = json!({
            "parentRefs": parents,
            "rules": [{ "backendRefs": [{ "name": "m", "port": port }] }],
            "hostnames": [hostname],
        });
        assert_eq!(object(&all, kind), &expected);
    }
    let split = objects("split");
    assert!(!split.iter().any(|child| child.optional()));
}

#[test]
fn metrics_are_found() {
    let all = objects("open");
    let monitor = object(&all, "PodMonitor");
    let endpoints = monitor["podMetricsEndpoints"].as_array().unwrap();
    let endpoint = |port: &str| endpoints.iter().find(|it| it["port"] == port).unwrap();
    // Routers have a port `http` too, which is for clients.
    for (port, action) in [("http", "drop"), ("probe", "keep")] {
        let rule = &endpoint(port)["relabelings"][0];
        assert_eq!(rule["action"], action);
        let source = "__meta_kubernetes_pod_label_serving_millrace_dev_role";
        assert_eq!(rule["sourceLabels"], json!([source]));
        assert_eq!(rule["regex"], "router");
    }
    // Both, or dashboards would have nothing to show.
    assert_eq!(monitor["scrapeNativeHistograms"], true);
    assert_eq!(monitor["scrapeClassicHistograms"], true);
    let child = all
        .iter()
        .find(|child| child.kind().kind == "PodMonitor")
        .unwrap();
    assert_eq!(
        child.object()["metadata"]["labels"]["release"],
        "prometheus"
    );
}
