//! What is new from one status to the next, for Events. Pure.

use super::status::find;
use crate::api::{AutoscalerStatus, ScaledPool};
use crate::events::News;

pub fn between(previous: &AutoscalerStatus, next: &AutoscalerStatus) -> Vec<News> {
    let mut news = Vec::new();
    let mut add = |warning, reason, action, note: String| {
        news.push(News {
            warning,
            reason,
            action,
            note,
        });
    };
    let was = |kind: &str| state(previous, kind);
    let (active, frozen, limited) = ("Active", "Frozen", "Limited");
    if let Some((status, reason, message)) = state(next, active)
        && was(active).is_none_or(|(s, r, _)| (s, r) != (status, reason))
    {
        match (status, reason) {
            ("True", _) => add(false, "Active", "Observe", message.to_owned()),
            (_, "TargetStarting" | "TargetDeleting") => {
                add(false, "Inactive", "Observe", message.to_owned());
            }
            _ => add(true, "Inactive", "Observe", message.to_owned()),
        }
    }
    if let Some((status, reason, message)) = state(next, frozen)
        && was(frozen).is_none_or(|(s, r, _)| (s, r) != (status, reason))
    {
        match (status, reason) {
            // It begins so, and so does what follows a gap.
            ("True", "Warming") | ("Unknown", _) => {}
            ("True", _) => add(true, "Frozen", "Observe", message.to_owned()),
            _ => add(
                false,
                "Unfrozen",
                "Observe",
                format!("{message}, and enough was seen to decide"),
            ),
        }
    }
    if let Some(("True", reason @ ("MaxReplicas" | "BudgetReached" | "Unattainable"), message)) =
        state(next, limited)
        && was(limited).is_none_or(|(s, r, _)| (s, r) != ("True", reason))
    {
        add(true, "Limited", "Scale", message.to_owned());
    }
    let pools = [
        ("prefill", previous.prefill.as_ref(), next.prefill.as_ref()),
        ("decode", Some(&previous.decode), Some(&next.decode)),
    ];
    for (role, before, after) in pools {
        let Some(after) = after.filter(|after| scaled(before, after)) else {
            continue;
        };
        let (reason, why) = match after.desired > after.current {
            true => ("ScaledUp", &after.why_not_fewer),
            false => ("ScaledDown", &after.why_not_more),
        };
        let note = format!(
            "{role} from {} to {} groups, {}: {why}",
            after.current, after.desired, after.cause
        );
        add(false, reason, "Scale", note);
    }
    news
}

/// Status, reason and message of a condition.
fn state<'a>(status: &'a AutoscalerStatus, kind: &str) -> Option<(&'a str, &'a str, &'a str)> {
    find(status, kind).map(|c| (c.status.as_str(), c.reason.as_str(), c.message.as_str()))
}

/// Other groups are wanted than there are, and it was not said before.
fn scaled(before: Option<&ScaledPool>, after: &ScaledPool) -> bool {
    let change = |pool: &ScaledPool| (pool.current, pool.desired);
    after.current != after.desired && before.is_none_or(|before| change(before) != change(after))
}
