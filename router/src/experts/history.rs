//! What was decided of a group, in words.

use std::collections::VecDeque;
use std::time::{SystemTime, UNIX_EPOCH};

use millrace_experts::{Epoch, Member, planner};

use super::view::{EventKind, EventView};

/// Decisions remembered.
const KEPT: usize = 32;

/// The last decisions, oldest first.
#[derive(Debug, Default)]
pub struct History {
    events: VecDeque<EventView>,
}

impl History {
    pub fn add(&mut self, kind: EventKind, epoch: u64, reason: String) {
        // What comes to nothing again and again is one thing to know.
        if matches!(kind, EventKind::Kept | EventKind::Failed)
            && self.events.back().is_some_and(|last| last.kind == kind)
        {
            self.events.pop_back();
        }
        if self.events.len() == KEPT {
            self.events.pop_front();
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        self.events.push_back(EventView {
            at: since.map_or(0, |since| since.as_secs()),
            kind,
            epoch,
            reason,
        });
    }

    pub fn events(&self) -> Vec<EventView> {
        self.events.iter().cloned().collect()
    }
}

/// What sets an epoch apart from the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The first.
    Form,
    /// Members left, whoever else came.
    Evict,
    Join,
    /// The same members begin anew.
    Relink,
    Balance,
}

impl Cause {
    pub fn of(before: Option<&Epoch>, next: &Epoch) -> Cause {
        let Some(before) = before else {
            return Cause::Form;
        };
        if left(before, next).next().is_some() {
            Cause::Evict
        } else if left(next, before).next().is_some() {
            Cause::Join
        } else if next.reset > before.reset {
            Cause::Relink
        } else {
            Cause::Balance
        }
    }

    /// The label of metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Cause::Form => "form",
            Cause::Evict => "evict",
            Cause::Join => "join",
            Cause::Relink => "relink",
            Cause::Balance => "balance",
        }
    }
}

/// Experts that ranks load because of a change of placement.
pub fn moved(before: Option<&Epoch>, next: &Epoch) -> usize {
    before.map_or(0, |before| {
        if before.placement.shape() != next.placement.shape() {
            return 0;
        }
        planner::loads_per_rank(&before.placement, &next.placement)
            .iter()
            .sum()
    })
}

/// Why `next` follows on `before`.
pub fn reason(before: Option<&Epoch>, next: &Epoch) -> String {
    let moved = match moved(before, next) {
        0 => String::new(),
        moved => format!("; {moved} experts move"),
    };
    let named = |ranks: Vec<usize>| {
        let numbers: Vec<String> = ranks.iter().map(usize::to_string).collect();
        let plural = if ranks.len() == 1 { "" } else { "s" };
        format!("rank{plural} {}", numbers.join(", "))
    };
    let Some(before) = before else {
        return format!("the group has formed, {} ranks", next.members.len());
    };
    let gone: Vec<usize> = left(before, next).collect();
    let came: Vec<usize> = left(next, before).collect();
    match Cause::of(Some(before), next) {
        Cause::Form | Cause::Relink => format!("links broke and healed: all begin anew{moved}"),
        Cause::Evict if came.is_empty() => format!("{} left out{moved}", named(gone)),
        Cause::Evict => format!("{} left out, {} joined{moved}", named(gone), named(came)),
        Cause::Join => format!("{} joined{moved}", named(came)),
        Cause::Balance => format!("another placement{moved}"),
    }
}

/// Ranks whose lives in `before` are not in `next`.
fn left<'a>(before: &'a Epoch, next: &'a Epoch) -> impl Iterator<Item = usize> {
    let is_gone = |member: &&Member| next.member(member.id).is_none();
    before
        .members
        .iter()
        .filter(is_gone)
        .map(|member| member.id.rank)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use millrace_experts::{Loads, Placement, RankId, Shape};

    use super::*;

    fn epoch(members: &[(usize, u64)], reset: u64) -> Epoch {
        let shape = Shape::new(1, 2, 2, 2).unwrap();
        let member = |&(rank, incarnation)| Member {
            id: RankId { rank, incarnation },
            exchange: String::new(),
            grpc: String::new(),
        };
        Epoch {
            number: reset,
            reset,
            members: members.iter().map(member).collect(),
            placement: Arc::new(Placement::initial(shape).unwrap()),
            expected: Arc::new(Loads::zero(1, 2)),
        }
    }

    #[test]
    fn a_change_is_told_by_what_differs() {
        let both = epoch(&[(0, 1), (1, 1)], 1);
        let told = |next: &Epoch| {
            (
                Cause::of(Some(&both), next).as_str(),
                reason(Some(&both), next),
            )
        };
        assert_eq!(
            told(&epoch(&[(0, 1)], 2)),
            ("evict", "rank 1 left out".into())
        );
        let back = epoch(&[(0, 1), (1, 2)], 2);
        assert_eq!(
            told(&back),
            ("evict", "rank 1 left out, rank 1 joined".into())
        );
        assert_eq!(told(&epoch(&[(0, 1), (1, 1)], 2)).0, "relink");
        let mut moved = both.clone();
        let shape = moved.placement.shape();
        moved.placement = Arc::new(Placement::new(shape, vec![0, 0, 1, 0]).unwrap());
        assert_eq!(told(&moved), ("balance", "another placement".into()));
    }

    #[test]
    fn the_oldest_is_forgotten() {
        let mut history = History::default();
        for epoch in 0..40 {
            history.add(EventKind::Committed, epoch, String::new());
        }
        let events = history.events();
        assert_eq!((events.len(), events[0].epoch), (KEPT, 8));
        history.add(EventKind::Kept, 40, "first".into());
        history.add(EventKind::Kept, 40, "second".into());
        assert_eq!(history.events().last().unwrap().reason, "second");
        assert_eq!(history.events()[KEPT - 2].epoch, 39);
    }
}
