//! Conditions as `kubectl wait` and people read them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use k8s_openapi::jiff::Timestamp;

/// What a controller found out, before it has a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// `Available`, `Progressing`, ...
    pub kind: &'static str,
    /// `None`: not known.
    pub status: Option<bool>,
    /// One word in CamelCase, for programs.
    pub reason: &'static str,
    /// For people: what it waits for, or which field to change and how.
    pub message: String,
}

/// Puts a condition among `all`, whose time changes only if its status does.
pub fn set_condition(
    all: &mut Vec<meta::Condition>,
    condition: Condition,
    generation: Option<i64>,
    now: Timestamp,
) {
    let status = match condition.status {
        Some(true) => "True",
        Some(false) => "False",
        None => "Unknown",
    };
    let earlier = all.iter().position(|c| c.type_ == condition.kind);
    let since = earlier
        .filter(|&at| all[at].status == status)
        .map(|at| all[at].last_transition_time.clone());
    let next = meta::Condition {
        type_: condition.kind.to_owned(),
        status: status.to_owned(),
        reason: condition.reason.to_owned(),
        message: condition.message,
        observed_generation: generation,
        last_transition_time: since.unwrap_or(meta::Time(now)),
    };
    match earlier {
        Some(at) => all[at] = next,
        None => all.push(next),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn available(status: bool, message: &str) -> Condition {
        Condition {
            kind: "Available",
            status: Some(status),
            reason: "Test",
            message: message.to_owned(),
        }
    }

    #[test]
    fn only_another_status_changes_the_time() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut all = Vec::new();
        set_condition(&mut all, available(false, "waiting"), Some(1), at(1));
        set_condition(&mut all, available(false, "still waiting"), Some(2), at(2));
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].last_transition_time.0, at(1));
        assert_eq!(all[0].message, "still waiting");
        assert_eq!(all[0].observed_generation, Some(2));
        set_condition(&mut all, available(true, "here"), Some(2), at(3));
        assert_eq!(all[0].last_transition_time.0, at(3));
    }
}
