//! Where the model comes from, and what it is called.

use super::checks::{self, Report};
use super::quantity;
use crate::api::{Cache, Claim, HostPath, Model};

/// With the served names that it has without any.
pub fn resolve(report: &mut Report, model: &Model, deployment: &str) -> Model {
    source(report, model);
    served_names(report, &model.served_names);
    let mut resolved = model.clone();
    if resolved.served_names.is_empty() {
        resolved.served_names.push(deployment.to_owned());
    }
    resolved
}

fn source(report: &mut Report, model: &Model) {
    let source = &model.source;
    let field = |name| format!("spec.model.source.{name}");
    let given = [
        source.builtin.is_some(),
        source.persistent_volume_claim.is_some(),
        source.host_path.is_some(),
        source.image.is_some(),
        source.http.is_some(),
        source.s3.is_some(),
    ];
    if given.into_iter().filter(|given| *given).count() != 1 {
        report.add(
            "spec.model.source",
            "set exactly one of builtin, persistentVolumeClaim, hostPath, image, http and s3",
        );
    }
    if let Some(it) = &source.persistent_volume_claim {
        claim(report, &field("persistentVolumeClaim"), it);
    }
    if let Some(it) = &source.host_path {
        host_path(report, &field("hostPath"), it);
    }
    if let Some(image) = &source.image {
        checks::image(report, &field("image.reference"), &image.reference);
        checks::pull_policy(
            report,
            &field("image.pullPolicy"),
            image.pull_policy.as_deref(),
        );
        relative(report, &field("image.path"), image.path.as_deref());
    }
    if let Some(http) = &source.http
        && let Some(name) = &http.secret_name
    {
        checks::object_name(report, &field("http.secretName"), name, "a Secret's");
    }
    if let Some(s3) = &source.s3 {
        if let Some(name) = &s3.secret_name {
            checks::object_name(report, &field("s3.secretName"), name, "a Secret's");
        }
        if let Some(endpoint) = &s3.endpoint
            && !endpoint.starts_with("https://")
            && !endpoint.starts_with("http://")
        {
            report.add(
                field("s3.endpoint"),
                format!("{endpoint:?} is no URL; begin with https:// or http://"),
            );
        }
    }
    if let Some(it) = &model.cache {
        match source.http.is_some() || source.s3.is_some() {
            true => cache(report, it),
            false => report.add(
                "spec.model.cache",
                "only downloads are cached, and this source is read where it is; remove cache",
            ),
        }
    }
}

fn cache(report: &mut Report, cache: &Cache) {
    let field = |name| format!("spec.model.cache.{name}");
    if let Some(it) = &cache.persistent_volume_claim {
        claim(report, &field("persistentVolumeClaim"), it);
    }
    if let Some(it) = &cache.host_path {
        host_path(report, &field("hostPath"), it);
    }
    if let Some(limit) = &cache.size_limit {
        quantity::check(report, &field("sizeLimit"), limit);
        if cache.persistent_volume_claim.is_some() || cache.host_path.is_some() {
            report.add(
                field("sizeLimit"),
                "it limits an emptyDir, which this cache is not; remove it",
            );
        }
    }
    if cache.persistent_volume_claim.is_some() && cache.host_path.is_some() {
        report.add(
            "spec.model.cache",
            "set at most one of persistentVolumeClaim and hostPath",
        );
    }
}

fn claim(report: &mut Report, field: &str, claim: &Claim) {
    let name = format!("{field}.claimName");
    checks::object_name(
        report,
        &name,
        &claim.claim_name,
        "a PersistentVolumeClaim's",
    );
    relative(report, &format!("{field}.path"), claim.path.as_deref());
}

fn host_path(report: &mut Report, field: &str, host_path: &HostPath) {
    let path = &host_path.path;
    if !path.starts_with('/') || climbs(path) {
        report.add(
            format!("{field}.path"),
            format!("{path:?} is no full path; begin with / and leave out .."),
        );
    }
}

fn relative(report: &mut Report, field: &str, path: Option<&str>) {
    if let Some(path) = path
        && (path.starts_with('/') || climbs(path))
    {
        report.add(
            field,
            format!("{path:?} is not within the volume; leave out / at the beginning, and .."),
        );
    }
}

fn climbs(path: &str) -> bool {
    path.split('/').any(|part| part == "..")
}

fn served_names(report: &mut Report, names: &[String]) {
    for (at, name) in names.iter().enumerate() {
        let field = format!("spec.model.servedNames[{at}]");
        if name.is_empty() || name.contains([',', '\n', '\0']) {
            report.add(
                field,
                format!("{name:?} cannot be a model's name; it must not be empty or contain commas or line breaks"),
            );
        } else if names[..at].contains(name) {
            report.add(field, format!("{name:?} is there twice; remove one"));
        }
    }
}
