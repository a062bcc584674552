//! The routers of a deployment, how they are reached, and who may reach whom.

mod deployment;
mod policies;
mod routes;
mod services;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

pub(super) use policies::budget;
pub(super) use services::port as service_port;

use super::kinds::Kind;
use super::{Child, Resolved, kinds, meta};

/// The kinds of [`objects`] that not every spec has: of what a deployment has of them with the role
/// `router`, everything goes that [`objects`] does not name any more.
pub static KINDS: [&Kind; 5] = [
    &kinds::DISRUPTION_BUDGET,
    &kinds::NETWORK_POLICY,
    &kinds::POD_MONITOR,
    &kinds::HTTP_ROUTE,
    &kinds::GRPC_ROUTE,
];

/// Everything of a deployment but its pools, in the order in which it is best applied. `wakes`: requests
/// are to reach routers that have no worker, because they bring workers back.
pub fn objects(resolved: &Resolved, wakes: bool) -> Vec<Child> {
    let mut all = vec![
        services::clients(resolved, wakes),
        services::workers(resolved),
    ];
    all.extend(policies::disruption(resolved));
    all.extend(policies::network(resolved));
    all.push(deployment::deployment(resolved));
    all.extend(routes::monitor(resolved));
    all.extend(routes::http(resolved));
    all.extend(routes::grpc(resolved));
    all
}

fn metadata(resolved: &Resolved, name: String) -> ObjectMeta {
    let labels = meta::common(&resolved.name, meta::ROUTER);
    meta::metadata(name, &resolved.namespace, labels, resolved.owner.clone())
}
