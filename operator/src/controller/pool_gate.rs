//! The readiness gate of workers: whether routers send requests to them.

use std::sync::Arc;

use futures::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};

use super::Context;
use crate::api::labels;
use crate::cache::PodView;
use crate::error::Error;
use crate::fleet::{DeploymentView, Routable};

/// The field manager of the condition.
const MANAGER: &str = "millrace-operator-routable";
const AT_ONCE: usize = 8;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Change {
    pub open: bool,
    pub message: String,
}

/// What a pod's gate has to become. `None`: it is right, or nobody knows better.
pub fn change(pod: &PodView, view: &DeploymentView) -> Option<Change> {
    if pod.gone_by.is_some() {
        return None;
    }
    let change = match view.routable(pod.name()) {
        Routable::Yes => Change {
            open: true,
            message: "routers send requests to it".to_owned(),
        },
        Routable::No(message) => Change {
            open: false,
            message,
        },
        Routable::Unsettled => return None,
    };
    match &pod.routable {
        Some(gate) if gate.open == change.open && gate.message == change.message => None,
        // Without the condition it counts as closed. It is worth a request once a router knows more.
        None if !change.open && !view.workers.contains_key(pod.name()) => None,
        _ => Some(change),
    }
}

/// Writes all changes; an error of one does not keep the others back.
pub async fn write(context: &Context, changes: Vec<(Arc<PodView>, Change)>) -> Result<(), Error> {
    let writes = changes.into_iter().map(|(pod, change)| async move {
        let set = set(context, &pod, &change);
        context.applier.once(&pod.meta, &change, set).await
    });
    let mut writes = stream::iter(writes).buffer_unordered(AT_ONCE);
    let mut first = Ok(());
    while let Some(written) = writes.next().await {
        first = first.and(written);
    }
    first
}

async fn set(context: &Context, pod: &PodView, change: &Change) -> Result<(), Error> {
    let since = pod
        .routable
        .as_ref()
        .filter(|gate| gate.open == change.open)
        .and_then(|gate| gate.since)
        .unwrap_or_else(Timestamp::now);
    let body = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": pod.name(), "uid": pod.meta.uid},
        "status": {"conditions": [{
            "type": labels::ROUTABLE,
            "status": if change.open { "True" } else { "False" },
            "reason": if change.open { "Routable" } else { "NotRoutable" },
            "message": change.message,
            "lastTransitionTime": since.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        }]},
    });
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &pod.meta.key.namespace);
    let params = PatchParams::apply(MANAGER).force();
    match api
        .patch_status(pod.name(), &params, &Patch::Apply(body))
        .await
    {
        Ok(_) => Ok(()),
        Err(error) => {
            let what = format!(
                "the condition {} of pods {}",
                labels::ROUTABLE,
                pod.meta.key
            );
            Err(Error::api("write", what, error))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(gate: Option<(&str, &str)>) -> PodView {
        let conditions: Vec<_> = gate
            .into_iter()
            .map(|(status, message)| {
                serde_json::json!({"type": labels::ROUTABLE, "status": status, "message": message})
            })
            .collect();
        let pod = serde_json::json!({"metadata": {"name": "p", "namespace": "n"},
            "status": {"conditions": conditions}});
        PodView::of(&serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn a_pod_that_no_router_knows_is_not_written_to() {
        assert_eq!(change(&pod(None), &DeploymentView::default()), None);
    }

    #[test]
    fn a_gate_closes_when_routers_lose_a_worker() {
        let open = pod(Some(("True", "routers send requests to it")));
        let closed = change(&open, &DeploymentView::default()).unwrap();
        assert!(!closed.open);
        let again = pod(Some(("False", &closed.message)));
        assert_eq!(change(&again, &DeploymentView::default()), None);
    }
}
