//! A lone router's store: it leads for ever, and a restart is another store.

use std::sync::Arc;

use tokio::sync::watch;

use super::{Base, Change, Kind, Slot, State, Term, WriteError};

pub struct Memory {
    state: watch::Sender<State>,
}

impl Memory {
    pub fn new() -> Memory {
        let state = State {
            id: Some(format!("memory-{:016x}", rand::random::<u64>()).into()),
            up: true,
            term: Some(Term {
                revision: 1,
                until: None,
            }),
            ..State::default()
        };
        Memory {
            state: watch::Sender::new(state),
        }
    }

    pub fn states(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    pub fn write(&self, group: &str, change: Change, base: Base) -> Result<(), WriteError> {
        let written = self.state.send_if_modified(|state| {
            let slots = state.slots(group);
            let now = (slots.epoch.revision, slots.plan.revision, state.term);
            if now != (base.epoch, base.plan, Some(base.term)) {
                return false;
            }
            let revision = slots.epoch.seen.max(slots.plan.seen) + 1;
            let slot = |bytes: Option<Vec<u8>>| Slot {
                revision: if bytes.is_some() { revision } else { 0 },
                bytes: bytes.map(Arc::from),
                seen: revision,
            };
            let (epoch, plan) = change.parts();
            if let Some(epoch) = epoch {
                state.learn(group, Kind::Epoch, slot(Some(epoch)));
            }
            if let Some(plan) = plan {
                state.learn(group, Kind::Plan, slot(plan));
            }
            true
        });
        if written {
            Ok(())
        } else {
            Err(WriteError::Conflict)
        }
    }
}
