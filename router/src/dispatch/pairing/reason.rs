//! Why a worker gets no requests, in words.

use std::collections::HashSet;

use super::Standing::{self, Whole};
use crate::fleet::{Fleet, Role, Worker};

/// What pairing would do with each worker for a sequence that nothing has failed yet.
pub struct Reasons<'a> {
    /// Revisions with a worker of the role attached, and with one that takes requests.
    attached: HashSet<(Role, &'a str)>,
    available: HashSet<(Role, &'a str)>,
    /// Some revision is whole, so that those that lack something are passed over.
    any_whole: bool,
}

impl<'a> Reasons<'a> {
    pub fn of(fleet: &'a Fleet) -> Reasons<'a> {
        let mut reasons = Reasons {
            attached: HashSet::new(),
            available: HashSet::new(),
            any_whole: false,
        };
        for role in Role::ALL {
            for (_, worker) in fleet.workers(role) {
                let place = (role, worker.description.revision.as_str());
                reasons.attached.insert(place);
                if worker.is_available() {
                    reasons.available.insert(place);
                }
            }
        }
        let is_whole = |worker: &Worker| reasons.standing(worker) == Whole;
        reasons.any_whole = fleet
            .available(Role::Decode)
            .any(|(_, worker)| is_whole(worker));
        reasons
    }

    /// Why no requests are sent to a worker. `None`: they are.
    pub fn against(&self, worker: &Worker) -> Option<String> {
        if let Some(unavailable) = worker.unavailable() {
            return Some(unavailable.to_string());
        }
        match worker.description.role {
            Role::Prefill => self.missing(Role::Decode, worker),
            Role::Decode if self.standing(worker) == Whole || !self.any_whole => None,
            Role::Decode => {
                let missing = self.missing(Role::Prefill, worker)?;
                Some(format!("{missing}, and another revision has both"))
            }
        }
    }

    fn missing(&self, role: Role, worker: &Worker) -> Option<String> {
        let place = (role, worker.description.revision.as_str());
        let is = match (
            self.available.contains(&place),
            self.attached.contains(&place),
        ) {
            (true, _) => return None,
            (false, true) => "available",
            (false, false) => "attached",
        };
        Some(format!("no {role} worker of its revision is {is}"))
    }

    fn standing(&self, decode: &Worker) -> Standing {
        let place = (Role::Prefill, decode.description.revision.as_str());
        Standing::of(
            decode.description.aggregated,
            self.available.contains(&place),
        )
    }
}
