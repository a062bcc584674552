//! Names under which routers are reached.

use k8s_openapi::api::core::v1::{ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::metadata;
use crate::build::ports::{Port, router};
use crate::build::{Child, Resolved, kinds, meta, names};

/// For clients: routers that can serve; with `wakes` also those that cannot yet.
pub fn clients(resolved: &Resolved, wakes: bool) -> Child {
    let service = &resolved.router.service;
    let tls = resolved.router.tls.is_some();
    let (http, grpc) = match tls {
        true => ("https", None),
        false => ("http", Some("kubernetes.io/h2c")),
    };
    let spec = ServiceSpec {
        type_: Some(
            service
                .type_
                .clone()
                .unwrap_or_else(|| "ClusterIP".to_owned()),
        ),
        selector: Some(meta::routers(&resolved.name)),
        ports: Some(vec![
            port(router::HTTP, Some(http)),
            port(router::GRPC, grpc),
        ]),
        publish_not_ready_addresses: wakes.then_some(true),
        ..ServiceSpec::default()
    };
    let metadata = ObjectMeta {
        annotations: (!service.annotations.is_empty()).then(|| service.annotations.clone()),
        ..metadata(resolved, names::service(&resolved.name))
    };
    Child::with_spec(&kinds::SERVICE, metadata, &spec)
}

/// For workers, which attach to every router there is, also to one that waits for them to be ready.
pub fn workers(resolved: &Resolved) -> Child {
    let spec = ServiceSpec {
        cluster_ip: Some("None".to_owned()),
        publish_not_ready_addresses: Some(true),
        selector: Some(meta::routers(&resolved.name)),
        ports: Some(vec![port(router::WORKERS, None)]),
        ..ServiceSpec::default()
    };
    let metadata = metadata(resolved, names::router(&resolved.name));
    Child::with_spec(&kinds::SERVICE, metadata, &spec)
}

pub fn port(port: Port, protocol: Option<&str>) -> ServicePort {
    ServicePort {
        name: Some(port.name.to_owned()),
        port: port.number,
        protocol: Some("TCP".to_owned()),
        target_port: Some(IntOrString::String(port.name.to_owned())),
        app_protocol: protocol.map(str::to_owned),
        node_port: None,
    }
}
