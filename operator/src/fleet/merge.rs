//! What the routers of a ModelDeployment say, together. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use millrace_proto::worker::v1 as wire;

use crate::api::Role;

/// A router that has just come up has not been found by all workers yet. For so long it cannot close
/// what others have open.
pub const SETTLES_IN: Duration = Duration::from_secs(15);

/// What one router said last.
#[derive(Debug, Clone)]
pub struct Said<'a> {
    /// The name of its pod.
    pub router: &'a str,
    /// Since it was first heard.
    pub heard_for: Duration,
    pub view: &'a wire::FleetView,
}

/// All that connected routers say.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DeploymentView {
    /// Routers that were heard.
    pub connected: usize,
    /// Router pods that there are, those included that have no address yet.
    pub routers: usize,
    /// By worker id, which is the name of its pod. Those that some router has attached or refused.
    pub workers: BTreeMap<String, Worker>,
    /// By group, which is the name of its StatefulSet.
    pub groups: BTreeMap<String, Group>,
    /// Sequences that wait for a turn, at all routers.
    pub waiting: u64,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Worker {
    /// `None`: the router did not say.
    pub role: Option<Role>,
    /// Empty if it was refused everywhere.
    pub revision: String,
    pub routable: Routable,
    /// To at least one router.
    pub attached: bool,
    pub draining: bool,
    pub running: u32,
    pub waiting: u32,
    /// Prompt tokens not yet computed, of running and waiting sequences.
    pub waiting_tokens: u64,
    /// Most sequences a step.
    pub max_running: u32,
    /// Of its cache, 64 tokens each.
    pub kv_pages: u64,
    /// Free or evictable.
    pub free_pages: u64,
    /// The group that it is a rank of.
    pub group: Option<String>,
    pub rank: u32,
}

/// Whether requests are sent to a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Routable {
    Yes,
    /// With what it waits for.
    No(String),
    /// A router is too new to have a say: as it was.
    Unsettled,
}

impl Routable {
    pub fn is_unsettled(&self) -> bool {
        *self == Routable::Unsettled
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    pub epoch: Option<u64>,
    /// As `GET /experts` names it.
    pub state: String,
    pub ranks: u32,
    /// Of the epoch.
    pub members: u32,
    pub redundant_slots: u64,
    /// Mean over most loaded rank, 0 to 1.
    pub balancedness: Option<f32>,
    pub staging: bool,
}

impl DeploymentView {
    /// Whether requests are sent to the worker of a pod.
    pub fn routable(&self, pod: &str) -> Routable {
        match self.workers.get(pod) {
            Some(worker) => worker.routable.clone(),
            None => Routable::No("no router has heard of it yet".to_owned()),
        }
    }

    /// Some router has it, available or not.
    pub fn attached(&self, pod: &str) -> bool {
        self.workers.get(pod).is_some_and(|worker| worker.attached)
    }
}

/// Joins what routers said. `None` if none said anything: then nobody knows, and nothing that depends
/// on it may be changed.
pub fn merge(said: &[Said<'_>], routers: usize) -> Option<DeploymentView> {
    if said.is_empty() {
        return None;
    }
    let mut view = DeploymentView {
        connected: said.len(),
        routers,
        waiting: said.iter().map(|s| s.view.waiting).sum(),
        ..DeploymentView::default()
    };
    for one in said {
        for worker in &one.view.workers {
            if !view.workers.contains_key(&worker.worker_id) {
                let joined = join(&worker.worker_id, said);
                view.workers.insert(worker.worker_id.clone(), joined);
            }
        }
        for refused in &one.view.refused {
            if !view.workers.contains_key(&refused.worker_id) {
                let joined = join(&refused.worker_id, said);
                view.workers.insert(refused.worker_id.clone(), joined);
            }
        }
    }
    // The leader last: what it says of a group counts.
    let (leading, others): (Vec<_>, Vec<_>) = said.iter().partition(|s| s.view.leading);
    for group in others.iter().chain(&leading).flat_map(|s| &s.view.groups) {
        let newer = Group::from(group);
        let older = view.groups.get(&group.group);
        if older.is_none_or(|older| newer.epoch >= older.epoch) {
            view.groups.insert(group.group.clone(), newer);
        }
    }
    Some(view)
}

fn join(id: &str, said: &[Said<'_>]) -> Worker {
    let mut joined = Worker {
        role: None,
        revision: String::new(),
        routable: Routable::Unsettled,
        attached: false,
        draining: false,
        running: 0,
        waiting: 0,
        waiting_tokens: 0,
        max_running: 0,
        kv_pages: 0,
        free_pages: u64::MAX,
        group: None,
        rank: 0,
    };
    let (mut open, mut old_closed, mut closed) = (false, false, None);
    let mut refused = None;
    for one in said {
        let here = one.view.workers.iter().find(|w| w.worker_id == id);
        let no = one.view.refused.iter().find(|r| r.worker_id == id);
        match (here, no) {
            (Some(worker), _) => {
                joined.attached = true;
                joined.draining |= worker.draining;
                joined.running = joined.running.max(worker.running);
                joined.waiting = joined.waiting.max(worker.waiting);
                joined.waiting_tokens = joined.waiting_tokens.max(worker.waiting_tokens);
                joined.max_running = worker.max_running;
                joined.kv_pages = worker.kv_pages;
                joined.free_pages = joined.free_pages.min(worker.free_pages);
                joined.role = joined.role.or(role(worker.role()));
                joined.revision.clone_from(&worker.revision);
                joined.rank = worker.rank;
                joined.group = Some(worker.group.clone()).filter(|group| !group.is_empty());
                if worker.available {
                    open = true;
                    continue;
                }
                let why = match worker.unavailable_reason.as_str() {
                    "" if worker.draining => "it drains",
                    "" => "not available",
                    why => why,
                };
                closed.get_or_insert_with(|| format!("router {}: {why}", one.router));
            }
            (None, Some(no)) => {
                joined.role = joined.role.or(role(no.role()));
                refused.get_or_insert_with(|| {
                    format!("router {} refused it: {}", one.router, no.reason)
                });
                continue;
            }
            (None, None) => {
                closed.get_or_insert_with(|| {
                    format!("it is not attached to router {} yet", one.router)
                });
            }
        }
        old_closed |= one.heard_for >= SETTLES_IN;
    }
    // Of one that no router has attached, nothing is known.
    joined.free_pages = joined.free_pages.min(joined.kv_pages);
    joined.routable = match (open, closed) {
        (true, None) => Routable::Yes,
        (true, Some(_)) if !old_closed => Routable::Unsettled,
        (_, Some(why)) => Routable::No(why),
        (false, None) => Routable::No(refused.unwrap_or_default()),
    };
    joined
}

fn role(role: wire::Role) -> Option<Role> {
    match role {
        wire::Role::Prefill => Some(Role::Prefill),
        wire::Role::Decode => Some(Role::Decode),
        wire::Role::Unspecified => None,
    }
}

impl From<&wire::FleetGroup> for Group {
    fn from(group: &wire::FleetGroup) -> Group {
        Group {
            epoch: Some(group.epoch).filter(|&epoch| epoch != 0),
            state: group.state.clone(),
            ranks: group.ranks,
            members: group.members,
            redundant_slots: group.redundant_slots,
            balancedness: group.balancedness,
            staging: group.staging_plan != 0,
        }
    }
}

#[cfg(test)]
#[path = "merge_tests.rs"]
mod tests;
