//! What the pods of routers and workers have in common: image, model, folders, security, and what
//! people want otherwise.

pub mod flags;
pub mod model;
pub mod parts;
pub mod reserved;
pub mod security;

use k8s_openapi::api::core::v1::{
    Container, EmptyDirVolumeSource, PodSpec, PodTemplateSpec, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::meta::{self, Labels};
use crate::api::{Model, PodOverrides};

/// Multus reads it.
pub const NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";
/// A container that fails says why in its log, whose end its status then carries.
const WITH_ITS_LOG: &str = "FallbackToLogsOnError";

/// What is different between pods.
pub struct Parts<'a> {
    pub image: &'a str,
    pub pull_policy: Option<&'a str>,
    pub pull_secrets: &'a [String],
    pub model: &'a Model,
    pub overrides: &'a PodOverrides,
    pub labels: Labels,
    /// Whom those who spread pods mean, unless they say so.
    pub peers: Labels,
    /// The one container; the image and what all have is added to it.
    pub container: Container,
    pub volumes: Vec<Volume>,
    /// From being told to stop to being killed.
    pub grace_seconds: i64,
    /// For RDMA, which pins memory.
    pub lock_memory: bool,
}

pub fn template(parts: Parts<'_>) -> PodTemplateSpec {
    let overrides = parts.overrides;
    let mut container = Container {
        image: Some(parts.image.to_owned()),
        image_pull_policy: parts.pull_policy.map(str::to_owned),
        security_context: Some(security::container(parts.lock_memory)),
        termination_message_policy: Some(WITH_ITS_LOG.to_owned()),
        ..parts.container
    };
    let mut model = model::access(parts.model);
    if let Some(fetch) = &mut model.fetch {
        fetch.image = container.image.clone();
        fetch.image_pull_policy = container.image_pull_policy.clone();
        fetch.security_context = Some(security::container(false));
        fetch.termination_message_policy = Some(WITH_ITS_LOG.to_owned());
        fetch.resources = parts::without_devices(container.resources.as_ref());
        fetch
            .volume_mounts
            .get_or_insert_default()
            .push(mount("tmp", "/tmp"));
        parts::merge_env(fetch.env.get_or_insert_default(), &overrides.env);
    }
    let mounts = container.volume_mounts.get_or_insert_default();
    mounts.extend([mount("tmp", "/tmp"), mount("cache", "/cache")]);
    mounts.extend(model.mounts);
    mounts.extend_from_slice(&overrides.volume_mounts);
    parts::merge_env(container.env.get_or_insert_default(), &overrides.env);
    let mut volumes = parts.volumes;
    volumes.extend([scratch("tmp"), scratch("cache")]);
    volumes.extend(model.volumes);
    volumes.extend_from_slice(&overrides.volumes);

    let mut labels = overrides.labels.clone();
    labels.extend(parts.labels);
    let mut spread = overrides.topology_spread_constraints.clone();
    for constraint in &mut spread {
        let selector = &mut constraint.label_selector;
        selector.get_or_insert_with(|| meta::matching(parts.peers.clone()));
    }
    let host_network = overrides.host_network.filter(|on| *on);
    let spec = PodSpec {
        affinity: overrides.affinity.clone(),
        // Nothing in them asks the API server.
        automount_service_account_token: Some(false),
        containers: vec![container],
        dns_policy: host_network.map(|_| "ClusterFirstWithHostNet".to_owned()),
        // A Service called `millrace-http` would set MILLRACE_HTTP_PORT, and so on.
        enable_service_links: Some(false),
        host_network,
        image_pull_secrets: some(parts::references(parts.pull_secrets)),
        init_containers: model.fetch.map(|fetch| vec![fetch]),
        node_selector: (!overrides.node_selector.is_empty())
            .then(|| overrides.node_selector.clone()),
        priority_class_name: overrides.priority_class_name.clone(),
        runtime_class_name: overrides.runtime_class_name.clone(),
        scheduler_name: overrides.scheduler_name.clone(),
        security_context: Some(security::pod()),
        service_account_name: overrides.service_account_name.clone(),
        termination_grace_period_seconds: Some(parts.grace_seconds),
        tolerations: some(overrides.tolerations.clone()),
        topology_spread_constraints: some(spread),
        volumes: Some(volumes),
        ..PodSpec::default()
    };
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels),
            annotations: (!overrides.annotations.is_empty()).then(|| overrides.annotations.clone()),
            ..ObjectMeta::default()
        }),
        spec: Some(spec),
    }
}

/// Lists that are empty are not applied.
pub fn some<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

pub fn mount(volume: &str, folder: &str) -> VolumeMount {
    VolumeMount {
        name: volume.to_owned(),
        mount_path: folder.to_owned(),
        ..VolumeMount::default()
    }
}

pub fn mount_read_only(volume: &str, folder: &str) -> VolumeMount {
    VolumeMount {
        read_only: Some(true),
        ..mount(volume, folder)
    }
}

fn scratch(name: &str) -> Volume {
    Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource::default()),
        ..Volume::default()
    }
}
