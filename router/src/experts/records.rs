//! What the store's bytes mean. Whatever is there, a rank is only ever sent records that make sense.

use std::sync::Arc;

use millrace_experts::epoch::EpochError;
use millrace_experts::{Epoch, Plan, Shape};

use super::store::{Slot, Slots};

/// A group's records as far as they are good.
#[derive(Debug)]
pub struct Records {
    shape: Shape,
    /// Whose records these are.
    store: Option<Arc<str>>,
    read: Slots,
    epoch: Option<Arc<Epoch>>,
    plan: Option<Arc<Plan>>,
}

/// A record that is not believed. The last good one stays in force.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRecord {
    #[error("the epoch in the store is refused, {in_force}: {why}")]
    Epoch { in_force: InForce, why: Why },
    #[error("the plan in the store is refused: {0}")]
    Plan(Why),
}

#[derive(Debug, PartialEq, Eq)]
pub struct InForce(Option<u64>);

impl std::fmt::Display for InForce {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(epoch) => write!(f, "epoch {epoch} stays in force"),
            None => f.write_str("and there is none in force"),
        }
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    #[error(transparent)]
    Record(#[from] EpochError),
    #[error("it is for {got:?}, and the group has {expected:?}")]
    Shape { got: Shape, expected: Shape },
    #[error("its number {number} is not above {last}")]
    Old { number: u64, last: u64 },
    #[error("it follows on epoch {base}, which is still to come after {epoch}")]
    Ahead { base: u64, epoch: u64 },
    #[error("its id is 0, which stands for no plan")]
    NoId,
}

impl Records {
    pub fn new(shape: Shape) -> Records {
        Records {
            shape,
            store: None,
            read: Slots::default(),
            epoch: None,
            plan: None,
        }
    }

    pub fn epoch(&self) -> Option<&Arc<Epoch>> {
        self.epoch.as_ref()
    }

    pub fn plan(&self) -> Option<&Arc<Plan>> {
        self.plan.as_ref()
    }

    pub fn store(&self) -> Option<&Arc<str>> {
        self.store.as_ref()
    }

    /// Revisions of what was read last, good or bad: what a write has to replace.
    pub fn revisions(&self) -> (i64, i64) {
        (self.read.epoch.revision, self.read.plan.revision)
    }

    /// Takes in what the store of that id has now. Returns what of it is refused, once.
    pub fn read(&mut self, store: &Arc<str>, slots: Slots) -> Vec<BadRecord> {
        if self.store.as_ref() != Some(store) {
            *self = Records {
                store: Some(Arc::clone(store)),
                ..Records::new(self.shape)
            };
        }
        let before = std::mem::replace(&mut self.read, slots);
        let mut bad = Vec::new();
        let news = before.epoch.revision != self.read.epoch.revision;
        if news && let Some(read) = parse(&self.read.epoch, Epoch::from_json) {
            match read.map_err(Why::from).and_then(|epoch| self.next(epoch)) {
                Ok(epoch) => self.epoch = Some(epoch),
                Err(why) => bad.push(BadRecord::Epoch {
                    in_force: InForce(self.epoch.as_ref().map(|epoch| epoch.number)),
                    why,
                }),
            }
        }
        // Another epoch may make a plan void, or be the one that it waited for.
        if news || before.plan.revision != self.read.plan.revision {
            self.plan = None;
            if let Some(read) = parse(&self.read.plan, Plan::from_json) {
                match read.map_err(Why::from).and_then(|plan| self.follows(plan)) {
                    Ok(plan) => self.plan = plan,
                    Err(why) => bad.push(BadRecord::Plan(why)),
                }
            }
        }
        bad
    }

    fn next(&self, epoch: Epoch) -> Result<Arc<Epoch>, Why> {
        self.fits(&epoch)?;
        match &self.epoch {
            Some(last) if **last == epoch => Ok(Arc::clone(last)),
            Some(last) if last.number >= epoch.number => Err(Why::Old {
                number: epoch.number,
                last: last.number,
            }),
            _ => Ok(Arc::new(epoch)),
        }
    }

    /// `None`: its epoch has been overtaken, which is no error.
    fn follows(&self, plan: Plan) -> Result<Option<Arc<Plan>>, Why> {
        self.fits(&plan.next)?;
        let epoch = self.epoch.as_ref().map_or(0, |epoch| epoch.number);
        if plan.id == 0 {
            return Err(Why::NoId);
        }
        if plan.base > epoch {
            return Err(Why::Ahead {
                base: plan.base,
                epoch,
            });
        }
        Ok((plan.base == epoch).then(|| Arc::new(plan)))
    }

    fn fits(&self, epoch: &Epoch) -> Result<(), Why> {
        let got = epoch.placement.shape();
        if got == self.shape {
            return Ok(());
        }
        Err(Why::Shape {
            got,
            expected: self.shape,
        })
    }
}

fn parse<T>(
    slot: &Slot,
    from_json: fn(&[u8]) -> Result<T, EpochError>,
) -> Option<Result<T, EpochError>> {
    slot.bytes.as_deref().map(from_json)
}

#[cfg(test)]
mod tests;
