//! The workers of a role.

use super::PoolShape;
use super::checks::{self, Report};
use super::{overrides, quantity};
use crate::api::{
    Builtin, Model, ModelDeploymentSpec, PoolSpec, Role, Transfer, TransferTransport, WorkerSpec,
};
use crate::build::pod::flags;

const DEFAULT_DRAIN_SECONDS: u32 = 300;
/// In each MoE layer of tiny-r1.
pub(super) const TINY_R1_EXPERTS: u32 = 32;

pub fn drain_seconds(spec: &ModelDeploymentSpec) -> u32 {
    spec.drain.deadline_seconds.unwrap_or(DEFAULT_DRAIN_SECONDS)
}

pub fn resolve(
    report: &mut Report,
    spec: &ModelDeploymentSpec,
    role: Role,
    pool: &PoolSpec,
    image: &str,
    model: &Model,
) -> PoolShape {
    let root = format!("spec.{role}");
    check(report, &root, role, pool, model);
    transfer(report, &root, pool, &spec.transfer);
    let pod = format!("{root}.pod");
    overrides::check(report, &pod, &pool.pod, &flags::worker(role));
    let annotation = crate::build::pod::NETWORKS;
    if spec.transfer.networks.is_some() && pool.pod.annotations.contains_key(annotation) {
        report.add(
            format!("{pod}.annotations[{annotation}]"),
            "spec.transfer.networks says the same for all workers; remove one of the two",
        );
    }
    if pool.pod.host_network == Some(true) && spec.network_policy.unwrap_or(true) {
        report.add(
            format!("{pod}.hostNetwork"),
            "policies cannot recognise pods in the host's network, so routers would not be reached; set spec.networkPolicy to false, or remove hostNetwork",
        );
    }
    let worker = WorkerSpec {
        image: image.to_owned(),
        image_pull_policy: spec.image_pull_policy.clone(),
        image_pull_secrets: spec.image_pull_secrets.clone(),
        model: model.clone(),
        device: pool.device,
        ranks: pool.ranks.unwrap_or(1),
        redundant_experts: pool.redundant_experts,
        resources: pool.resources.clone(),
        aggregated: spec.prefill.is_none(),
        engine: pool.engine.clone(),
        transfer: spec.transfer.clone(),
        topology: pool.topology.clone(),
        gang: pool.gang,
        pod: pool.pod.clone(),
        drain_seconds: drain_seconds(spec),
    };
    PoolShape {
        worker,
        replicas: pool.replicas,
    }
}

fn check(report: &mut Report, root: &str, role: Role, pool: &PoolSpec, model: &Model) {
    let ranks = pool.ranks.unwrap_or(1);
    if ranks < 1 {
        report.add(
            format!("{root}.ranks"),
            "a group has at least 1 rank; write 1 or more",
        );
    }
    let replicas = pool.redundant_experts.unwrap_or(0);
    let field = format!("{root}.redundantExperts");
    if replicas > 0 && ranks <= 1 {
        report.add(
            field,
            "a single rank holds every expert already; set ranks to 2 or more, or remove redundantExperts",
        );
    } else if model.source.builtin == Some(Builtin::TinyR1) {
        let most = TINY_R1_EXPERTS.saturating_mul(u32::try_from(ranks - 1).unwrap_or(0));
        if replicas > most {
            report.add(
                field,
                format!("with all {TINY_R1_EXPERTS} experts of tiny-r1 on every one of {ranks} ranks there are {most} replicas; write no more than that"),
            );
        }
    }
    if role == Role::Prefill && pool.engine.local_prefill_tokens.is_some() {
        report.add(
            format!("{root}.engine.localPrefillTokens"),
            "only decode workers choose whether they compute a prompt themselves; set it under spec.decode.engine",
        );
    }
    let resources = format!("{root}.resources");
    quantity::resources(report, &resources, pool.resources.as_ref());
    let topology = &pool.topology;
    checks::node_label(
        report,
        &format!("{root}.topology.pack"),
        topology.pack.as_deref(),
    );
    checks::node_label(
        report,
        &format!("{root}.topology.spread"),
        topology.spread.as_deref(),
    );
    let spread = pool.pod.topology_spread_constraints.iter().position(|it| {
        Some(&it.topology_key) == topology.spread.as_ref()
            && it.when_unsatisfiable == "ScheduleAnyway"
    });
    if let Some(at) = spread {
        report.add(
            format!("{root}.pod.topologySpreadConstraints[{at}]"),
            format!("{root}.topology.spread says that already; remove one of the two"),
        );
    }
}

fn transfer(report: &mut Report, root: &str, pool: &PoolSpec, transfer: &Transfer) {
    let limits = pool.resources.as_ref().and_then(|all| all.limits.as_ref());
    for (name, amount) in &transfer.rdma_resources {
        let field = format!("spec.transfer.rdmaResources[{name}]");
        // Told once, though both pools get them.
        if root == "spec.decode" && (!name.contains('/') || !checks::is_key(name)) {
            report.add(
                &field,
                format!("{name:?} is no device's name; write it as vendor.example/device"),
            );
        }
        if root == "spec.decode" && *amount < 1 {
            report.add(
                field,
                format!("{amount} is no number of devices; write 1 or more, or remove it"),
            );
        }
        if limits.is_some_and(|limits| limits.contains_key(name)) {
            report.add(
                format!("{root}.resources.limits[{name}]"),
                "spec.transfer.rdmaResources sets it for all workers; remove one of the two",
            );
        }
    }
}

fn devices(report: &mut Report, transfer: &Transfer) {
    let is_name = |name: &str| {
        let letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        !name.is_empty() && name.chars().all(letter)
    };
    for name in transfer.devices.iter().filter(|name| !is_name(name)) {
        report.add(
            "spec.transfer.devices",
            format!("{name:?} is no network device's name; write one such as mlx5_0 an entry"),
        );
    }
    if transfer.transport == TransferTransport::Tcp && !transfer.devices.is_empty() {
        report.add(
            "spec.transfer.devices",
            "TCP goes where routes lead; leave the devices out, or set transport to auto or nixl",
        );
    }
}

/// What both pools have to agree on.
pub fn check_together(report: &mut Report, spec: &ModelDeploymentSpec) {
    devices(report, &spec.transfer);
    let Some(prefill) = &spec.prefill else { return };
    let (theirs, ours) = (prefill.engine.kv_dtype, spec.decode.engine.kv_dtype);
    if theirs != ours {
        let say = |dtype: Option<_>| match dtype {
            None => "left out".to_owned(),
            Some(dtype) => format!("{dtype:?}").to_lowercase(),
        };
        report.add(
            "spec.prefill.engine.kvDtype",
            format!(
                "it is {}, and spec.decode.engine.kvDtype is {}; pages go from one to the other, so make them equal",
                say(theirs),
                say(ours)
            ),
        );
    }
    if prefill.replicas == Some(0) && spec.decode.replicas.is_some_and(|groups| groups > 0) {
        report.add(
            "spec.prefill.replicas",
            "without prefill workers the decode workers wait for ever; set 1 or more, set spec.decode.replicas to 0 too, or remove spec.prefill and let decode workers compute prompts themselves",
        );
    }
}
