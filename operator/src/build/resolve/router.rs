//! The router, its Service and its routes.

use super::checks::{self, Report};
use super::{overrides, quantity};
use crate::api::{Gateway, ModelDeploymentSpec};
use crate::build::pod::flags;

pub fn check(report: &mut Report, spec: &ModelDeploymentSpec) {
    let router = &spec.router;
    quantity::resources(report, "spec.router.resources", router.resources.as_ref());
    overrides::check(report, "spec.router.pod", &router.pod, &flags::router());
    if router.pod.host_network == Some(true) && spec.network_policy.unwrap_or(true) {
        report.add(
            "spec.router.pod.hostNetwork",
            "policies cannot recognise pods in the host's network, so workers would not be reached; set spec.networkPolicy to false, or remove hostNetwork",
        );
    }
    if let Some(tls) = &router.tls {
        checks::object_name(
            report,
            "spec.router.tls.secretName",
            &tls.secret_name,
            "a Secret's",
        );
    }
    if let Some(auth) = &router.auth {
        checks::object_name(
            report,
            "spec.router.auth.secretName",
            &auth.secret_name,
            "a Secret's",
        );
    }
    let service = &router.service;
    if let Some(type_) = &service.type_
        && !["ClusterIP", "NodePort", "LoadBalancer"].contains(&type_.as_str())
    {
        report.add(
            "spec.router.service.type",
            format!("{type_:?} is no type of Services; set ClusterIP, NodePort or LoadBalancer"),
        );
    }
    for key in service
        .annotations
        .keys()
        .filter(|key| !checks::is_key(key))
    {
        report.add(
            format!("spec.router.service.annotations[{key}]"),
            format!("{key:?} cannot be an annotation's key; write example.org/name"),
        );
    }
    if let Some(gateway) = &router.gateway {
        self::gateway(report, gateway);
    }
    for (key, value) in &spec.monitoring.labels {
        if !checks::is_key(key) || !checks::is_label_value(value) {
            report.add(
                format!("spec.monitoring.labels[{key}]"),
                format!("{key:?}: {value:?} cannot be a label; write such as release: prometheus"),
            );
        }
    }
}

fn gateway(report: &mut Report, gateway: &Gateway) {
    let root = "spec.router.gateway";
    for (at, parent) in gateway.parents.iter().enumerate() {
        let field = format!("{root}.parents[{at}]");
        checks::object_name(
            report,
            &format!("{field}.name"),
            &parent.name,
            "a Gateway's",
        );
        if let Some(namespace) = &parent.namespace
            && !checks::is_label(namespace)
        {
            report.add(
                format!("{field}.namespace"),
                format!(
                    "{namespace:?} cannot be a namespace; use lowercase letters, digits and dashes"
                ),
            );
        }
        if let Some(section) = &parent.section_name {
            checks::object_name(
                report,
                &format!("{field}.sectionName"),
                section,
                "a listener's",
            );
        }
        if gateway.parents[..at].contains(parent) {
            report.add(field, "it is there twice; remove one");
        }
    }
    for (list, names) in [
        ("hostnames", &gateway.hostnames),
        ("grpcHostnames", &gateway.grpc_hostnames),
    ] {
        for (at, name) in names.iter().enumerate() {
            let field = format!("{root}.{list}[{at}]");
            if !checks::is_subdomain(name.strip_prefix("*.").unwrap_or(name)) {
                report.add(
                    &field,
                    format!(
                        "{name:?} is no hostname; write such as llm.example.org or *.example.org"
                    ),
                );
            }
            if names[..at].contains(name) {
                report.add(field, format!("{name:?} is there twice; remove one"));
            }
        }
    }
    let shared = gateway
        .grpc_hostnames
        .iter()
        .position(|name| gateway.hostnames.contains(name));
    if let Some(at) = shared {
        report.add(
            format!("{root}.grpcHostnames[{at}]"),
            "it is one of hostnames too, and a hostname is either an HTTPRoute's or a GRPCRoute's; choose another one",
        );
    } else if !gateway.grpc_hostnames.is_empty() && gateway.hostnames.is_empty() {
        report.add(
            format!("{root}.hostnames"),
            "without any, the HTTP API takes all hostnames of the listeners, also those of grpcHostnames; write which are the HTTP API's",
        );
    }
}
