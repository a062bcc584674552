//! What a ModelDeployment's status says. Pure.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;

use super::conditions;
use super::judged::Judged;
use super::there::{PoolFacts, There};
use crate::api::{
    Condition, DeploymentStatus, ModelDeployment, Phase, PoolCounts, RevisionStatus, Role,
    RouterStatus, set_condition,
};
use crate::build::{Invalid, Resolved, names, ports};
use crate::rollout::{Plan, Wanted};

/// All that a status is made of, besides the previous one.
pub struct Seen<'a> {
    pub deployment: &'a ModelDeployment,
    pub resolved: &'a Resolved,
    pub there: &'a There,
    pub wanted: &'a Wanted,
    pub plan: &'a Plan,
    /// What the API server refused.
    pub trouble: Option<String>,
}

pub fn status(previous: &DeploymentStatus, seen: &Seen<'_>, now: Timestamp) -> DeploymentStatus {
    let resolved = seen.resolved;
    let generation = seen.deployment.metadata.generation;
    let address = |port| names::client_address(&resolved.name, &resolved.namespace, port);
    let mut next = DeploymentStatus {
        observed_generation: generation,
        phase: None,
        revision: resolved.revision.clone(),
        model: resolved.served_name().to_owned(),
        prefill: counts(seen.there, Role::Prefill, seen.wanted.of(Role::Prefill)),
        decode: counts(seen.there, Role::Decode, seen.wanted.of(Role::Decode)),
        router: RouterStatus {
            ready: seen.there.router.ready,
            wanted: resolved.router_replicas(),
            http: address(ports::router::HTTP),
            grpc: address(ports::router::GRPC),
        },
        revisions: revisions(previous, seen.there),
        groups: seen
            .there
            .pools
            .iter()
            .flat_map(|pool| pool.groups.clone())
            .filter(|(_, group)| group.ranks > 1)
            .collect(),
        conditions: previous.conditions.clone(),
    };
    let judged = Judged::new(previous, &next, seen, now);
    for condition in judged.conditions() {
        set_condition(&mut next.conditions, condition, generation, now);
    }
    if judged.progressed {
        // Its time is that of the last progress, from which the deadline counts.
        conditions::touch(&mut next.conditions, "Progressing", now);
    }
    next.phase = Some(judged.phase());
    next
}

/// The spec cannot be carried out: what there is stays, and only its numbers are told.
pub fn invalid(
    deployment: &ModelDeployment,
    previous: &DeploymentStatus,
    invalid: &[Invalid],
    there: &There,
    now: Timestamp,
) -> DeploymentStatus {
    let generation = deployment.metadata.generation;
    let all: Vec<String> = invalid.iter().map(ToString::to_string).collect();
    let mut next = DeploymentStatus {
        observed_generation: generation,
        phase: Some(Phase::Invalid),
        revisions: revisions(previous, there),
        ..previous.clone()
    };
    for (role, counts) in [
        (Role::Prefill, &mut next.prefill),
        (Role::Decode, &mut next.decode),
    ] {
        counts.ready = ready(there, role);
        if !matches!(counts.summary.as_str(), "" | "-") {
            counts.summary = summary(counts);
        }
    }
    next.router.ready = there.router.ready;
    let goes_on = match next.revision.as_str() {
        "" => "nothing is made until the spec is valid".to_owned(),
        revision => format!("what there was, revision {revision}, goes on as it is"),
    };
    let condition = |kind, message| Condition {
        kind,
        status: Some(false),
        reason: "InvalidSpec",
        message,
    };
    for condition in [
        condition("Valid", all.join("; ")),
        condition("Available", format!("the spec is invalid; {goes_on}")),
        condition("Progressing", format!("the spec is invalid; {goes_on}")),
    ] {
        set_condition(&mut next.conditions, condition, generation, now);
    }
    next
}

/// It was deleted, and `pods` of it are left.
pub fn deleting(
    deployment: &ModelDeployment,
    previous: &DeploymentStatus,
    pods: usize,
    now: Timestamp,
) -> DeploymentStatus {
    let mut next = DeploymentStatus {
        phase: Some(Phase::Deleting),
        ..previous.clone()
    };
    let generation = deployment.metadata.generation;
    let message = format!(
        "{} was deleted; waiting for {pods} pods to end, then its epochs are forgotten",
        deployment.name_any()
    );
    for (kind, status) in [("Available", false), ("Progressing", true)] {
        let condition = Condition {
            kind,
            status: Some(status),
            reason: "Deleting",
            message: message.clone(),
        };
        set_condition(&mut next.conditions, condition, generation, now);
    }
    next
}

fn revisions(previous: &DeploymentStatus, there: &There) -> BTreeMap<String, RevisionStatus> {
    let mut revisions: BTreeMap<String, RevisionStatus> = BTreeMap::new();
    for facts in &there.pools {
        let status = revisions.entry(facts.revision.clone()).or_default();
        let counts = match facts.role {
            Role::Prefill => &mut status.prefill,
            Role::Decode => &mut status.decode,
        };
        counts.ready = number(serving(facts));
        counts.wanted = number(facts.pool.replicas);
        counts.summary = summary(counts);
        status.running_requests += facts.running;
    }
    for (revision, status) in &mut revisions {
        let before = previous.revisions.get(revision);
        let split = there.pool(revision, Role::Prefill).is_some();
        let serves = status.decode.ready > 0
            && (!split || status.prefill.ready > 0)
            && there.router.ready > 0;
        status.served = serves || before.is_some_and(|before| before.served);
    }
    revisions
}

/// Groups of a pool that count: not those that were told to go.
pub(super) fn serving(facts: &PoolFacts) -> u32 {
    match facts.pool.deleting {
        true => 0,
        false => facts.pool.ready.min(facts.pool.replicas),
    }
}

fn ready(there: &There, role: Role) -> i32 {
    let pools = there.pools.iter().filter(|pool| pool.role == role);
    number(pools.map(serving).sum())
}

fn counts(there: &There, role: Role, wanted: Option<u32>) -> PoolCounts {
    let mut counts = PoolCounts {
        ready: ready(there, role),
        wanted: number(wanted.unwrap_or(0)),
        summary: String::new(),
    };
    counts.summary = match wanted {
        None if counts.ready == 0 => "-".to_owned(),
        _ => summary(&counts),
    };
    counts
}

fn summary(counts: &PoolCounts) -> String {
    format!("{}/{}", counts.ready, counts.wanted)
}

fn number(n: u32) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
