//! What is refused: by the field as it is in YAML, with what to do.

use millrace_operator::build::{Defaults, resolve};

use crate::cases::{defaults, deployment, wrong};

const BASE: &str = "model: {source: {builtin: tiny-r1}}\n";

/// Exactly one thing is wrong, there, and the message says this.
fn refused(spec: &str, field: &str, hint: &str) {
    let all = wrong(&format!("{BASE}{spec}"));
    let told = all
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n");
    assert!(
        all.iter().any(|it| it.field == field),
        "{spec}: {field} is not among\n{told}"
    );
    assert_eq!(all.len(), 1, "{spec}:\n{told}");
    assert!(all[0].message.contains(hint), "{told}");
}

#[test]
fn fields_of_workers() {
    for (decode, field, hint) in [
        ("redundantExperts: 1", "redundantExperts", "set ranks to 2"),
        (
            "ranks: 2, redundantExperts: 33",
            "redundantExperts",
            "there are 32 replicas",
        ),
        (
            "resources: {limits: {memory: 8gb}}",
            "resources.limits[memory]",
            "16Gi",
        ),
        (
            "resources: {limits: {cpu: 1}, requests: {cpu: 2}}",
            "resources.requests[cpu]",
            "raise the limit",
        ),
        (
            "resources: {limits: {example.org/x: 500m}}",
            "resources.limits[example.org/x]",
            "whole",
        ),
        (
            "resources: {requests: {example.org/x: 1}}",
            "resources.requests[example.org/x]",
            "under limits",
        ),
        (
            "resources: {limits: {example.org/x: 2}, requests: {example.org/x: 1}}",
            "resources.requests[example.org/x]",
            "remove the request",
        ),
        (
            "resources: {claims: [{name: gpu}]}",
            "resources.claims",
            "under limits",
        ),
        (
            "topology: {pack: 'a b'}",
            "topology.pack",
            "topology.kubernetes.io/zone",
        ),
        (
            "topology: {spread: /zone}",
            "topology.spread",
            "topology.kubernetes.io/zone",
        ),
    ] {
        refused(
            &format!("decode: {{{decode}}}"),
            &format!("spec.decode.{field}"),
            hint,
        );
    }
    refused(
        "decode: {}\nprefill: {engine: {localPrefillTokens: 1}}",
        "spec.prefill.engine.localPrefillTokens",
        "spec.decode.engine",
    );
}

#[test]
fn overrides_of_pods() {
    let volume = "volumes: [{name: a, emptyDir: {}}], volumeMounts";
    for (pod, field, hint) in [
        (
            "labels: {app.kubernetes.io/name: x}",
            "labels[app.kubernetes.io/name]",
            "choose another key",
        ),
        (
            "labels: {serving.millrace.dev/pool: x}",
            "labels[serving.millrace.dev/pool]",
            "choose another key",
        ),
        ("labels: {a: b/c}", "labels[a]", "cannot be a label"),
        (
            "annotations: {'a b': c}",
            "annotations[a b]",
            "example.org/name",
        ),
        (
            "nodeSelector: {'-a': c}",
            "nodeSelector[-a]",
            "kubernetes.io/arch",
        ),
        ("priorityClassName: High", "priorityClassName", "lowercase"),
        ("schedulerName: a_b", "schedulerName", "lowercase"),
        ("runtimeClassName: a_b", "runtimeClassName", "lowercase"),
        ("serviceAccountName: a_b", "serviceAccountName", "lowercase"),
        (
            "env: [{name: MILLRACE_RANK, value: '0'}]",
            "env[0].name",
            "remove it",
        ),
        (
            "env: [{name: A, value: a}, {name: A, value: b}]",
            "env[1].name",
            "twice",
        ),
        ("env: [{name: A=b}]", "env[0].name", "leave out ="),
        ("args: [--kv-pages=1]", "args[0]", "set engine.kvPages"),
        ("args: [--x, --model, /y]", "args[1]", "spec.model.source"),
        (
            "volumes: [{name: model, emptyDir: {}}]",
            "volumes[0].name",
            "another name",
        ),
        (
            "volumes: [{name: a, emptyDir: {}}, {name: a, emptyDir: {}}]",
            "volumes[1].name",
            "twice",
        ),
        (
            "volumes: [{name: A, emptyDir: {}}]",
            "volumes[0].name",
            "lowercase",
        ),
        (
            "volumeMounts: [{name: a, mountPath: /a}]",
            "volumeMounts[0].name",
            "add one",
        ),
        (
            &format!("{volume}: [{{name: a, mountPath: a}}]"),
            "volumeMounts[0].mountPath",
            "begin with /",
        ),
        (
            &format!("{volume}: [{{name: a, mountPath: /}}]"),
            "volumeMounts[0].mountPath",
            "begin with /",
        ),
        (
            &format!("{volume}: [{{name: a, mountPath: /cache/model/}}]"),
            "volumeMounts[0].mountPath",
            "another folder",
        ),
        (
            &format!("{volume}: [{{name: a, mountPath: /a}}, {{name: a, mountPath: /a}}]"),
            "volumeMounts[1].mountPath",
            "twice",
        ),
        (
            "hostNetwork: true",
            "hostNetwork",
            "spec.networkPolicy to false",
        ),
    ] {
        refused(
            &format!("decode: {{pod: {{{pod}}}}}"),
            &format!("spec.decode.pod.{field}"),
            hint,
        );
        let args = ["kv-pages", "MILLRACE_RANK"];
        if !args.iter().any(|arg| pod.contains(arg)) {
            refused(
                &format!("decode: {{}}\nrouter: {{pod: {{{pod}}}}}"),
                &format!("spec.router.pod.{field}"),
                hint,
            );
        }
    }
    let spread = "{topologyKey: zone, maxSkew: 1, whenUnsatisfiable: ScheduleAnyway}";
    refused(
        &format!("decode: {{pod: {{topologySpreadConstraints: [{spread}, {spread}]}}}}"),
        "spec.decode.pod.topologySpreadConstraints[1]",
        "remove the other",
    );
    refused(
        &format!(
            "decode: {{topology: {{spread: zone}}, pod: {{topologySpreadConstraints: [{spread}]}}}}"
        ),
        "spec.decode.pod.topologySpreadConstraints[0]",
        "remove one of the two",
    );
}

#[test]
fn models() {
    let refused = |model: &str, field: &str, hint: &str| {
        let all = wrong(&format!("model: {{{model}}}\ndecode: {{}}\n"));
        let told = all
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("\n");
        assert!(
            all.len() == 1 && all[0].field == format!("spec.model{field}"),
            "{model}:\n{told}"
        );
        assert!(all[0].message.contains(hint), "{told}");
    };
    let checksum = format!("checksum: 'sha256:{}'", "0".repeat(64));
    let http = format!("http: {{url: 'https://a/b', {checksum}}}");
    let builtin = "source: {builtin: tiny-r1}";
    refused("source: {}", ".source", "exactly one");
    refused(
        "source: {builtin: tiny-r1, hostPath: {path: /a}}",
        ".source",
        "exactly one",
    );
    refused(
        "source: {hostPath: {path: a}}",
        ".source.hostPath.path",
        "begin with /",
    );
    refused(
        "source: {hostPath: {path: /a/../b}}",
        ".source.hostPath.path",
        "..",
    );
    refused(
        "source: {persistentVolumeClaim: {claimName: A}}",
        ".source.persistentVolumeClaim.claimName",
        "lowercase",
    );
    refused(
        "source: {persistentVolumeClaim: {claimName: a, path: /b}}",
        ".source.persistentVolumeClaim.path",
        "leave out /",
    );
    refused(
        "source: {image: {reference: 'a b'}}",
        ".source.image.reference",
        "registry/repository:tag",
    );
    refused(
        "source: {image: {reference: a, pullPolicy: Sometimes}}",
        ".source.image.pullPolicy",
        "IfNotPresent",
    );
    refused(
        "source: {image: {reference: a, path: ../b}}",
        ".source.image.path",
        "..",
    );
    refused(
        &format!("source: {{http: {{url: 'https://a/b', secretName: A, {checksum}}}}}"),
        ".source.http.secretName",
        "lowercase",
    );
    refused(
        &format!("source: {{s3: {{url: 's3://a/b', endpoint: minio, {checksum}}}}}"),
        ".source.s3.endpoint",
        "https://",
    );
    refused(&format!("{builtin}, cache: {{}}"), ".cache", "remove cache");
    refused(
        &format!("source: {{{http}}}, cache: {{sizeLimit: many}}"),
        ".cache.sizeLimit",
        "16Gi",
    );
    refused(
        &format!("source: {{{http}}}, cache: {{sizeLimit: 1Gi, hostPath: {{path: /a}}}}"),
        ".cache.sizeLimit",
        "remove it",
    );
    refused(
        &format!("{builtin}, servedNames: [a, a]"),
        ".servedNames[1]",
        "twice",
    );
    refused(
        &format!("{builtin}, servedNames: ['a,b']"),
        ".servedNames[0]",
        "commas",
    );
}

#[test]
fn the_rest() {
    let gateway =
        |rest: &str| format!("decode: {{}}\nrouter: {{gateway: {{parents: [{{name: a}}]{rest}}}}}");
    for (spec, field, hint) in [
        ("decode: {}\nimage: 'a b'", "spec.image", "digest"),
        (
            "decode: {}\nimagePullPolicy: Sometimes",
            "spec.imagePullPolicy",
            "Never",
        ),
        (
            "decode: {}\nimagePullSecrets: [a, a]",
            "spec.imagePullSecrets[1]",
            "twice",
        ),
        (
            "decode: {}\nimagePullSecrets: [A]",
            "spec.imagePullSecrets[0]",
            "Secret",
        ),
        (
            "decode: {}\netcd: {endpoints: ['http://a:1']}",
            "spec.etcd.endpoints[0]",
            "host:port",
        ),
        (
            "decode: {}\netcd: {endpoints: [a]}",
            "spec.etcd.endpoints[0]",
            "host:port",
        ),
        (
            "decode: {ranks: 2}\nrouter: {replicas: 2}",
            "spec.router.replicas",
            "spec.etcd.endpoints",
        ),
        (
            "decode: {}\nprefill: {ranks: 2}\nrouter: {replicas: 2}",
            "spec.router.replicas",
            "set 1 router",
        ),
        (
            "decode: {engine: {kvDtype: f32}}\nprefill: {engine: {kvDtype: bf16}}",
            "spec.prefill.engine.kvDtype",
            "make them equal",
        ),
        (
            "decode: {engine: {kvDtype: f32}}\nprefill: {}",
            "spec.prefill.engine.kvDtype",
            "left out",
        ),
        (
            "decode: {replicas: 1}\nprefill: {replicas: 0}",
            "spec.prefill.replicas",
            "remove spec.prefill",
        ),
        (
            "decode: {}\nrollout: {maxSurge: 25}\nrouter: {service: {type: ExternalName}}",
            "spec.router.service.type",
            "NodePort",
        ),
        (
            "decode: {}\nrollout: {maxSurge: a quarter}",
            "spec.rollout.maxSurge",
            "25%",
        ),
        (
            "decode: {}\nrollout: {maxUnavailable: -1}",
            "spec.rollout.maxUnavailable",
            "25%",
        ),
        (
            "decode: {}\ntransfer: {rdmaResources: {hca: 1}}",
            "spec.transfer.rdmaResources[hca]",
            "vendor.example/device",
        ),
        (
            "decode: {}\ntransfer: {rdmaResources: {rdma/hca: 0}}",
            "spec.transfer.rdmaResources[rdma/hca]",
            "1 or more",
        ),
        (
            "decode: {}\ntransfer: {devices: ['mlx5_0,mlx5_1']}",
            "spec.transfer.devices",
            "an entry",
        ),
        (
            "decode: {}\ntransfer: {transport: tcp, devices: [mlx5_0]}",
            "spec.transfer.devices",
            "set transport",
        ),
        (
            "decode: {resources: {limits: {rdma/hca: 1}}}\ntransfer: {rdmaResources: {rdma/hca: 1}}",
            "spec.decode.resources.limits[rdma/hca]",
            "remove one of the two",
        ),
        (
            "decode: {pod: {annotations: {k8s.v1.cni.cncf.io/networks: a}}}\ntransfer: {networks: b}",
            "spec.decode.pod.annotations[k8s.v1.cni.cncf.io/networks]",
            "remove one",
        ),
        (
            "decode: {}\nrouter: {tls: {secretName: A}}",
            "spec.router.tls.secretName",
            "Secret",
        ),
        (
            "decode: {}\nrouter: {auth: {secretName: A}}",
            "spec.router.auth.secretName",
            "Secret",
        ),
        (
            "decode: {}\nrouter: {resources: {limits: {cpu: fast}}}",
            "spec.router.resources.limits[cpu]",
            "500m",
        ),
        (
            "decode: {}\nrouter: {pod: {args: [--etcd=a]}}",
            "spec.router.pod.args[0]",
            "spec.etcd.endpoints",
        ),
        (
            "decode: {}\nrouter: {service: {annotations: {'a b': c}}}",
            "spec.router.service.annotations[a b]",
            "example.org/name",
        ),
        (
            "decode: {}\nmonitoring: {labels: {'a b': c}}",
            "spec.monitoring.labels[a b]",
            "release",
        ),
        (
            &gateway(", hostnames: [a_b]"),
            "spec.router.gateway.hostnames[0]",
            "llm.example.org",
        ),
        (
            &gateway(", hostnames: [a, a]"),
            "spec.router.gateway.hostnames[1]",
            "twice",
        ),
        (
            &gateway(", hostnames: [a], grpcHostnames: [a]"),
            "spec.router.gateway.grpcHostnames[0]",
            "choose another",
        ),
        (
            &gateway(", grpcHostnames: [a]"),
            "spec.router.gateway.hostnames",
            "which are the HTTP API's",
        ),
        (
            "decode: {}\nrouter: {gateway: {parents: [{name: A}]}}",
            "spec.router.gateway.parents[0].name",
            "Gateway",
        ),
        (
            "decode: {}\nrouter: {gateway: {parents: [{name: a}, {name: a}]}}",
            "spec.router.gateway.parents[1]",
            "twice",
        ),
    ] {
        refused(spec, field, hint);
    }
}

#[test]
fn names() {
    for (name, hint) in [
        ("1m", "begin with a letter"),
        ("m.n", "dashes only"),
        ("a-name-of-more-than-thirty-char", "at most 30"),
        ("m-router", "choose another name"),
    ] {
        let spec = format!("{BASE}decode: {{}}\n");
        let wrong = resolve(&deployment(name, &spec), &defaults()).unwrap_err();
        assert_eq!(wrong.len(), 1, "{name}");
        assert_eq!(wrong[0].field, "metadata.name");
        assert!(wrong[0].message.contains(hint), "{}", wrong[0]);
    }
}

#[test]
fn everything_that_is_wrong_is_told_at_once() {
    let all = wrong(
        "model: {source: {}}\nimagePullPolicy: maybe\nprefill: {ranks: 0}\ndecode: {ranks: 0}\n",
    );
    let fields: Vec<_> = all.iter().map(|it| it.field.as_str()).collect();
    assert_eq!(
        fields,
        [
            "spec.imagePullPolicy",
            "spec.model.source",
            "spec.prefill.ranks",
            "spec.decode.ranks"
        ]
    );
    assert_eq!(
        all[2].to_string(),
        "spec.prefill.ranks: a group has at least 1 rank; write 1 or more"
    );
}

#[test]
fn the_operators_etcd_is_for_those_that_name_none() {
    let defaults = Defaults {
        etcd: vec!["etcd.millrace-system.svc:2379".to_owned()],
        ..defaults()
    };
    let spec = format!("{BASE}decode: {{ranks: 2}}\nrouter: {{replicas: 2}}\n");
    let etcd = resolve(&deployment("m", &spec), &defaults)
        .unwrap()
        .etcd
        .unwrap();
    assert_eq!(etcd.endpoints, ["etcd.millrace-system.svc:2379"]);
    assert_eq!(etcd.prefix, "/millrace/models/m");
    let own = format!("{spec}etcd: {{endpoints: ['mine:2379']}}\n");
    let etcd = resolve(&deployment("m", &own), &defaults)
        .unwrap()
        .etcd
        .unwrap();
    assert_eq!(etcd.endpoints, ["mine:2379"]);
}
