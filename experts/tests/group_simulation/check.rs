//! What must hold at every moment of a simulation. The checker sees everything, also what no rank or
//! router can.

use std::collections::BTreeMap;
use std::sync::Arc;

use millrace_experts::group::Step;
use millrace_experts::{Epoch, RankId};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation(pub String);

pub type Checked = Result<(), Violation>;

macro_rules! ensure {
    ($holds:expr, $($what:tt)*) => {
        if !$holds {
            return Err(Violation(format!($($what)*)));
        }
    };
}
pub(crate) use ensure;

/// A joint step as the first rank to compute it saw it.
struct Joint {
    record: Arc<Epoch>,
    step: Step,
}

#[derive(Default)]
pub struct Checker {
    /// Everything a store ever committed, over all its lives.
    committed: BTreeMap<u64, Arc<Epoch>>,
    joint: BTreeMap<(u64, u64), Joint>,
    /// Epochs left by agreement: at which step, and for which epoch.
    left: BTreeMap<u64, (u64, u64)>,
    /// Of each life: the epoch it computes under, and the highest it ever adopted.
    adopted: BTreeMap<RankId, (Option<Arc<Epoch>>, u64)>,
    /// The fault phase's own statistics: a simulation in which nothing happens proves nothing.
    pub seen: Seen,
}

/// How often what a simulation is for happened in it.
#[derive(Debug, Default, Clone, Copy)]
pub struct Seen {
    pub commits: usize,
    pub resets: usize,
    pub agreed: usize,
    pub at_once: usize,
    pub steps: usize,
    pub dropped: usize,
    pub left_out: usize,
    pub repairs: usize,
    pub forgotten: usize,
    pub lost_races: usize,
}

impl Seen {
    pub fn add(&mut self, other: &Seen) {
        self.commits += other.commits;
        self.resets += other.resets;
        self.agreed += other.agreed;
        self.at_once += other.at_once;
        self.steps += other.steps;
        self.dropped += other.dropped;
        self.left_out += other.left_out;
        self.repairs += other.repairs;
        self.forgotten += other.forgotten;
        self.lost_races += other.lost_races;
    }
}

fn same(a: &Arc<Epoch>, b: &Arc<Epoch>) -> bool {
    Arc::ptr_eq(a, b) || a == b
}

impl Checker {
    /// Store: numbers strictly increase, and no number is given twice as long as a rank lives that was
    /// told of one, also over all lives of a store that forgets; records can be computed under; and a
    /// change that is no reset follows on an epoch that all its living members are in, and loses none.
    /// `lives`: with the highest number each was told of.
    pub fn commit(
        &mut self,
        epoch: &Arc<Epoch>,
        before: Option<&Arc<Epoch>>,
        lives: &[(RankId, u64)],
    ) -> Checked {
        let number = epoch.number;
        if before.is_none() && lives.iter().all(|&(_, known)| known == 0) {
            // Nobody is left who could take an old number for a new one: the world begins again.
            self.committed.clear();
            self.joint.clear();
            self.left.clear();
        }
        let last = before.map_or(0, |before| before.number);
        ensure!(number > last, "epoch {number} is committed after {last}");
        ensure!(
            !self.committed.contains_key(&number),
            "epoch {number} is committed again"
        );
        for &(id, known) in lives.iter().filter(|&&(id, _)| epoch.member(id).is_some()) {
            ensure!(
                known < number,
                "epoch {number} is committed, but {id:?} was told of {known}"
            );
        }
        ensure!(epoch.check().is_ok(), "{:?}", epoch.check());
        self.seen.commits += 1;
        self.seen.forgotten += usize::from(before.is_none() && epoch.number > 1);
        if epoch.reset == epoch.number {
            self.seen.resets += 1;
            self.seen.repairs +=
                usize::from(before.is_some_and(|b| b.placement != epoch.placement));
        } else {
            let Some(before) = before else {
                return Err(Violation("the first epoch of a store is no reset".into()));
            };
            ensure!(
                epoch.reset == before.reset,
                "epoch {} moves the reset from {} to {}",
                epoch.number,
                before.reset,
                epoch.reset
            );
            for member in &before.members {
                ensure!(
                    epoch.member(member.id).is_some(),
                    "epoch {} loses {:?} without a reset",
                    epoch.number,
                    member.id
                );
                let adopted = self
                    .adopted
                    .get(&member.id)
                    .map_or(0, |(_, highest)| *highest);
                ensure!(
                    adopted >= before.number || lives.iter().all(|(id, _)| *id != member.id),
                    "epoch {} is committed while {:?} is in {adopted}",
                    epoch.number,
                    member.id
                );
            }
        }
        self.committed.insert(epoch.number, Arc::clone(epoch));
        Ok(())
    }

    /// Rank: adopts committed records alone, in order, as a member, with the weights in memory; and all
    /// who leave an epoch by agreement leave it at one step, for one epoch, after which nobody
    /// computes in it.
    pub fn adopt(
        &mut self,
        id: RankId,
        epoch: &Arc<Epoch>,
        at_step: u64,
        in_memory: bool,
    ) -> Checked {
        let (number, committed) = (epoch.number, self.committed.get(&epoch.number));
        ensure!(
            committed.is_some_and(|committed| same(committed, epoch)),
            "{id:?} adopts an epoch {number} that was never committed"
        );
        ensure!(
            epoch.member(id).is_some(),
            "{id:?} adopts {number} and is no member"
        );
        ensure!(in_memory, "{id:?} adopts {number} without its weights");
        let (current, highest) = self.adopted.entry(id).or_default();
        ensure!(number > *highest, "{id:?} adopts {number} after {highest}");
        *highest = number;
        let before = current.replace(Arc::clone(epoch));
        let Some(before) = before.filter(|before| epoch.reset <= before.number) else {
            self.seen.at_once += 1;
            return Ok(());
        };
        self.seen.agreed += 1;
        let left = *self.left.entry(before.number).or_insert((at_step, number));
        ensure!(
            left == (at_step, number),
            "{id:?} leaves epoch {} at step {at_step} for {number}, another at {} for {}",
            before.number,
            left.0,
            left.1
        );
        let after = self
            .joint
            .range((before.number, at_step)..(before.number + 1, 0));
        ensure!(
            after.count() == 0,
            "{id:?} leaves epoch {} at step {at_step}, which was computed",
            before.number
        );
        Ok(())
    }

    pub fn leave(&mut self, id: RankId) {
        self.seen.left_out += 1;
        self.adopted.entry(id).or_default().0 = None;
    }

    /// Rank: computes only in the epoch it adopted, with that epoch's weights, and exactly the step
    /// that every other member computes.
    pub fn run(
        &mut self,
        id: RankId,
        record: &Arc<Epoch>,
        step: &Step,
        in_memory: bool,
    ) -> Checked {
        let adopted = self
            .adopted
            .get(&id)
            .and_then(|(current, _)| current.as_ref());
        ensure!(
            adopted.is_some_and(|adopted| same(adopted, record)) && step.epoch == record.number,
            "{id:?} computes {step:?} under an epoch it has not adopted"
        );
        ensure!(
            in_memory,
            "{id:?} computes {step:?} with the weights of another epoch"
        );
        let members: Vec<RankId> = record.members.iter().map(|member| member.id).collect();
        let takes_part: Vec<RankId> = step.rows.iter().map(|&(id, _)| id).collect();
        ensure!(
            members == takes_part,
            "{step:?} is not a step of {members:?}"
        );
        if let Some(&(at_step, _)) = self.left.get(&step.epoch) {
            ensure!(
                step.step < at_step,
                "{id:?} computes {step:?}, but the epoch was left at {at_step}"
            );
        }
        let joint = self
            .joint
            .entry((step.epoch, step.step))
            .or_insert_with(|| Joint {
                record: Arc::clone(record),
                step: step.clone(),
            });
        ensure!(
            same(&joint.record, record) && joint.step == *step,
            "{id:?} computes {step:?}, another {:?}",
            joint.step
        );
        Ok(())
    }

    /// Exchange: what a rank uses in a step was sent in the same step under the same record, whatever
    /// the frame says of itself.
    pub fn used(
        &mut self,
        id: RankId,
        mine: (&Arc<Epoch>, u64),
        from: RankId,
        sent: (&Arc<Epoch>, u64),
    ) -> Checked {
        ensure!(
            same(mine.0, sent.0) && mine.1 == sent.1,
            "{id:?} in step {}/{} uses what {from:?} sent in {}/{}",
            mine.0.number,
            mine.1,
            sent.0.number,
            sent.1
        );
        Ok(())
    }
}
