//! The conditions, and the phase that sums them up. Pure.
//!
//! - `Valid`: the spec can be carried out.
//! - `RouterAvailable`: clients reach a router.
//! - `Available`: all that is asked for serves, and nothing older does.
//! - `Progressing`: something is to become different. False once it is complete, or does not get on.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::judged::Judged;
use crate::api::{Condition, DeploymentStatus};
use crate::build::Resolved;
use crate::rollout::Wait;

pub const COMPLETE: &str = "Complete";
pub const EXCEEDED: &str = "ProgressDeadlineExceeded";
/// Where nothing tells of a change.
pub const LOOK_AGAIN: Duration = Duration::from_secs(2);
const DEADLINE_SECONDS: u32 = 600;
/// So many of the things that it waits for are told.
const TOLD: usize = 3;

pub fn find<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a meta::Condition> {
    status.conditions.iter().find(|c| c.type_ == kind)
}

pub fn touch(conditions: &mut [meta::Condition], kind: &str, now: Timestamp) {
    if let Some(condition) = conditions.iter_mut().find(|c| c.type_ == kind) {
        condition.last_transition_time = meta::Time(now);
    }
}

/// When to look whether the progress deadline has passed.
pub fn deadline(
    resolved: &Resolved,
    status: &DeploymentStatus,
    now: Timestamp,
) -> Option<Duration> {
    let progressing = find(status, "Progressing").filter(|c| c.status == "True")?;
    let left = limit(resolved) - now.duration_since(progressing.last_transition_time.0);
    // Times have no fractions of seconds.
    let left = left + SignedDuration::from_secs(1);
    Some(
        Duration::try_from(left)
            .unwrap_or(LOOK_AGAIN)
            .max(LOOK_AGAIN),
    )
}

/// How long it may get no further.
pub fn limit(resolved: &Resolved) -> SignedDuration {
    let seconds = resolved.rollout.progress_deadline_seconds;
    SignedDuration::from_secs(i64::from(seconds.unwrap_or(DEADLINE_SECONDS)))
}

impl Judged<'_> {
    pub fn conditions(&self) -> [Condition; 4] {
        let valid = Condition {
            kind: "Valid",
            status: Some(true),
            reason: "Accepted",
            message: format!("the spec comes to revision {}", self.seen.wanted.revision),
        };
        [valid, self.router(), self.available(), self.progressing()]
    }

    fn router(&self) -> Condition {
        let router = &self.seen.there.router;
        let wanted = self.seen.resolved.router_replicas();
        let mut message = format!("{} of {wanted} routers are ready", router.ready);
        if let Some(waits) = &router.waits {
            message = format!("{message}; {waits}");
        }
        Condition {
            kind: "RouterAvailable",
            status: Some(router.ready > 0),
            reason: if router.ready > 0 {
                "RouterReady"
            } else {
                "NoRouterReady"
            },
            message,
        }
    }

    fn available(&self) -> Condition {
        let (plan, revision) = (self.seen.plan, &self.seen.wanted.revision);
        let serves = self.seen.wanted.decode > 0 && self.serves;
        let (status, reason, message) = if self.reached && serves {
            match self.degraded.is_empty() {
                true => (
                    true,
                    "AllServe",
                    format!("all of revision {revision} serves"),
                ),
                false => (true, "RanksMissing", self.degraded.join(", ")),
            }
        } else if self.seen.wanted.decode == 0 {
            (
                false,
                "ScaledToZero",
                "no decode groups are wanted".to_owned(),
            )
        } else if self.seen.there.router.ready == 0 {
            (
                false,
                "NoRouterReady",
                "no router is ready, see RouterAvailable".to_owned(),
            )
        } else {
            let reason = match () {
                () if !self.older.is_empty() => "OlderServes",
                () if plan.available == 0 => "NothingServes",
                () if !self.reached && plan.updated >= plan.pairs => "RouterRollout",
                () => "GroupsMissing",
            };
            (false, reason, self.pairs())
        };
        Condition {
            kind: "Available",
            status: Some(status),
            reason,
            message,
        }
    }

    /// How far it is, in pairs.
    fn pairs(&self) -> String {
        let (plan, revision) = (self.seen.plan, &self.seen.wanted.revision);
        let mut text = format!("{} of {} pairs serve", plan.updated, plan.pairs);
        if !self.older.is_empty() {
            text.push_str(&format!(
                " with revision {revision}, and {} with {}",
                plan.available - plan.updated,
                self.older.join(" and ")
            ));
        }
        text
    }

    fn progressing(&self) -> Condition {
        let condition = |status, reason, message| Condition {
            kind: "Progressing",
            status: Some(status),
            reason,
            message,
        };
        if let Some(trouble) = &self.seen.trouble {
            return condition(false, "ApplyFailed", trouble.clone());
        }
        if self.complete {
            return match self.degraded.is_empty() {
                true => {
                    let revision = &self.seen.wanted.revision;
                    condition(
                        false,
                        COMPLETE,
                        format!("all of revision {revision} is there"),
                    )
                }
                false => condition(true, "Recovering", self.degraded.join(", ")),
            };
        }
        let waits = self.waits();
        if self.exceeded {
            let seconds = limit(self.seen.resolved).as_secs();
            let message = format!("nothing got further for {seconds} s; {waits}");
            return condition(false, EXCEEDED, message);
        }
        let reason = match self.seen.plan.waits.first() {
            _ if self.seen.there.predecessor => "WaitingForDeletion",
            Some(wait) => wait.reason(),
            None => "Changing",
        };
        condition(true, reason, waits)
    }

    /// What it waits for, and why that takes so long.
    fn waits(&self) -> String {
        let there = self.seen.there;
        if there.predecessor {
            return "waiting for what is left of an earlier ModelDeployment of this name"
                .to_owned();
        }
        let mut all = vec![self.pairs()];
        // That a pool takes note of a change is a matter of milliseconds: told only if it is not.
        let waits = &self.seen.plan.waits;
        let momentary = |wait: &&Wait| matches!(wait, Wait::Counted { .. });
        let lasting = waits.iter().filter(|wait| !momentary(wait));
        match waits.iter().all(|wait| momentary(&wait)) {
            true => all.extend(waits.iter().take(TOLD).map(ToString::to_string)),
            false => all.extend(lasting.take(TOLD).map(ToString::to_string)),
        }
        let wanted = there
            .pools
            .iter()
            .filter(|pool| pool.revision == self.seen.wanted.revision);
        all.extend(wanted.filter_map(|pool| pool.waits.clone()));
        all.extend(there.router.waits.clone());
        all.join("; ")
    }
}
