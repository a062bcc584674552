//! Small parts of pods.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    ContainerPort, EnvVar, EnvVarSource, HTTPGetAction, LocalObjectReference, ObjectFieldSelector,
    Probe, ResourceRequirements, SecretKeySelector,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::build::ports::Port;

pub fn value(name: &str, value: impl ToString) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value: Some(value.to_string()),
        value_from: None,
    }
}

/// A field of the pod itself.
pub fn field(name: &str, path: &str) -> EnvVar {
    from(
        name,
        EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                // As the API server would fill in: two managers of one field would differ otherwise.
                api_version: Some("v1".to_owned()),
                field_path: path.to_owned(),
            }),
            ..EnvVarSource::default()
        },
    )
}

/// A key of a Secret, under the same name.
pub fn secret(key: &str, secret: &str) -> EnvVar {
    from(
        key,
        EnvVarSource {
            secret_key_ref: Some(SecretKeySelector {
                name: secret.to_owned(),
                key: key.to_owned(),
                optional: None,
            }),
            ..EnvVarSource::default()
        },
    )
}

fn from(name: &str, source: EnvVarSource) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value: None,
        value_from: Some(source),
    }
}

/// One of a name that is there takes its place.
pub fn merge_env(env: &mut Vec<EnvVar>, more: &[EnvVar]) {
    for variable in more {
        match env.iter_mut().find(|it| it.name == variable.name) {
            Some(earlier) => *earlier = variable.clone(),
            None => env.push(variable.clone()),
        }
    }
}

pub fn references(names: &[String]) -> Vec<LocalObjectReference> {
    let reference = |name: &String| LocalObjectReference { name: name.clone() };
    names.iter().map(reference).collect()
}

pub fn ports(ports: &[Port]) -> Vec<ContainerPort> {
    let port = |port: &Port| ContainerPort {
        name: Some(port.name.to_owned()),
        container_port: port.number,
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    };
    ports.iter().map(port).collect()
}

/// `failures` answers in a row, `period` seconds apart.
pub fn probe(port: Port, path: &str, period: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String(port.name.to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        failure_threshold: Some(failures),
        timeout_seconds: Some(5),
        ..Probe::default()
    }
}

/// Limits and requests with `more` among the limits, unless those say otherwise.
pub fn with_devices(
    resources: Option<&ResourceRequirements>,
    more: impl IntoIterator<Item = (String, Quantity)>,
) -> Option<ResourceRequirements> {
    let mut all = resources.cloned().unwrap_or_default();
    for (name, amount) in more {
        let limits = all.limits.get_or_insert_default();
        limits.entry(name).or_insert(amount);
    }
    (all != ResourceRequirements::default()).then_some(all)
}

/// For containers that run before: devices are not theirs.
pub fn without_devices(resources: Option<&ResourceRequirements>) -> Option<ResourceRequirements> {
    let plain = |amounts: &Option<BTreeMap<String, Quantity>>| {
        let amounts = amounts
            .iter()
            .flatten()
            .filter(|(name, _)| !name.contains('/'));
        let amounts: BTreeMap<_, _> = amounts
            .map(|(name, it)| (name.clone(), it.clone()))
            .collect();
        (!amounts.is_empty()).then_some(amounts)
    };
    resources.map(|resources| ResourceRequirements {
        limits: plain(&resources.limits),
        requests: plain(&resources.requests),
        claims: None,
    })
}
