//! What is new from one status to the next, for Events. Pure.

use super::conditions::{self, find};
use crate::api::{DeploymentStatus, Phase};
use crate::events::News;

pub fn between(previous: &DeploymentStatus, next: &DeploymentStatus) -> Vec<News> {
    let mut news = Vec::new();
    let mut add = |warning, reason, action, note: String| {
        news.push(News {
            warning,
            reason,
            action,
            note,
        });
    };
    let message = |status: &DeploymentStatus, kind: &str| {
        find(status, kind)
            .map(|c| c.message.clone())
            .unwrap_or_default()
    };
    let reason = |status: &DeploymentStatus, kind: &str| {
        find(status, kind)
            .map(|c| c.reason.clone())
            .unwrap_or_default()
    };
    if next.phase == Some(Phase::Invalid) {
        let says = message(next, "Valid");
        if previous.phase != next.phase || message(previous, "Valid") != says {
            add(true, "InvalidSpec", "Validate", says);
        }
        return news;
    }
    if !previous.revision.is_empty() && previous.revision != next.revision {
        let note = format!("from revision {} to {}", previous.revision, next.revision);
        add(false, "RolloutStarted", "RollOut", note);
    }
    let (was, is) = (reason(previous, "Progressing"), reason(next, "Progressing"));
    if was != is {
        let says = message(next, "Progressing");
        match is.as_str() {
            conditions::COMPLETE => add(false, "RolloutComplete", "RollOut", says),
            conditions::EXCEEDED => add(true, conditions::EXCEEDED, "RollOut", says),
            _ => {}
        }
    }
    if previous.phase != next.phase
        && let Some(phase) = next.phase
    {
        let (warning, reason) = match phase {
            Phase::Invalid => (true, "Invalid"),
            Phase::Starting => (false, "Starting"),
            Phase::Available => (false, "Available"),
            Phase::Progressing => (false, "Progressing"),
            Phase::Degraded => (true, "Degraded"),
            Phase::Unavailable => (true, "Unavailable"),
            Phase::Deleting => (false, "Deleting"),
        };
        let kind = match phase {
            Phase::Progressing | Phase::Starting | Phase::Deleting => "Progressing",
            _ => "Available",
        };
        add(warning, reason, "Observe", message(next, kind));
    }
    news
}
