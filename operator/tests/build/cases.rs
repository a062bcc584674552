//! ModelDeployments as people write them, and what they come to.

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{Container, PodSpec};
use millrace_operator::api::{ModelDeployment, Role, WorkerPool};
use millrace_operator::build::{Child, Defaults, Invalid, Resolved, group, pool, resolve, router};
use serde::de::DeserializeOwned;
use serde_json::json;

/// One that nothing was said about.
pub const AGGREGATED: &str = "
model: {source: {builtin: tiny-r1}}
decode: {}
";

pub const SPLIT: &str = "
model: {source: {builtin: tiny-r1}}
prefill: {replicas: 1}
decode: {replicas: 2}
";

const GROUPS: &str = "
model: {source: {builtin: tiny-r1}, servedNames: [r1, r1-latest]}
router: {replicas: 2}
prefill: {ranks: 2}
decode:
  ranks: 4
  redundantExperts: 8
  topology: {pack: topology.kubernetes.io/rack, spread: topology.kubernetes.io/zone}
etcd: {endpoints: ['etcd-0.etcd.db.svc:2379', 'etcd-1.etcd.db.svc:2379']}
drain: {deadlineSeconds: 60}
";

const CLAIM: &str = "
model:
  source: {persistentVolumeClaim: {claimName: models, path: hub/r1/snapshots/1}}
  maxModelLen: 4096
  revision: second
prefill: {engine: {kvDtype: f32}}
decode:
  resources: {requests: {cpu: 2, memory: 4Gi}, limits: {memory: 8Gi}}
  engine: {kvPages: 100, kvDtype: f32, maxRunning: 8, maxBatchTokens: 256, mtp: false, prefixCache: false, localPrefillTokens: 32, threads: 2}
";

const IMAGE: &str = "
image: registry.example/millrace:1
imagePullPolicy: IfNotPresent
imagePullSecrets: [registry]
model: {source: {image: {reference: 'registry.example/models/r1:1', pullPolicy: IfNotPresent, path: r1}}}
decode: {}
";

const HTTP: &str = "
model:
  source:
    http:
      url: https://models.example/r1
      checksum: sha256:0000000000000000000000000000000000000000000000000000000000000000
      secretName: models
  cache: {sizeLimit: 100Gi}
prefill: {resources: {limits: {cpu: '4', nvidia.com/gpu: 1}}}
decode: {}
";

const S3: &str = "
model:
  source:
    s3:
      url: s3://models/r1
      checksum: sha256:1111111111111111111111111111111111111111111111111111111111111111
      endpoint: https://s3.example
      region: eu-central-1
      secretName: bucket
  cache: {persistentVolumeClaim: {claimName: cache, path: models}}
decode: {}
";

const OPEN: &str = "
model: {source: {builtin: tiny-r1}}
router:
  replicas: 3
  service: {type: LoadBalancer, annotations: {example.org/pool: public}}
  tls: {secretName: certificate}
  auth: {secretName: keys}
  gateway:
    parents: [{name: public, namespace: gateways, sectionName: https}]
    hostnames: [llm.example.org]
    grpcHostnames: [grpc.llm.example.org]
  maxSequences: 100
  maxWaiting: 0
  requestTimeoutSeconds: 60
  balanceIntervalSeconds: 5
  resources: {requests: {cpu: 500m}}
decode: {}
monitoring: {podMonitor: true, nativeHistograms: true, labels: {release: prometheus}}
";

const OVERRIDES: &str = "
model: {source: {builtin: tiny-r1}}
prefill: {}
decode:
  ranks: 2
  gang: false
  topology: {pack: kubernetes.io/hostname}
  pod:
    labels: {kueue.x-k8s.io/queue-name: gpus}
    annotations: {example.org/team: a}
    nodeSelector: {example.org/pool: gpus}
    tolerations: [{key: nvidia.com/gpu, operator: Exists}]
    affinity:
      podAffinity:
        requiredDuringSchedulingIgnoredDuringExecution:
        - {topologyKey: topology.kubernetes.io/zone, labelSelector: {matchLabels: {app: cache}}}
    topologySpreadConstraints:
    - {topologyKey: kubernetes.io/hostname, maxSkew: 1, whenUnsatisfiable: DoNotSchedule}
    priorityClassName: high
    schedulerName: volcano
    runtimeClassName: nvidia
    serviceAccountName: models
    env: [{name: RUST_LOG, value: debug}, {name: MILLRACE_LOG_FORMAT, value: human}]
    args: [--stage-bandwidth=1G]
    volumes: [{name: certificates, configMap: {name: certificates}}]
    volumeMounts: [{name: certificates, mountPath: /etc/ssl/certs, readOnly: true}]
";

/// Pod Security would not let these run where it is restricted.
const HOST_PATHS: &str = "
model:
  source: {http: {url: 'http://models.example/r1', checksum: 'sha256:0000000000000000000000000000000000000000000000000000000000000000'}}
  cache: {hostPath: {path: /var/cache/models}}
decode: {}
";

const RDMA: &str = "
model: {source: {hostPath: {path: /srv/models/r1}}}
transfer: {transport: tcp, rdmaResources: {rdma/hca: 1}, networks: fabric}
prefill: {pod: {hostNetwork: true}}
decode: {pod: {hostNetwork: true}}
networkPolicy: false
";

pub const RESTRICTED: [(&str, &str); 9] = [
    ("aggregated", AGGREGATED),
    ("split", SPLIT),
    ("groups", GROUPS),
    ("claim", CLAIM),
    ("image", IMAGE),
    ("http", HTTP),
    ("s3", S3),
    ("open", OPEN),
    ("overrides", OVERRIDES),
];

pub const PRIVILEGED: [(&str, &str); 2] = [("host-paths", HOST_PATHS), ("rdma", RDMA)];

pub fn spec(name: &str) -> &'static str {
    let mut all = RESTRICTED.into_iter().chain(PRIVILEGED);
    all.find(|case| case.0 == name).unwrap().1
}

pub fn deployment(name: &str, spec: &str) -> ModelDeployment {
    let spec: serde_json::Value = serde_saphyr::from_str(spec).unwrap();
    serde_json::from_value(json!({
        "apiVersion": "serving.millrace.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": { "name": name, "namespace": "models", "uid": "uid-of-the-deployment" },
        "spec": spec,
    }))
    .unwrap()
}

pub fn defaults() -> Defaults {
    Defaults {
        image: "registry.example/millrace:0".to_owned(),
        etcd: Vec::new(),
        operator_namespace: "millrace-system".to_owned(),
    }
}

pub fn resolved(spec: &str) -> Resolved {
    resolve(&deployment("m", spec), &defaults()).unwrap()
}

/// Everything that is wrong with it, as `field: message`.
pub fn wrong(spec: &str) -> Vec<Invalid> {
    resolve(&deployment("m", spec), &defaults()).expect_err(spec)
}

/// The pool as the API server has it once it was applied.
pub fn worker_pool(resolved: &Resolved, role: Role) -> Option<WorkerPool> {
    let child = pool::pool(resolved, role, Some(2))?;
    let mut object = child.object().clone();
    object["metadata"]["uid"] = json!("uid-of-the-pool");
    Some(serde_json::from_value(object).unwrap())
}

/// Everything that a ModelDeployment comes to, with the first group of each pool. `gang`: in a cluster
/// that serves PodGroups.
pub fn everything(resolved: &Resolved, gang: bool) -> Vec<Child> {
    let mut all = router::objects(resolved, false);
    for role in Role::ALL {
        all.extend(pool::pool(resolved, role, Some(2)));
        if let Some(pool) = worker_pool(resolved, role) {
            all.extend(group::shared(&pool));
            all.extend(group::group(&pool, 0, gang));
        }
    }
    all
}

pub fn find<T: DeserializeOwned>(all: &[Child], kind: &str, name: &str) -> T {
    let child = all
        .iter()
        .find(|child| child.kind().kind == kind && child.name() == name)
        .unwrap_or_else(|| panic!("no {kind} {name}"));
    serde_json::from_value(child.object().clone()).unwrap()
}

pub fn router_pod(resolved: &Resolved) -> PodSpec {
    let all = router::objects(resolved, false);
    let deployment: Deployment = find(&all, "Deployment", "m-router");
    deployment.spec.template.spec.unwrap()
}

pub fn stateful_set(resolved: &Resolved, role: Role, gang: bool) -> StatefulSet {
    let pool = worker_pool(resolved, role).unwrap();
    let all = group::group(&pool, 0, gang);
    let name = format!("m-{}-{role}-0", resolved.revision);
    find(&all, "StatefulSet", &name)
}

pub fn worker_pod(resolved: &Resolved, role: Role) -> PodSpec {
    let set = stateful_set(resolved, role, true);
    set.spec.template.spec.unwrap()
}

pub fn args(container: &Container) -> Vec<&str> {
    container
        .args
        .iter()
        .flatten()
        .map(String::as_str)
        .collect()
}

/// The value of a variable, or the path of the field that it comes from.
pub fn variable<'a>(container: &'a Container, name: &str) -> Option<&'a str> {
    let variable = container.env.iter().flatten().find(|it| it.name == name)?;
    let source = variable.value_from.as_ref();
    let field = source.and_then(|source| source.field_ref.as_ref());
    variable
        .value
        .as_deref()
        .or(field.map(|field| field.field_path.as_str()))
}
