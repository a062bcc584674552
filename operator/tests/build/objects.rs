//! What holds for all objects.

use std::fs;
use std::path::{Path, PathBuf};

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::scheduling::v1beta1::PodGroup;
use kube::ResourceExt as _;
use millrace_operator::api::{ModelDeployment, Role, WorkerPool};
use millrace_operator::build::{Child, Resolved, group, kinds, pool, resolve, router};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::cases::{PRIVILEGED, RESTRICTED, defaults, everything, resolved, spec, worker_pool};

/// Nothing is lost and nothing added on the way through its type: no field is misspelt.
fn is_a<T: DeserializeOwned + Serialize>(child: &Child) {
    let typed: T = serde_json::from_value(child.object().clone())
        .unwrap_or_else(|error| panic!("{}: {error}", child.name()));
    let back = serde_json::to_value(typed).unwrap();
    assert_eq!(&back, child.object(), "{}", child.name());
}

#[test]
fn objects_are_what_their_types_say() {
    for (case, spec) in RESTRICTED.into_iter().chain(PRIVILEGED) {
        for child in everything(&resolved(spec), true) {
            let kind = child.kind();
            match kind.kind {
                "Service" => is_a::<Service>(&child),
                "Deployment" => is_a::<Deployment>(&child),
                "StatefulSet" => is_a::<StatefulSet>(&child),
                "PodDisruptionBudget" => is_a::<PodDisruptionBudget>(&child),
                "NetworkPolicy" => is_a::<NetworkPolicy>(&child),
                "PodGroup" => is_a::<PodGroup>(&child),
                "WorkerPool" => is_a::<WorkerPool>(&child),
                "PodMonitor" | "HTTPRoute" | "GRPCRoute" => assert!(kind.optional),
                other => panic!("{case}: {other}"),
            }
            assert!(kinds::KINDS.contains(&kind), "{case}: {}", kind.kind);
            assert_eq!(child.namespace(), "models", "{case}");
            assert_eq!(child.object()["metadata"]["name"], child.name(), "{case}");
            nothing_is_null(child.name(), child.object());
        }
    }
}

/// Null would take a field from whoever owns it.
fn nothing_is_null(name: &str, value: &Value) {
    match value {
        Value::Null => panic!("{name} has a null"),
        Value::Object(fields) => fields.values().for_each(|it| nothing_is_null(name, it)),
        Value::Array(items) => items.iter().for_each(|it| nothing_is_null(name, it)),
        _ => {}
    }
}

#[test]
fn objects_say_whose_they_are() {
    let resolved = resolved(spec("groups"));
    for child in everything(&resolved, true) {
        let metadata = &child.object()["metadata"];
        let labels = &metadata["labels"];
        assert_eq!(labels["app.kubernetes.io/name"], "millrace");
        assert_eq!(labels["app.kubernetes.io/instance"], "m");
        assert_eq!(labels["app.kubernetes.io/managed-by"], "millrace-operator");
        assert_eq!(labels["serving.millrace.dev/deployment"], "m");
        let role = &labels["serving.millrace.dev/role"];
        assert_eq!(role, &labels["app.kubernetes.io/component"]);
        let owner = &metadata["ownerReferences"][0];
        assert_eq!(owner["controller"], true);
        assert_eq!(owner["blockOwnerDeletion"], true);
        let of_pool = group::SHARED_KINDS.iter().chain(&group::GROUP_KINDS);
        let of_pool = role != "router" && of_pool.into_iter().any(|kind| *kind == child.kind());
        let (kind, uid) = match of_pool {
            true => ("WorkerPool", "uid-of-the-pool"),
            false => ("ModelDeployment", "uid-of-the-deployment"),
        };
        assert_eq!(owner["kind"], kind, "{}", child.name());
        assert_eq!(owner["uid"], uid);
        assert_eq!(owner["apiVersion"], "serving.millrace.dev/v1alpha1");
        if role != "router" {
            assert_eq!(
                labels["serving.millrace.dev/revision"],
                resolved.revision.as_str()
            );
        }
    }
}

#[test]
fn kinds_are_those_that_are_pruned() {
    for (_, spec) in RESTRICTED.into_iter().chain(PRIVILEGED) {
        let resolved = resolved(spec);
        let always: Vec<_> = router::objects(&resolved, false)
            .iter()
            .filter(|child| !router::KINDS.contains(&child.kind()))
            .map(|child| {
                (
                    child.kind().kind,
                    child.name().replace(&resolved.name, "NAME"),
                )
            })
            .collect();
        let expected = [
            ("Service", "NAME"),
            ("Service", "NAME-router"),
            ("Deployment", "NAME-router"),
        ];
        assert_eq!(always, expected.map(|(kind, name)| (kind, name.to_owned())));
        let pool = worker_pool(&resolved, Role::Decode).unwrap();
        for child in group::shared(&pool) {
            assert!(group::SHARED_KINDS.contains(&child.kind()));
        }
        for child in group::group(&pool, 3, true) {
            assert!(group::GROUP_KINDS.contains(&child.kind()));
        }
    }
}

#[test]
fn replicas_of_pools_are_left_to_whoever_scales() {
    let resolved = resolved(spec("split"));
    let fixed = pool::pool(&resolved, Role::Decode, Some(3)).unwrap();
    assert_eq!(fixed.object()["spec"]["replicas"], 3);
    let free = pool::pool(&resolved, Role::Decode, None).unwrap();
    assert!(free.object()["spec"].get("replicas").is_none());
    assert_eq!(fixed.name(), format!("m-{}-decode", resolved.revision));
    // The rest is the same.
    let mut fixed = fixed.object().clone();
    fixed["spec"]
        .as_object_mut()
        .unwrap()
        .shift_remove("replicas");
    assert_eq!(&fixed, free.object());
    let aggregated = crate::cases::resolved(spec("aggregated"));
    assert_eq!(pool::pool(&aggregated, Role::Prefill, Some(1)), None);
}

/// The chart's samples, by name, as they will be once workers compute on GPUs.
fn samples() -> Vec<(String, Resolved)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/millrace/samples");
    let files = fs::read_dir(folder)
        .unwrap()
        .map(|file| file.unwrap().path());
    let sample = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        if !text.contains("kind: ModelDeployment\n") {
            return None;
        }
        let mut deployment: ModelDeployment = serde_saphyr::from_str(&text).unwrap();
        deployment.metadata.namespace = Some("models".to_owned());
        deployment.metadata.uid = Some("uid-of-the-deployment".to_owned());
        let mut defaults = defaults();
        defaults.etcd = vec!["millrace-etcd.millrace-system.svc:2379".to_owned()];
        let resolved = resolve(&deployment, &defaults).unwrap_or_else(|invalid| {
            panic!("{}: {invalid:?}", path.display());
        });
        Some((deployment.name_any(), resolved))
    };
    files.filter_map(sample).collect()
}

#[test]
fn samples_can_be_carried_out() {
    assert!(samples().len() >= 3);
}

/// With OBJECTS_OUT, they are written there for tests/chart: as a cluster that serves PodGroups gets
/// them, and one that does not.
#[test]
fn objects_can_be_written_down() {
    let Ok(folder) = std::env::var("OBJECTS_OUT") else {
        return;
    };
    let cases = RESTRICTED.into_iter().chain(PRIVILEGED);
    let cases = cases.map(|(case, spec)| (case.to_owned(), resolved(spec)));
    let all: Vec<_> = cases.chain(samples()).collect();
    for (name, gang) in [("gangs", true), ("plain", false)] {
        let folder = Path::new(&folder).join(name);
        fs::create_dir_all(&folder).unwrap();
        for (case, resolved) in &all {
            let objects = everything(resolved, gang);
            let items: Vec<_> = objects.iter().map(Child::object).collect();
            let list = serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": items });
            let text = serde_json::to_string_pretty(&list).unwrap();
            fs::write(folder.join(format!("{case}.json")), text).unwrap();
        }
    }
}
