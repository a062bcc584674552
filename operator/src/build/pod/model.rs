//! How a pod gets at the model's files.

use k8s_openapi::api::core::v1::{
    Container, EmptyDirVolumeSource, EnvVar, HostPathVolumeSource, ImageVolumeSource,
    PersistentVolumeClaimVolumeSource, SecretVolumeSource, Volume, VolumeMount,
};

use super::flags::Args;
use super::{mount, mount_read_only, parts};
use crate::api::{Cache, Claim, HostPath, Model};

const MODEL: &str = "/model";
const DOWNLOADS: &str = "/cache/model";
const SECRETS: &str = "/etc/millrace/source";

/// A folder, and what puts it there.
#[derive(Debug, Default)]
pub struct Access {
    /// `None`: the binary brings the model.
    pub folder: Option<String>,
    pub volumes: Vec<Volume>,
    pub mounts: Vec<VolumeMount>,
    /// Downloads it, before anything else starts.
    pub fetch: Option<Container>,
}

pub fn access(model: &Model) -> Access {
    let source = &model.source;
    if let Some(claim) = &source.persistent_volume_claim {
        return mounted(self::claim("model", claim, true), claim.path.as_deref());
    }
    if let Some(folder) = &source.host_path {
        return mounted(host_path("model", folder), None);
    }
    if let Some(image) = &source.image {
        let volume = Volume {
            name: "model".to_owned(),
            image: Some(ImageVolumeSource {
                reference: Some(image.reference.clone()),
                pull_policy: image.pull_policy.clone(),
            }),
            ..Volume::default()
        };
        return mounted(volume, image.path.as_deref());
    }
    let mut args = Args::new("fetch");
    if let Some(http) = &source.http {
        args.set("--url", &http.url);
        let token = http.secret_name.as_deref();
        let file = token.map(|_| format!("{SECRETS}/token"));
        args.maybe("--token-file", file);
        let mut access = downloaded(model, args, &http.checksum, Vec::new());
        if let (Some(secret), Some(fetch)) = (token, &mut access.fetch) {
            access.volumes.push(self::secret("source", secret));
            let mounts = fetch.volume_mounts.get_or_insert_default();
            mounts.push(mount_read_only("source", SECRETS));
        }
        return access;
    }
    if let Some(s3) = &source.s3 {
        args.set("--url", &s3.url);
        args.maybe("--s3-endpoint", s3.endpoint.as_ref());
        args.maybe("--s3-region", s3.region.as_ref());
        let keys = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
        let secret = s3.secret_name.iter();
        let env = secret.flat_map(|secret| keys.map(|key| parts::secret(key, secret)));
        return downloaded(model, args, &s3.checksum, env.collect());
    }
    Access::default()
}

/// The whole volume, with `path` within it: a folder of links that lead out of it, as download caches
/// have them, is found complete, and a path that is not there is the worker's to complain of.
fn mounted(volume: Volume, path: Option<&str>) -> Access {
    Access {
        folder: Some(within(MODEL, path)),
        mounts: vec![mount_read_only(&volume.name, MODEL)],
        volumes: vec![volume],
        fetch: None,
    }
}

/// Folders are called by their checksum: other models, and other revisions of this one, may be beside
/// it.
fn downloaded(model: &Model, mut args: Args, checksum: &str, env: Vec<EnvVar>) -> Access {
    let cache = model.cache.clone().unwrap_or_default();
    let (volume, path) = download_volume(&cache);
    let digits = checksum.trim_start_matches("sha256:");
    let folder = format!("{}/{digits}", within(DOWNLOADS, path));
    args.set("--checksum", checksum).set("--to", &folder);
    Access {
        folder: Some(folder),
        mounts: vec![mount_read_only(&volume.name, DOWNLOADS)],
        fetch: Some(Container {
            name: "fetch".to_owned(),
            args: Some(args.and(&[])),
            env: Some(env),
            volume_mounts: Some(vec![mount(&volume.name, DOWNLOADS)]),
            ..Container::default()
        }),
        volumes: vec![volume],
    }
}

fn download_volume(cache: &Cache) -> (Volume, Option<&str>) {
    let name = "download";
    if let Some(claim) = &cache.persistent_volume_claim {
        return (self::claim(name, claim, false), claim.path.as_deref());
    }
    if let Some(folder) = &cache.host_path {
        return (host_path(name, folder), None);
    }
    let volume = Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource {
            size_limit: cache.size_limit.clone(),
            ..EmptyDirVolumeSource::default()
        }),
        ..Volume::default()
    };
    (volume, None)
}

fn claim(name: &str, claim: &Claim, read_only: bool) -> Volume {
    Volume {
        name: name.to_owned(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: claim.claim_name.clone(),
            read_only: read_only.then_some(true),
        }),
        ..Volume::default()
    }
}

fn host_path(name: &str, folder: &HostPath) -> Volume {
    Volume {
        name: name.to_owned(),
        host_path: Some(HostPathVolumeSource {
            path: folder.path.clone(),
            // A folder that the kubelet made would be empty, and root's.
            type_: Some("Directory".to_owned()),
        }),
        ..Volume::default()
    }
}

/// A Secret as a folder: what changes in it changes in the pod.
pub fn secret(name: &str, secret: &str) -> Volume {
    Volume {
        name: name.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(secret.to_owned()),
            default_mode: Some(0o440),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    }
}

fn within(root: &str, path: Option<&str>) -> String {
    match path.map(|path| path.trim_matches('/')) {
        None | Some("") => root.to_owned(),
        Some(path) => format!("{root}/{path}"),
    }
}
