//! Objects of others' APIs, where the cluster serves them: how metrics are found, and how traffic gets
//! in from outside.

use serde_json::{Value, json};

use super::metadata;
use crate::api::labels;
use crate::build::ports::{Port, router, worker};
use crate::build::{Child, Resolved, kinds, meta, names};

/// Where Prometheus finds the metrics of routers and workers.
pub fn monitor(resolved: &Resolved) -> Option<Child> {
    let monitoring = &resolved.monitoring;
    monitoring.pod_monitor.then(|| {
        // Prometheus writes labels so.
        let role = format!(
            "__meta_kubernetes_pod_label_{}",
            labels::ROLE.replace(['.', '/', '-'], "_")
        );
        let endpoint = |port: Port, action| {
            json!({
                "port": port.name,
                "path": "/metrics",
                "relabelings": [{
                    "action": action,
                    "sourceLabels": [role],
                    "regex": meta::ROUTER,
                }],
            })
        };
        let mut spec = json!({
            "selector": { "matchLabels": { (labels::DEPLOYMENT): resolved.name } },
            "podTargetLabels": [
                labels::DEPLOYMENT, labels::ROLE, labels::REVISION, labels::POOL, labels::GROUP,
            ],
            // The port for clients is called `http` too, and may speak TLS and ask for a key.
            "podMetricsEndpoints": [
                endpoint(worker::HTTP, "drop"),
                endpoint(router::PROBE, "keep"),
            ],
        });
        if monitoring.native_histograms {
            // Dashboards and alerts ask for the classic ones, which would not be kept otherwise.
            spec["scrapeNativeHistograms"] = true.into();
            spec["scrapeClassicHistograms"] = true.into();
        }
        let mut metadata = metadata(resolved, names::service(&resolved.name));
        let ours = metadata.labels.take().unwrap_or_default();
        let mut labels = monitoring.labels.clone();
        labels.extend(ours);
        metadata.labels = Some(labels);
        Child::with_spec(&kinds::POD_MONITOR, metadata, &spec)
    })
}

pub fn http(resolved: &Resolved) -> Option<Child> {
    let gateway = resolved.router.gateway.as_ref()?;
    let spec = route(resolved, &gateway.hostnames, router::HTTP)?;
    let metadata = metadata(resolved, names::service(&resolved.name));
    Some(Child::with_spec(&kinds::HTTP_ROUTE, metadata, &spec))
}

pub fn grpc(resolved: &Resolved) -> Option<Child> {
    let gateway = resolved.router.gateway.as_ref()?;
    if gateway.grpc_hostnames.is_empty() {
        return None;
    }
    let spec = route(resolved, &gateway.grpc_hostnames, router::GRPC)?;
    let metadata = metadata(resolved, names::service(&resolved.name));
    Some(Child::with_spec(&kinds::GRPC_ROUTE, metadata, &spec))
}

fn route(resolved: &Resolved, hostnames: &[String], port: Port) -> Option<Value> {
    let gateway = resolved.router.gateway.as_ref()?;
    let backend = json!({ "name": names::service(&resolved.name), "port": port.number });
    let mut spec = json!({
        "parentRefs": gateway.parents,
        "rules": [{ "backendRefs": [backend] }],
    });
    if !hostnames.is_empty() {
        spec["hostnames"] = json!(hostnames);
    }
    Some(spec)
}
