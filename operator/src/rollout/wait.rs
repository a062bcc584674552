//! What a rollout waits for, in words.

use std::fmt;

use crate::api::Role;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wait {
    /// Groups of the wanted revision that routers do not send requests to yet.
    Ready {
        revision: String,
        role: Role,
        missing: u32,
    },
    /// Groups that were told to go: their requests run to their end.
    Drained {
        revision: String,
        role: Role,
        groups: u32,
    },
    /// A pool that was deleted and is still there.
    Gone { revision: String, role: Role },
    /// The controller of a pool that was just changed.
    Counted { revision: String, role: Role },
    /// Router pods that know the wanted revision's text. Until then an older revision keeps a pair.
    Router { older: bool },
}

impl Wait {
    /// One word for a condition's reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Wait::Ready { .. } => "WaitingForGroups",
            Wait::Drained { .. } => "Draining",
            Wait::Gone { .. } => "WaitingForDeletion",
            Wait::Counted { .. } => "WaitingForPool",
            Wait::Router { .. } => "WaitingForRouter",
        }
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wait::Ready {
                revision,
                role,
                missing,
            } => write!(
                f,
                "waiting for {missing} {role} {} of revision {revision} to be routable",
                groups(*missing)
            ),
            Wait::Drained {
                revision,
                role,
                groups: n,
            } => write!(
                f,
                "waiting for {n} {role} {} of revision {revision} to drain",
                groups(*n)
            ),
            Wait::Gone { revision, role } => write!(
                f,
                "waiting for the deleted {role} pool of revision {revision} to be gone"
            ),
            Wait::Counted { revision, role } => write!(
                f,
                "waiting for the {role} pool of revision {revision} to take note of a change"
            ),
            Wait::Router { older: true } => f.write_str(
                "waiting for the router's rollout; until it is complete one older pair stays",
            ),
            Wait::Router { older: false } => f.write_str("waiting for the router's rollout"),
        }
    }
}

fn groups(n: u32) -> &'static str {
    if n == 1 { "group" } else { "groups" }
}
