//! What is kept of a pod: a few words of the kilobytes that it is.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition};
use k8s_openapi::jiff::Timestamp;

use super::meta::Meta;
use super::store::{Cached, Key};
use crate::api::labels;

#[derive(Debug, Clone)]
pub struct PodView {
    /// Labels tell whether it is a router or a worker, and of which pool, group and revision.
    pub meta: Meta,
    pub node: Option<Box<str>>,
    pub ip: Option<Box<str>>,
    /// Until when it was to be gone, if it was told to go.
    pub gone_by: Option<Timestamp>,
    /// Ready as Kubernetes counts it: containers and readiness gates. Not if it was told to go.
    pub ready: bool,
    /// All containers run and answer their probes.
    pub containers_ready: bool,
    /// The condition that the operator sets: status and message.
    pub routable: Option<Gate>,
    /// Its node is lost or tainted, and the taint manager told it to go.
    pub node_lost: bool,
    /// It ended, and will not start again (evicted, or a node that went down in order).
    pub ended: bool,
    /// What it waits for, for people. `None`: it is ready.
    pub waits_for: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gate {
    pub open: bool,
    pub message: String,
    pub since: Option<Timestamp>,
}

impl Cached for PodView {
    fn key(&self) -> Key {
        self.meta.key()
    }

    fn deployment(&self) -> Option<&str> {
        self.meta.deployment()
    }
}

impl PodView {
    pub fn of(pod: &Pod) -> PodView {
        let status = pod.status.as_ref();
        let conditions = status
            .and_then(|s| s.conditions.as_deref())
            .unwrap_or_default();
        let find = |kind: &str| conditions.iter().find(|c| c.type_ == kind);
        let is_true = |kind: &str| find(kind).is_some_and(|c| c.status == "True");
        let gone_by = pod.metadata.deletion_timestamp.as_ref().map(|time| time.0);
        let routable = find(labels::ROUTABLE).map(|condition| Gate {
            open: condition.status == "True",
            message: condition.message.clone().unwrap_or_default(),
            since: condition.last_transition_time.as_ref().map(|time| time.0),
        });
        let ready = is_true("Ready") && gone_by.is_none();
        let phase = status.and_then(|s| s.phase.as_deref());
        PodView {
            meta: Meta::of(&pod.metadata),
            node: pod
                .spec
                .as_ref()
                .and_then(|s| s.node_name.as_deref())
                .map(Into::into),
            ip: status.and_then(|s| s.pod_ip.as_deref()).map(Into::into),
            gone_by,
            ready,
            containers_ready: is_true("ContainersReady"),
            node_lost: find("DisruptionTarget").is_some_and(|c| {
                c.status == "True" && c.reason.as_deref() == Some("DeletionByTaintManager")
            }),
            ended: matches!(phase, Some("Failed" | "Succeeded")),
            waits_for: (!ready).then(|| waits_for(pod, find)),
            routable,
        }
    }

    pub fn name(&self) -> &str {
        &self.meta.key.name
    }
}

fn waits_for<'a>(pod: &Pod, find: impl Fn(&str) -> Option<&'a PodCondition>) -> String {
    if pod.metadata.deletion_timestamp.is_some() {
        return "its requests to end".to_owned();
    }
    let status = pod.status.as_ref();
    let message = |c: &PodCondition| c.message.clone().unwrap_or_default();
    if let Some(condition) = find("PodScheduled").filter(|c| c.status == "False") {
        return format!("a node: {}", message(condition));
    }
    if let Some(reason) = status
        .filter(|s| s.phase.as_deref() == Some("Failed"))
        .map(|s| s.reason.clone().unwrap_or_default())
    {
        return format!("another pod, as this one failed: {reason}");
    }
    let first = status.and_then(|s| s.init_container_statuses.as_deref());
    let main = status.and_then(|s| s.container_statuses.as_deref());
    let containers = first
        .unwrap_or_default()
        .iter()
        .chain(main.unwrap_or_default());
    if let Some(trouble) = containers.into_iter().find_map(trouble) {
        return trouble;
    }
    let running = find("ContainersReady").is_some_and(|c| c.status == "True");
    match find(labels::ROUTABLE) {
        Some(gate) if running => {
            let message = message(gate);
            match message.is_empty() {
                true => "a router to take it".to_owned(),
                false => message,
            }
        }
        _ if running => "a router to take it".to_owned(),
        _ if find("PodScheduled").is_none() => "a node".to_owned(),
        _ => "its container to be ready".to_owned(),
    }
}

/// Why a container does not run, if that is more than that it is about to.
fn trouble(container: &ContainerStatus) -> Option<String> {
    let state = container.state.as_ref()?;
    let last = container
        .last_state
        .as_ref()
        .and_then(|s| s.terminated.as_ref())
        .or(state.terminated.as_ref())
        .filter(|ended| ended.exit_code != 0)
        .map(|ended| {
            // The end of its log; what it ended of is the last line.
            let said = ended.message.as_deref().unwrap_or_default().trim();
            let said = said.lines().last().unwrap_or_default();
            let colon = if said.is_empty() { "" } else { ": " };
            format!("it ended with code {}{colon}{said}", ended.exit_code)
        });
    let waiting = state.waiting.as_ref().and_then(|waiting| {
        let reason = waiting.reason.as_deref()?;
        let message = waiting.message.as_deref().unwrap_or_default();
        match reason {
            "ContainerCreating" | "PodInitializing" => None,
            "CrashLoopBackOff" => Some(reason.to_owned()),
            _ => Some(format!("{reason}: {message}")),
        }
    });
    let name = &container.name;
    match (waiting, last) {
        (Some(waiting), Some(last)) => Some(format!("container {name}: {waiting}, {last}")),
        (Some(waiting), None) => Some(format!("container {name}: {waiting}")),
        (None, Some(last)) if container.ready => {
            let _ = last;
            None
        }
        (None, Some(last)) => Some(format!("container {name}: {last}")),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(status: serde_json::Value) -> PodView {
        let pod =
            serde_json::json!({"metadata": {"name": "p", "namespace": "n"}, "status": status});
        PodView::of(&serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn a_pod_says_what_it_waits_for() {
        let unscheduled = view(serde_json::json!({"conditions": [
            {"type": "PodScheduled", "status": "False", "message": "0/2 nodes are available"}]}));
        assert_eq!(
            unscheduled.waits_for.as_deref(),
            Some("a node: 0/2 nodes are available")
        );
        let image = view(
            serde_json::json!({"containerStatuses": [{"name": "worker", "ready": false,
            "image": "", "imageID": "", "restartCount": 0,
            "state": {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}}]}),
        );
        assert_eq!(
            image.waits_for.as_deref(),
            Some("container worker: ErrImagePull: no such image")
        );
        let crash = view(
            serde_json::json!({"containerStatuses": [{"name": "worker", "ready": false,
            "image": "", "imageID": "", "restartCount": 1,
            "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
            "lastState": {"terminated": {"exitCode": 1, "message": "no model at /model\n"}}}]}),
        );
        assert_eq!(
            crash.waits_for.as_deref(),
            Some("container worker: CrashLoopBackOff, it ended with code 1: no model at /model")
        );
        let gate = view(serde_json::json!({"conditions": [
            {"type": "ContainersReady", "status": "True"},
            {"type": labels::ROUTABLE, "status": "False", "message": "router r: loading"}]}));
        assert_eq!(gate.waits_for.as_deref(), Some("router r: loading"));
        assert!(gate.containers_ready && !gate.ready);
        assert!(gate.routable.is_some_and(|gate| !gate.open));
    }

    #[test]
    fn a_ready_pod_waits_for_nothing() {
        let ready = view(serde_json::json!({"podIP": "10.0.0.1", "conditions": [
            {"type": "Ready", "status": "True"}, {"type": labels::ROUTABLE, "status": "True"}]}));
        assert!(ready.ready && ready.waits_for.is_none());
        assert!(ready.routable.is_some_and(|gate| gate.open));
        assert_eq!(ready.ip.as_deref(), Some("10.0.0.1"));
    }
}
