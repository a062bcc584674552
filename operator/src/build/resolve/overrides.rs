//! What people want otherwise in pods, as far as that can be had.

use super::checks::{self, Report};
use crate::api::PodOverrides;
use crate::build::meta::RESERVED_LABELS;
use crate::build::pod::{flags::Flag, reserved};

pub fn check(report: &mut Report, root: &str, pod: &PodOverrides, flags: &[Flag]) {
    keys(report, root, pod);
    names(report, root, pod);
    env(report, root, pod);
    args(report, root, pod, flags);
    volumes(report, root, pod);
}

fn keys(report: &mut Report, root: &str, pod: &PodOverrides) {
    for (key, value) in &pod.labels {
        let field = format!("{root}.labels[{key}]");
        if RESERVED_LABELS.iter().any(|prefix| key.starts_with(prefix)) {
            report.add(
                &field,
                "the operator sets such labels and finds its pods by them; choose another key",
            );
        }
        if !checks::is_key(key) || !checks::is_label_value(value) {
            report.add(field, format!("{key:?}: {value:?} cannot be a label; keys are example.org/name, values have at most 63 letters, digits, dashes, dots and underscores"));
        }
    }
    for key in pod.annotations.keys().filter(|key| !checks::is_key(key)) {
        report.add(
            format!("{root}.annotations[{key}]"),
            format!("{key:?} cannot be an annotation's key; write example.org/name"),
        );
    }
    for (key, value) in &pod.node_selector {
        if !checks::is_key(key) || !checks::is_label_value(value) {
            report.add(format!("{root}.nodeSelector[{key}]"), format!("{key:?}: {value:?} cannot be a node's label; write such as kubernetes.io/arch: amd64"));
        }
    }
}

fn names(report: &mut Report, root: &str, pod: &PodOverrides) {
    let names = [
        (
            "priorityClassName",
            &pod.priority_class_name,
            "a PriorityClass's",
        ),
        ("schedulerName", &pod.scheduler_name, "a scheduler's"),
        (
            "runtimeClassName",
            &pod.runtime_class_name,
            "a RuntimeClass's",
        ),
        (
            "serviceAccountName",
            &pod.service_account_name,
            "a ServiceAccount's",
        ),
    ];
    for (field, name, whose) in names {
        if let Some(name) = name {
            checks::object_name(report, &format!("{root}.{field}"), name, whose);
        }
    }
    let spreads = &pod.topology_spread_constraints;
    for (at, spread) in spreads.iter().enumerate() {
        let same = |other: &&_| {
            let other: &k8s_openapi::api::core::v1::TopologySpreadConstraint = other;
            other.topology_key == spread.topology_key
                && other.when_unsatisfiable == spread.when_unsatisfiable
        };
        if spreads[..at].iter().any(|other| same(&other)) {
            report.add(
                format!("{root}.topologySpreadConstraints[{at}]"),
                "an earlier one has the same topologyKey and whenUnsatisfiable; Kubernetes takes one of these, so remove the other",
            );
        }
    }
}

fn env(report: &mut Report, root: &str, pod: &PodOverrides) {
    for (at, variable) in pod.env.iter().enumerate() {
        let field = format!("{root}.env[{at}].name");
        let name = &variable.name;
        if name.is_empty() || name.contains(['=', '\0']) {
            report.add(
                &field,
                format!("{name:?} cannot be a variable's name; leave out ="),
            );
        }
        if let Some((_, instead)) = reserved::ENV.iter().find(|(reserved, _)| reserved == name) {
            report.add(
                &field,
                format!("{name} is what the operator tells workers apart by; remove it{instead}"),
            );
        }
        if pod.env[..at].iter().any(|earlier| earlier.name == *name) {
            report.add(field, format!("{name} is there twice; remove one"));
        }
    }
}

fn args(report: &mut Report, root: &str, pod: &PodOverrides, flags: &[Flag]) {
    for (at, arg) in pod.args.iter().enumerate() {
        let flag = arg.split('=').next().unwrap_or_default();
        if let Some(reserved) = flags.iter().find(|reserved| reserved.flag == flag) {
            report.add(
                format!("{root}.args[{at}]"),
                format!("{flag} is the operator's to set; {}", reserved.instead),
            );
        }
    }
}

fn volumes(report: &mut Report, root: &str, pod: &PodOverrides) {
    for (at, volume) in pod.volumes.iter().enumerate() {
        let field = format!("{root}.volumes[{at}].name");
        let name = &volume.name;
        if !checks::is_label(name) {
            report.add(
                &field,
                format!(
                    "{name:?} cannot be a volume's name; use lowercase letters, digits and dashes"
                ),
            );
        }
        if reserved::VOLUMES.contains(&name.as_str()) {
            report.add(
                &field,
                format!("the operator has a volume {name:?} itself; choose another name"),
            );
        }
        if pod.volumes[..at]
            .iter()
            .any(|earlier| earlier.name == *name)
        {
            report.add(field, format!("{name:?} is there twice; remove one"));
        }
    }
    for (at, mount) in pod.volume_mounts.iter().enumerate() {
        let field = format!("{root}.volumeMounts[{at}]");
        if !pod.volumes.iter().any(|volume| volume.name == mount.name) {
            report.add(
                format!("{field}.name"),
                format!(
                    "there is no volume {:?} under {root}.volumes; add one, or correct the name",
                    mount.name
                ),
            );
        }
        let path = mount.mount_path.trim_end_matches('/');
        let ours = reserved::FOLDERS.iter().find(|folder| {
            path == **folder
                || path
                    .strip_prefix(**folder)
                    .is_some_and(|rest| rest.starts_with('/'))
        });
        if !path.starts_with('/') {
            report.add(
                format!("{field}.mountPath"),
                format!(
                    "{:?} is no full path of a folder; begin with /",
                    mount.mount_path
                ),
            );
        } else if let Some(folder) = ours {
            report.add(
                format!("{field}.mountPath"),
                format!("{folder} is the operator's to mount; choose another folder"),
            );
        }
        if pod.volume_mounts[..at]
            .iter()
            .any(|earlier| earlier.mount_path == mount.mount_path)
        {
            report.add(
                format!("{field}.mountPath"),
                format!("{:?} is there twice; remove one", mount.mount_path),
            );
        }
    }
}
