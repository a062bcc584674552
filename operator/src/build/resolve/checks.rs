//! Checks of single values, and of what belongs to no part in particular.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::Invalid;
use crate::api::{ModelDeploymentSpec, Rollout};
use crate::build::names;

/// What was found so far.
#[derive(Debug, Default)]
pub struct Report(Vec<Invalid>);

impl Report {
    pub fn add(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.0.push(Invalid {
            field: field.into(),
            message: message.into(),
        });
    }

    pub fn done(self) -> Result<(), Vec<Invalid>> {
        match self.0.is_empty() {
            true => Ok(()),
            false => Err(self.0),
        }
    }
}

/// The definition's rules say the same; they may be those of an older version.
pub fn name(report: &mut Report, name: &str) {
    let field = "metadata.name";
    let starts = name.starts_with(|c: char| c.is_ascii_lowercase());
    if !starts || !is_label(name) {
        report.add(
            field,
            format!("{name:?} cannot be a Service's name; begin with a letter, and use lowercase letters, digits and dashes only"),
        );
    }
    if name.len() > names::LONGEST {
        report.add(
            field,
            format!(
                "it has {} characters; names of pods are made of it, so use at most {}",
                name.len(),
                names::LONGEST
            ),
        );
    }
    if name.ends_with(names::ROUTER_ENDING) {
        report.add(
            field,
            "it ends in -router, which is how the routers of ModelDeployments are called; choose another name",
        );
    }
}

pub fn images(report: &mut Report, spec: &ModelDeploymentSpec) {
    if let Some(image) = &spec.image {
        self::image(report, "spec.image", image);
    }
    pull_policy(
        report,
        "spec.imagePullPolicy",
        spec.image_pull_policy.as_deref(),
    );
    for (at, secret) in spec.image_pull_secrets.iter().enumerate() {
        let field = format!("spec.imagePullSecrets[{at}]");
        object_name(report, &field, secret, "a Secret's");
        if spec.image_pull_secrets[..at].contains(secret) {
            report.add(field, format!("{secret:?} is there twice; remove one"));
        }
    }
}

pub fn image(report: &mut Report, field: &str, image: &str) {
    if image.is_empty() || image.contains(char::is_whitespace) {
        report.add(
            field,
            format!(
                "{image:?} names no image; write it as registry/repository:tag or with a digest"
            ),
        );
    }
}

pub fn pull_policy(report: &mut Report, field: &str, policy: Option<&str>) {
    if let Some(policy) = policy
        && !["Always", "IfNotPresent", "Never"].contains(&policy)
    {
        report.add(
            field,
            format!(
                "{policy:?} is no pull policy; set Always, IfNotPresent or Never, or remove it"
            ),
        );
    }
}

pub fn rollout(report: &mut Report, rollout: &Rollout) {
    let fields = [
        ("maxSurge", &rollout.max_surge),
        ("maxUnavailable", &rollout.max_unavailable),
    ];
    for (name, value) in fields {
        let fine = match value {
            None => true,
            Some(IntOrString::Int(pairs)) => *pairs >= 0,
            Some(IntOrString::String(text)) => text
                .strip_suffix('%')
                .is_some_and(|percent| percent.parse::<u16>().is_ok()),
        };
        if !fine {
            report.add(
                format!("spec.rollout.{name}"),
                "it is neither a number of pairs nor a percentage; write 1 or \"25%\", for example",
            );
        }
    }
}

pub fn etcd(report: &mut Report, spec: &ModelDeploymentSpec, endpoints: &[String]) {
    if let Some(etcd) = &spec.etcd {
        for (at, endpoint) in etcd.endpoints.iter().enumerate() {
            let parts = endpoint.rsplit_once(':');
            let fine = parts.is_some_and(|(host, port)| {
                !host.is_empty()
                    && !host.contains(['/', ',', ' '])
                    && port.parse::<u16>().is_ok_and(|port| port > 0)
            });
            if !fine {
                report.add(
                    format!("spec.etcd.endpoints[{at}]"),
                    format!("{endpoint:?} is no address; write host:port, such as etcd.databases.svc:2379"),
                );
            }
        }
    }
    let groups = |ranks: Option<i32>| ranks.unwrap_or(1) > 1;
    let grouped =
        groups(spec.decode.ranks) || spec.prefill.as_ref().is_some_and(|pool| groups(pool.ranks));
    if grouped && endpoints.is_empty() && spec.router.replicas.unwrap_or(1) > 1 {
        report.add(
            "spec.router.replicas",
            "several routers can agree on the epochs of groups (ranks above 1) only through etcd, and there is none; set spec.etcd.endpoints, start the operator with --etcd, or set 1 router",
        );
    }
}

/// As RFC 1123 has labels: what most names are, or parts of them.
pub fn is_label(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=63).contains(&text.len())
        && text.chars().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

pub fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_label)
}

/// `prefix/name` or `name`, as labels and annotations are called.
pub fn is_key(text: &str) -> bool {
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    let part = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let ends = |c: char| c.is_ascii_alphanumeric();
    prefix.is_none_or(is_subdomain)
        && (1..=63).contains(&name.len())
        && name.chars().all(part)
        && name.starts_with(ends)
        && name.ends_with(ends)
}

pub fn is_label_value(text: &str) -> bool {
    text.is_empty() || (!text.contains('/') && is_key(text))
}

/// `whose`: "a Secret's", for the message.
pub fn object_name(report: &mut Report, field: &str, name: &str, whose: &str) {
    if !is_subdomain(name) {
        report.add(
            field,
            format!(
                "{name:?} cannot be {whose} name; use lowercase letters, digits, dashes and dots"
            ),
        );
    }
}

/// The key of a node's label.
pub fn node_label(report: &mut Report, field: &str, key: Option<&str>) {
    if let Some(key) = key
        && !is_key(key)
    {
        report.add(
            field,
            format!("{key:?} cannot be a node label's key; write one such as topology.kubernetes.io/zone"),
        );
    }
}
