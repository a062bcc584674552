//! How ranks take each step together, and leave an epoch together.
//!
//! Before a step, each member of an epoch sends every other a [`Start`]. Once a rank has all of them
//! it decides, and as every rank decides on the same words, all decide the same:
//!
//! * all are ready for the same later epoch: adopt it, compute nothing;
//! * somebody has rows: everyone takes part in the step, with zero rows too;
//! * nobody has: nothing to compute, the next step's turn.
//!
//! A rank that waits answers a `Start`, and sends one by itself only if it has something to say: rows,
//! or an epoch that it became ready for. So an idle group is silent, and whoever has news last is the
//! one who sets off the step at which it takes effect.
//!
//! This agreement needs everyone's word. When a member is lost, the coordinator commits an epoch that
//! is a *reset* of the ones before, and whoever hears of it drops its step and adopts it at once.

mod words;

use std::collections::BTreeSet;
use std::sync::Arc;

use self::words::Words;
use super::Start;
use crate::{Epoch, RankId};

/// One rank's side of the agreement. Driven by the thread that runs its engine: every input may
/// change what [`poll`](Self::poll) answers.
#[derive(Debug)]
pub struct Lockstep {
    me: RankId,
    /// The latest committed epoch, adopted or not.
    latest: Option<Arc<Epoch>>,
    /// Its weights are in memory.
    staged: bool,
    adopted: Option<Arc<Epoch>>,
    /// Of the adopted epoch.
    step: u64,
    /// My word for this step, once it is out.
    mine: Option<Start>,
    /// The latest `ready_for` the others were told.
    told: u64,
    words: Words,
    running: bool,
    /// The adopted epoch cannot take another step.
    broken: bool,
    lost: BTreeSet<RankId>,
}

/// What the engine is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Nothing until there is another input, or rows.
    Wait,
    /// Send it to every other member of the adopted epoch, then poll again. A member to which no link
    /// is up is [`lost`](Lockstep::lost): a word that is sent to nobody is never sent again.
    Announce(Start),
    /// Switch the engine to this epoch now, then poll again.
    Adopt(Arc<Epoch>),
    /// A committed epoch is without this rank: fail its requests, then poll again.
    Leave,
    /// Compute this step, then say [`done`](Lockstep::done) or [`dropped`](Lockstep::dropped).
    Run(Step),
}

/// A step that all members take part in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub epoch: u64,
    pub step: u64,
    /// Of every member, by rank, this one included: rows it has at most. Not all are zero.
    pub rows: Vec<(RankId, usize)>,
}

/// What all Starts of a step come to: a function of the words alone, the same on every member.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Adopt(u64),
    Run,
    Nothing,
}

impl Lockstep {
    pub fn new(me: RankId) -> Lockstep {
        Lockstep {
            me,
            latest: None,
            staged: false,
            adopted: None,
            step: 0,
            mine: None,
            told: 0,
            words: Words::default(),
            running: false,
            broken: false,
            lost: BTreeSet::new(),
        }
    }

    /// A router told of a committed epoch. Numbers that are not new are ignored.
    pub fn commit(&mut self, epoch: Arc<Epoch>) {
        if epoch.number > self.known() {
            self.latest = Some(epoch);
            self.staged = false;
        }
    }

    /// The weights of all my slots of the latest committed epoch are in memory and verified. Said
    /// *after* [`commit`](Self::commit): a plan of the same number may have been given up.
    pub fn staged(&mut self, number: u64) {
        self.staged |= number != 0 && number == self.known();
    }

    /// The room that [`staged`](Self::staged) weights took is needed for a reset that is being planned:
    /// from now on the latest epoch cannot be adopted.
    pub fn unstaged(&mut self) {
        self.staged = false;
    }

    /// A peer's word, in the order in which its link delivered it.
    pub fn start(&mut self, from: RankId, start: Start) {
        match &self.adopted {
            _ if from == self.me => {}
            Some(epoch) if start.epoch < epoch.number => {}
            Some(epoch) if start.epoch == epoch.number => {
                if epoch.member(from).is_some() {
                    self.words.hear(from, start, self.step);
                }
            }
            _ => self.words.hear_early(from, start),
        }
    }

    /// The link to this life broke. Told of every break, also when a new link is up already, and
    /// before anything that came over the new one: what was said over the old one may be missing.
    pub fn lost(&mut self, peer: RankId) {
        self.words.forget(peer);
        if peer != self.me
            && self
                .adopted
                .as_ref()
                .is_some_and(|e| e.member(peer).is_some())
        {
            self.broken = true;
            self.lost.insert(peer);
        }
    }

    /// `rows`: what the engine would compute now, at most.
    pub fn poll(&mut self, rows: usize) -> Action {
        if self.running {
            return Action::Wait;
        }
        if let Some(action) = self.urgent() {
            match &action {
                Action::Adopt(epoch) => self.adopt(Arc::clone(epoch)),
                _ => self.leave(),
            }
            return action;
        }
        let Some(epoch) = self.adopted.clone().filter(|_| !self.broken) else {
            return Action::Wait;
        };
        loop {
            let ready_for = self.ready_for(&epoch);
            let has_news = rows > 0 || ready_for > self.told || self.words.anyone_now();
            if self.mine.is_none() && has_news {
                let start = Start {
                    epoch: epoch.number,
                    step: self.step,
                    ready_for,
                    rows,
                };
                self.mine = Some(start);
                self.told = ready_for;
                if epoch.members.len() > 1 {
                    return Action::Announce(start);
                }
            }
            let Some(starts) = self.starts(&epoch) else {
                return Action::Wait;
            };
            match outcome(epoch.number, starts.iter().map(|(_, start)| start)) {
                Outcome::Adopt(number) => return self.agreed(number),
                Outcome::Run => {
                    self.running = true;
                    return Action::Run(Step {
                        epoch: epoch.number,
                        step: self.step,
                        rows: starts.iter().map(|&(id, start)| (id, start.rows)).collect(),
                    });
                }
                Outcome::Nothing => self.next_step(),
            }
        }
    }

    /// The step of [`Action::Run`] is complete.
    pub fn done(&mut self) {
        self.running = false;
        self.next_step();
    }

    /// The step of [`Action::Run`] could not be completed. There is no going on in its epoch.
    pub fn dropped(&mut self) {
        self.running = false;
        self.broken = true;
    }

    /// The running step is worth nothing any more: interrupt its exchange, and say
    /// [`dropped`](Self::dropped).
    pub fn must_drop(&self) -> bool {
        self.running && self.urgent().is_some()
    }

    pub fn adopted(&self) -> Option<&Arc<Epoch>> {
        self.adopted.as_ref()
    }

    /// The step that is to be agreed on, or that runs.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// For [`Report::known`](super::Report::known).
    pub fn known(&self) -> u64 {
        self.latest.as_ref().map_or(0, |epoch| epoch.number)
    }

    /// For [`Report::lost`](super::Report::lost): not empty if the adopted epoch is broken and only a
    /// reset helps.
    pub fn lost_members(&self) -> Vec<RankId> {
        match &self.adopted {
            // A step was dropped and nobody knows whose fault it was.
            Some(epoch) if self.broken && self.lost.is_empty() => {
                let ids = epoch.members.iter().map(|member| member.id);
                ids.filter(|&id| id != self.me).collect()
            }
            _ => self.lost.iter().copied().collect(),
        }
    }

    /// What has to be done without anyone's consent.
    fn urgent(&self) -> Option<Action> {
        let latest = self.latest.as_ref()?;
        let adopted = self.adopted.as_ref().map_or(0, |epoch| epoch.number);
        if latest.number <= adopted {
            None
        } else if latest.member(self.me).is_none() {
            (adopted > 0).then_some(Action::Leave)
        } else {
            // Without an epoch there is nothing to agree on leaving: a first epoch, or a joiner's.
            let at_once = adopted == 0 || latest.reset > adopted;
            (at_once && self.staged).then(|| Action::Adopt(Arc::clone(latest)))
        }
    }

    /// The epoch that could be adopted by agreement now.
    fn ready_for(&self, epoch: &Epoch) -> u64 {
        match &self.latest {
            Some(latest) if self.staged && latest.reset <= epoch.number => latest.number,
            _ => epoch.number,
        }
    }

    /// The words of all members for this step, by rank, if all are there.
    fn starts(&self, epoch: &Epoch) -> Option<Vec<(RankId, Start)>> {
        let of = |id| match id == self.me {
            true => self.mine.as_ref(),
            false => self.words.now(id),
        };
        let ids = epoch.members.iter().map(|member| member.id);
        ids.map(|id| of(id).map(|&start| (id, start))).collect()
    }

    /// Everyone leaves for epoch `number` at this step.
    fn agreed(&mut self, number: u64) -> Action {
        match self.latest.clone() {
            Some(latest) if latest.number == number && self.staged => {
                self.adopt(Arc::clone(&latest));
                Action::Adopt(latest)
            }
            // Since my word went out a reset was committed, whose weights are still to come: it
            // replaces what was agreed on, for the others too.
            _ => {
                self.broken = true;
                Action::Wait
            }
        }
    }

    fn adopt(&mut self, epoch: Arc<Epoch>) {
        self.words
            .adopt(epoch.number, |peer| epoch.member(peer).is_some());
        self.told = epoch.number;
        self.adopted = Some(epoch);
        self.restart();
    }

    fn leave(&mut self) {
        self.adopted = None;
        self.restart();
    }

    fn restart(&mut self) {
        self.step = 0;
        self.mine = None;
        self.broken = false;
        self.lost.clear();
    }

    fn next_step(&mut self) {
        self.step += 1;
        self.mine = None;
        self.words.next_step();
    }
}

fn outcome<'a>(epoch: u64, starts: impl Iterator<Item = &'a Start>) -> Outcome {
    let mut ready = BTreeSet::new();
    let mut rows = 0;
    for start in starts {
        ready.insert(start.ready_for);
        rows += start.rows;
    }
    match ready.first() {
        Some(&number) if ready.len() == 1 && number > epoch => Outcome::Adopt(number),
        _ if rows > 0 => Outcome::Run,
        _ => Outcome::Nothing,
    }
}

#[cfg(test)]
mod tests;
