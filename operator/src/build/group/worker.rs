//! The pods of a group: one worker each.

use k8s_openapi::api::core::v1::{
    Container, EnvVar, PodReadinessGate, PodTemplateSpec, ResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt as _;

use super::{group_labels, placement};
use crate::api::{
    Device, EngineSpec, KvDtype, Role, Transfer, TransferTransport, WorkerPool, WorkerSpec, labels,
};
use crate::build::names;
use crate::build::pod::flags::Args;
use crate::build::pod::{self, Parts, model, parts};
use crate::build::ports::{Port, worker as ports};

const GPU: &str = "nvidia.com/gpu";
/// For what comes after the drain deadline.
const SLACK_SECONDS: i64 = 15;

pub fn template(pool: &WorkerPool, group: &str) -> PodTemplateSpec {
    let (role, worker) = (pool.spec.role, &pool.spec.worker);
    let container = Container {
        name: "worker".to_owned(),
        args: Some(args(role, worker)),
        env: Some(env(pool, group)),
        ports: Some(parts::ports(&opened(role, worker))),
        resources: resources(worker),
        // No probe ends a start: it answers /health from the first second on, and loading takes as
        // long as it takes. The engine's threads may leave little time for answers, hence the patience.
        liveness_probe: Some(parts::probe(ports::HTTP, "/health", 10, 6)),
        readiness_probe: Some(parts::probe(ports::HTTP, "/ready", 2, 3)),
        ..Container::default()
    };
    let mut template = pod::template(Parts {
        image: &worker.image,
        pull_policy: worker.image_pull_policy.as_deref(),
        pull_secrets: &worker.image_pull_secrets,
        model: &worker.model,
        overrides: &worker.pod,
        labels: group_labels(pool, group),
        peers: super::pool_selector(pool),
        container,
        volumes: Vec::new(),
        grace_seconds: i64::from(worker.drain_seconds) + SLACK_SECONDS,
        lock_memory: !worker.transfer.rdma_resources.is_empty(),
    });
    if let Some(spec) = &mut template.spec {
        spec.readiness_gates = Some(vec![PodReadinessGate {
            condition_type: labels::ROUTABLE.to_owned(),
        }]);
        placement::place(spec, &worker.topology, &pool.name_any(), group);
    }
    if let (Some(networks), Some(metadata)) = (&worker.transfer.networks, &mut template.metadata) {
        let annotations = metadata.annotations.get_or_insert_default();
        annotations.insert(pod::NETWORKS.to_owned(), networks.clone());
    }
    template
}

fn opened(role: Role, worker: &WorkerSpec) -> Vec<Port> {
    let mut all = vec![ports::GRPC, ports::HTTP];
    all.extend((role == Role::Decode).then_some(ports::TRANSFER));
    all.extend((worker.ranks > 1).then_some(ports::EXCHANGE));
    all
}

fn args(role: Role, worker: &WorkerSpec) -> Vec<String> {
    let any = |port: Port| format!("0.0.0.0:{}", port.number);
    let decode = role == Role::Decode;
    let mut args = Args::new(role.as_str());
    args.maybe("--model", model::access(&worker.model).folder)
        .maybe("--served-model-name", worker.model.served_names.first())
        .maybe("--max-model-len", worker.model.max_model_len)
        .set("--listen", any(ports::GRPC))
        .set("--metrics", any(ports::HTTP))
        .maybe("--transfer-listen", decode.then(|| any(ports::TRANSFER)))
        .set("--transfer", transport(&worker.transfer))
        .maybe(
            "--device",
            (worker.device == Device::Cuda).then_some("cuda"),
        );
    if !worker.transfer.devices.is_empty() {
        args.set("--transfer-devices", worker.transfer.devices.join(","));
    }
    if worker.ranks > 1 {
        args.set("--group-listen", any(ports::EXCHANGE))
            .maybe("--redundant-experts", worker.redundant_experts);
    }
    args.switch("--aggregated", decode && worker.aggregated);
    engine(&mut args, role, &worker.engine);
    args.and(&worker.pod.args)
}

/// Never shared memory: its sockets belong to a network namespace, and pods have one each.
fn transport(transfer: &Transfer) -> &'static str {
    match transfer.transport {
        TransferTransport::Nixl => "nixl",
        TransferTransport::Auto if !transfer.rdma_resources.is_empty() => "auto",
        TransferTransport::Auto | TransferTransport::Tcp => "tcp",
    }
}

fn engine(args: &mut Args, role: Role, engine: &EngineSpec) {
    let dtype = engine.kv_dtype.map(|dtype| match dtype {
        KvDtype::F32 => "f32",
        KvDtype::Bf16 => "bf16",
        KvDtype::Fp8 => "fp8",
    });
    let local = engine.local_prefill_tokens.filter(|_| role == Role::Decode);
    args.maybe("--kv-pages", engine.kv_pages)
        .maybe("--kv-dtype", dtype)
        .maybe("--max-running", engine.max_running)
        .maybe("--max-batch-tokens", engine.max_batch_tokens)
        .maybe("--local-prefill-tokens", local)
        .maybe("--threads", engine.threads)
        .switch("--no-mtp", engine.mtp == Some(false))
        .switch("--no-prefix-cache", engine.prefix_cache == Some(false));
}

/// Who it is, and where its routers are.
fn env(pool: &WorkerPool, group: &str) -> Vec<EnvVar> {
    let (spec, worker) = (&pool.spec, &pool.spec.worker);
    let namespace = pool.namespace().unwrap_or_default();
    let routers = names::router_address(&spec.deployment, &namespace);
    let mut env = vec![
        parts::field("MILLRACE_WORKER_ID", "metadata.name"),
        parts::field("MILLRACE_ADVERTISE_HOST", "status.podIP"),
        parts::value("MILLRACE_ROUTER", routers),
        parts::value("MILLRACE_REVISION", &spec.revision),
        parts::value("MILLRACE_DRAIN_SECONDS", worker.drain_seconds),
        parts::value("MILLRACE_LOG_FORMAT", "json"),
        parts::value("XDG_CACHE_HOME", "/cache"),
    ];
    if worker.ranks > 1 {
        let index = "metadata.labels['apps.kubernetes.io/pod-index']";
        env.extend([
            parts::value("MILLRACE_GROUP", group),
            parts::field("MILLRACE_RANK", index),
            parts::value("MILLRACE_RANKS", worker.ranks),
        ]);
    }
    env
}

/// GPUs that a group takes. A rank on CPUs counts as one: it is what there is one of a rank.
pub fn gpus(worker: &WorkerSpec) -> u32 {
    let limits = resources(worker).and_then(|resources| resources.limits);
    let gpus = limits.and_then(|limits| limits.get(GPU)?.0.parse::<u32>().ok());
    let ranks = u32::try_from(worker.ranks).unwrap_or(1);
    ranks.saturating_mul(gpus.unwrap_or(1).max(1))
}

fn resources(worker: &WorkerSpec) -> Option<ResourceRequirements> {
    let gpu = (worker.device == Device::Cuda).then_some((GPU, 1));
    let rdma = worker.transfer.rdma_resources.iter();
    let rdma = rdma.map(|(name, amount)| (name.as_str(), *amount));
    let devices = gpu.into_iter().chain(rdma);
    let devices = devices.map(|(name, amount)| (name.to_owned(), Quantity(amount.to_string())));
    parts::with_devices(worker.resources.as_ref(), devices)
}
