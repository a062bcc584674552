//! What a WorkerPool's status says. Pure.

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;

use crate::api::{Condition, GroupStatus, WorkerPool, WorkerPoolStatus, labels, set_condition};
use crate::cache::PodView;
use crate::fleet::DeploymentView;

/// A group that exists, or was just made.
#[derive(Debug, Clone)]
pub struct GroupFacts {
    pub name: String,
    pub going: bool,
    pub pods: Vec<Arc<PodView>>,
}

impl GroupFacts {
    pub fn ready_ranks(&self) -> usize {
        self.pods.iter().filter(|pod| pod.ready).count()
    }

    pub fn placed_ranks(&self) -> usize {
        let placed = |pod: &&Arc<PodView>| pod.node.is_some() && pod.gone_by.is_none();
        self.pods.iter().filter(placed).count()
    }

    /// Requests are sent to at least one of its ranks.
    pub fn serves(&self) -> bool {
        !self.going && self.ready_ranks() > 0
    }
}

/// So many pods say what they wait for; of the others only their number is told.
const TOLD: usize = 3;

pub fn status(
    pool: &WorkerPool,
    groups: &[GroupFacts],
    view: Option<&DeploymentView>,
    trouble: Option<String>,
    now: Timestamp,
) -> WorkerPoolStatus {
    let was = pool.status.clone().unwrap_or_default();
    let name = pool.metadata.name.as_deref().unwrap_or_default();
    let wanted = pool.spec.replicas;
    let ready = count(groups.iter().filter(|group| group.serves()).count());
    let mut status = WorkerPoolStatus {
        observed_generation: pool.metadata.generation,
        replicas: count(groups.len()),
        ready_replicas: ready,
        selector: format!("{}={name}", labels::POOL),
        running_requests: view.map_or(was.running_requests, |view| running(groups, view)),
        conditions: was.conditions,
        groups: groups
            .iter()
            .map(|group| {
                let before = was.groups.get(&group.name);
                (group.name.clone(), group_status(pool, group, view, before))
            })
            .collect(),
    };
    let waiting = waiting(pool, groups, view);
    let generation = pool.metadata.generation;
    for condition in [
        available(ready, wanted, &waiting),
        progressing(pool, groups, waiting, trouble),
    ] {
        set_condition(&mut status.conditions, condition, generation, now);
    }
    status
}

fn available(ready: i32, wanted: i32, waiting: &str) -> Condition {
    let enough = ready >= wanted;
    let counted = format!("{ready} of {wanted} groups get requests");
    Condition {
        kind: "Available",
        status: Some(enough),
        reason: if enough {
            "AllGroupsServe"
        } else {
            "GroupsMissing"
        },
        message: match (enough, waiting) {
            (true, _) | (_, "") => counted,
            (false, waiting) => format!("{counted}; {waiting}"),
        },
    }
}

fn progressing(
    pool: &WorkerPool,
    groups: &[GroupFacts],
    waiting: String,
    trouble: Option<String>,
) -> Condition {
    let progressing = |status, reason, message| Condition {
        kind: "Progressing",
        status: Some(status),
        reason,
        message,
    };
    if let Some(message) = trouble {
        return progressing(false, "ApplyFailed", message);
    }
    let going: Vec<&str> = groups
        .iter()
        .filter(|group| group.going)
        .map(|group| group.name.as_str())
        .collect();
    match (waiting.as_str(), &going[..]) {
        ("", []) => progressing(
            false,
            "Complete",
            format!("{} groups are as they should be", pool.spec.replicas),
        ),
        ("", going) => progressing(true, "Draining", draining(going)),
        (_, []) => progressing(true, "Starting", waiting),
        (_, going) => {
            let message = format!("{waiting}; {}", draining(going));
            progressing(true, "Starting", message)
        }
    }
}

fn draining(going: &[&str]) -> String {
    let verb = if going.len() == 1 { "drains" } else { "drain" };
    format!(
        "{} {verb}",
        list(going.iter().map(|name| (*name).to_owned()))
    )
}

/// What pods that should serve wait for. Empty: nothing.
fn waiting(pool: &WorkerPool, groups: &[GroupFacts], view: Option<&DeploymentView>) -> String {
    let mut waits = Vec::new();
    for group in groups.iter().filter(|group| !group.going) {
        let missing = usize::try_from(pool.spec.worker.ranks)
            .unwrap_or_default()
            .saturating_sub(group.pods.len());
        if missing > 0 {
            waits.push(format!(
                "{} waits for {missing} pods to be made",
                group.name
            ));
        }
        for pod in &group.pods {
            if let Some(what) = &pod.waits_for {
                let routers = view.is_none() && pod.containers_ready;
                let unheard = if routers {
                    " (no router can be asked)"
                } else {
                    ""
                };
                waits.push(format!("{} waits for {what}{unheard}", pod.name()));
            }
        }
    }
    list(waits.into_iter())
}

fn list(all: impl ExactSizeIterator<Item = String>) -> String {
    let more = all.len().saturating_sub(TOLD);
    let mut told: Vec<String> = all.take(TOLD).collect();
    if more > 0 {
        told.push(format!("and {more} more"));
    }
    told.join(", ")
}

fn group_status(
    pool: &WorkerPool,
    group: &GroupFacts,
    view: Option<&DeploymentView>,
    before: Option<&GroupStatus>,
) -> GroupStatus {
    let ranks = pool.spec.worker.ranks;
    let ready = count(group.ready_ranks());
    let mut status = GroupStatus {
        ready_ranks: ready,
        ranks,
        ..GroupStatus::default()
    };
    let mut degraded = false;
    match view {
        Some(view) => {
            if let Some(seen) = view.groups.get(&group.name) {
                status.epoch = seen.epoch.and_then(|epoch| i64::try_from(epoch).ok());
                status.redundant_slots = i64::try_from(seen.redundant_slots).ok();
                status.balancedness_percent =
                    seen.balancedness.map(|part| (part * 100.0).round() as i32);
                degraded = seen.epoch.is_some() && seen.members < seen.ranks;
            }
        }
        // Nobody can be asked: as it was.
        None => {
            if let Some(before) = before {
                status.epoch = before.epoch;
                status.redundant_slots = before.redundant_slots;
                status.balancedness_percent = before.balancedness_percent;
            }
        }
    }
    let state = match () {
        () if group.going => "Draining",
        () if ready == 0 => "Starting",
        () if ready < ranks && status.epoch.is_none() => "Starting",
        () if ready < ranks || degraded => "Degraded",
        () => "Healthy",
    };
    status.state = state.to_owned();
    status
}

fn running(groups: &[GroupFacts], view: &DeploymentView) -> i32 {
    let pods = groups.iter().flat_map(|group| &group.pods);
    let running = pods.filter_map(|pod| Some(view.workers.get(pod.name())?.running));
    running.map(|n| i32::try_from(n).unwrap_or(i32::MAX)).sum()
}

fn count(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

#[cfg(test)]
#[path = "pool_status_tests.rs"]
mod tests;
