//! What other ranks said of the steps this one has yet to decide on.

use std::collections::BTreeMap;

use crate::RankId;
use crate::group::Start;

/// The words of one life. It cannot be further ahead than this: for step `s + 1` it needs our word for
/// `s`, and for step 1 of a later epoch our word for its step 0.
#[derive(Debug, Clone, Copy, Default)]
struct Said {
    /// Of this step.
    now: Option<Start>,
    /// Of the next one, while we still compute this one.
    next: Option<Start>,
    /// Of step 0 of a later epoch.
    later: Option<Start>,
}

/// One entry a life we have a link with: a link that breaks takes its words along.
#[derive(Debug, Default)]
pub(super) struct Words {
    said: BTreeMap<RankId, Said>,
}

impl Words {
    pub fn now(&self, peer: RankId) -> Option<&Start> {
        self.said.get(&peer)?.now.as_ref()
    }

    pub fn anyone_now(&self) -> bool {
        self.said.values().any(|said| said.now.is_some())
    }

    /// Of the adopted epoch, which is at `step`.
    pub fn hear(&mut self, from: RankId, start: Start, step: u64) {
        let said = self.said.entry(from).or_default();
        if start.step == step {
            said.now.get_or_insert(start);
        } else if start.step == step + 1 {
            said.next.get_or_insert(start);
        }
    }

    /// Of an epoch after the adopted one.
    pub fn hear_early(&mut self, from: RankId, start: Start) {
        let said = self.said.entry(from).or_default();
        // Who speaks in a newer epoch has left the older one, and cannot complete a step of it.
        if start.step == 0 && said.later.is_none_or(|later| later.epoch < start.epoch) {
            said.later = Some(start);
        }
    }

    pub fn forget(&mut self, peer: RankId) {
        self.said.remove(&peer);
    }

    pub fn next_step(&mut self) {
        for said in self.said.values_mut() {
            said.now = said.next.take();
        }
    }

    pub fn adopt(&mut self, epoch: u64, is_member: impl Fn(RankId) -> bool) {
        for (&peer, said) in &mut self.said {
            *said = match said.later {
                Some(start) if start.epoch == epoch && is_member(peer) => Said {
                    now: Some(start),
                    ..Said::default()
                },
                Some(start) if start.epoch > epoch => Said {
                    later: Some(start),
                    ..Said::default()
                },
                _ => Said::default(),
            };
        }
        self.said
            .retain(|_, said| said.now.is_some() || said.later.is_some());
    }
}
