//! The routers' pods.

use k8s_openapi::api::apps::v1::{DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::api::core::v1::{
    Container, Lifecycle, LifecycleHandler, SleepAction, TopologySpreadConstraint,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::metadata;
use crate::build::pod::flags::Args;
use crate::build::pod::{Parts, model, mount_read_only, parts, template};
use crate::build::ports::router;
use crate::build::{Child, Resolved, kinds, meta, names};

const TLS: &str = "/etc/millrace/tls";
const API_KEYS: &str = "/etc/millrace/api-keys";
/// From being taken out of Services to being told to stop: others learn of it meanwhile.
const SLEEP_SECONDS: i64 = 5;
/// For what comes after the drain deadline.
const SLACK_SECONDS: i64 = 15;

pub fn deployment(resolved: &Resolved) -> Child {
    let spec = &resolved.router;
    let mut volumes = Vec::new();
    let mut mounts = Vec::new();
    if let Some(tls) = &spec.tls {
        volumes.push(model::secret("tls", &tls.secret_name));
        mounts.push(mount_read_only("tls", TLS));
    }
    if let Some(auth) = &spec.auth {
        volumes.push(model::secret("api-keys", &auth.secret_name));
        mounts.push(mount_read_only("api-keys", API_KEYS));
    }
    let container = Container {
        name: meta::ROUTER.to_owned(),
        args: Some(args(resolved)),
        env: Some(vec![
            parts::value("MILLRACE_DRAIN_SECONDS", resolved.drain_seconds),
            parts::value("MILLRACE_LOG_FORMAT", "json"),
            parts::value("XDG_CACHE_HOME", "/cache"),
        ]),
        ports: Some(parts::ports(&router::ALL)),
        resources: spec.resources.clone(),
        volume_mounts: Some(mounts),
        lifecycle: Some(Lifecycle {
            pre_stop: Some(LifecycleHandler {
                sleep: Some(SleepAction {
                    seconds: SLEEP_SECONDS,
                }),
                ..LifecycleHandler::default()
            }),
            ..Lifecycle::default()
        }),
        // It answers once it has read the checkpoint, which may take as long as the disk does: an hour.
        startup_probe: Some(parts::probe(router::PROBE, "/health", 2, 1800)),
        liveness_probe: Some(parts::probe(router::PROBE, "/health", 10, 6)),
        readiness_probe: Some(parts::probe(router::PROBE, "/ready", 2, 2)),
        ..Container::default()
    };
    let drain = i64::from(resolved.drain_seconds);
    let mut template = template(Parts {
        image: &resolved.image,
        pull_policy: resolved.image_pull_policy.as_deref(),
        pull_secrets: &resolved.image_pull_secrets,
        model: &resolved.model,
        overrides: &spec.pod,
        labels: meta::common(&resolved.name, meta::ROUTER),
        peers: meta::routers(&resolved.name),
        container,
        volumes,
        grace_seconds: SLEEP_SECONDS + drain + SLACK_SECONDS,
        lock_memory: false,
    });
    if let Some(pod) = &mut template.spec {
        spread(
            pod.topology_spread_constraints.get_or_insert_default(),
            resolved,
        );
    }
    let spec = DeploymentSpec {
        replicas: Some(resolved.router_replicas()),
        // It is not available before there are workers, and these may load for long.
        progress_deadline_seconds: Some(3600),
        revision_history_limit: Some(2),
        selector: meta::matching(meta::routers(&resolved.name)),
        strategy: Some(DeploymentStrategy {
            type_: Some("RollingUpdate".to_owned()),
            rolling_update: Some(RollingUpdateDeployment {
                max_surge: Some(IntOrString::Int(1)),
                max_unavailable: Some(IntOrString::Int(0)),
            }),
        }),
        template,
        ..DeploymentSpec::default()
    };
    let metadata = metadata(resolved, names::router(&resolved.name));
    Child::with_spec(&kinds::DEPLOYMENT, metadata, &spec)
}

fn args(resolved: &Resolved) -> Vec<String> {
    let spec = &resolved.router;
    let any = |port: crate::build::ports::Port| format!("0.0.0.0:{}", port.number);
    let mut args = Args::new("router");
    args.maybe("--model", model::access(&resolved.model).folder)
        .set("--served-model-name", resolved.model.served_names.join(","))
        .maybe("--max-model-len", resolved.model.max_model_len)
        .set("--http", any(router::HTTP))
        .set("--grpc", any(router::GRPC))
        .set("--workers", any(router::WORKERS))
        .set("--probe", any(router::PROBE))
        .maybe("--max-sequences", spec.max_sequences)
        .maybe("--max-waiting", spec.max_waiting)
        .maybe("--request-timeout", spec.request_timeout_seconds)
        .maybe("--balance-interval-seconds", spec.balance_interval_seconds);
    if spec.tls.is_some() {
        args.set("--tls-cert", format!("{TLS}/tls.crt"))
            .set("--tls-key", format!("{TLS}/tls.key"));
    }
    if spec.auth.is_some() {
        args.set("--api-keys", API_KEYS);
    }
    if let Some(etcd) = &resolved.etcd {
        args.set("--etcd", etcd.endpoints.join(","))
            .set("--etcd-prefix", &etcd.prefix);
    }
    args.and(&spec.pod.args)
}

/// Over nodes, unless people say themselves how.
fn spread(constraints: &mut Vec<TopologySpreadConstraint>, resolved: &Resolved) {
    let key = "kubernetes.io/hostname";
    if constraints.iter().any(|it| it.topology_key == key) {
        return;
    }
    constraints.push(TopologySpreadConstraint {
        max_skew: 1,
        topology_key: key.to_owned(),
        when_unsatisfiable: "ScheduleAnyway".to_owned(),
        label_selector: Some(meta::matching(meta::routers(&resolved.name))),
        // Those that an update replaces do not count.
        match_label_keys: Some(vec!["pod-template-hash".to_owned()]),
        ..TopologySpreadConstraint::default()
    });
}
