//! A rank's process: a real [`Lockstep`], and as little of an engine, of staging and of an exchange as
//! it takes to drive it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use millrace_experts::group::{Action, Lockstep, Order, Report, Staged, Start, Step};
use millrace_experts::{Epoch, Member, Plan, RankId};
use rand::Rng;

use crate::Flaw;
use crate::check::{Checked, Violation, ensure};
use crate::context::{Context, Input, number};

/// Dispatch and respond of one layer.
const PHASES: u32 = 2;

#[derive(Debug, Clone)]
pub enum Message {
    Start(Start),
    /// What the wire says, and what only the checker may look at.
    Data {
        epoch: u64,
        step: u64,
        phase: u32,
        truth: (Arc<Epoch>, u64),
    },
}

struct Running {
    step: Step,
    record: Arc<Epoch>,
    phase: u32,
}

/// Weights that are being loaded into the spare slots.
struct Job {
    number: u64,
    /// For a plan, or (`None`) for an epoch that was committed already.
    plan: Option<u64>,
    table: Vec<u32>,
}

type DataKey = (u64, u64, u32);

pub struct Process {
    pub me: Member,
    pub lockstep: Lockstep,
    /// Links as this end knows them.
    pub open: BTreeMap<RankId, u64>,
    orders: BTreeMap<usize, Order>,
    /// The router whose plan counts: of those attached, the last to speak of the newest epoch. That
    /// epoch may be older than one this rank knows: of a store that forgot.
    heed: Option<usize>,
    latest: Option<Arc<Epoch>>,
    /// The engine's slots, and the spare ones.
    live: Vec<u32>,
    spare: Option<Vec<u32>>,
    job: Option<Job>,
    jobs: u64,
    staged: Option<Staged>,
    /// Where [`Flaw::AdoptAlone`] left its epoch.
    forced_at: Option<u64>,
    running: Option<Running>,
    data: BTreeMap<(RankId, DataKey), (Arc<Epoch>, u64)>,
    /// Rows that wait to be computed.
    pub queue: usize,
    pub paused_until: u64,
    pub deferred: VecDeque<Input>,
    /// By router: its stream's number and what was last reported on it.
    pub streams: BTreeMap<usize, (u64, Option<Report>)>,
}

impl Process {
    pub fn new(me: Member, live: Vec<u32>) -> Process {
        Process {
            lockstep: Lockstep::new(me.id),
            me,
            open: BTreeMap::new(),
            orders: BTreeMap::new(),
            heed: None,
            latest: None,
            live,
            spare: None,
            job: None,
            jobs: 0,
            staged: None,
            forced_at: None,
            running: None,
            data: BTreeMap::new(),
            queue: 0,
            paused_until: 0,
            deferred: VecDeque::new(),
            streams: BTreeMap::new(),
        }
    }

    pub fn id(&self) -> RankId {
        self.me.id
    }

    pub fn knows(&self, peer: RankId) -> bool {
        let mut peers = self.orders.values().flat_map(|order| &order.peers);
        peers.any(|member| member.id == peer)
    }

    pub fn report(&self) -> Report {
        Report {
            me: self.me.clone(),
            adopted: self.lockstep.adopted().cloned(),
            known: self.lockstep.known(),
            linked: self.open.keys().copied().collect(),
            lost: self.lockstep.lost_members(),
            staged: self.staged.clone(),
        }
    }

    pub fn input(&mut self, input: Input, cx: &mut Context) -> Checked {
        match input {
            // Of two that come in the wrong order the newer stays.
            Input::Open { peer, generation }
                if self
                    .open
                    .get(&peer)
                    .is_some_and(|&newer| newer > generation) => {}
            Input::Open { peer, generation } => {
                self.close(peer, cx);
                self.open.insert(peer, generation);
            }
            Input::Lost { peer, generation } => {
                if self.open.get(&peer) == Some(&generation) {
                    self.close(peer, cx);
                }
            }
            Input::Message {
                from,
                generation,
                message,
            } if self.open.get(&from) == Some(&generation) => match message {
                Message::Start(start) => self.lockstep.start(from, start),
                Message::Data {
                    epoch,
                    step,
                    phase,
                    truth,
                } => {
                    self.data.insert((from, (epoch, step, phase)), truth);
                }
            },
            Input::Message { .. } => {}
            Input::Order {
                router,
                stream,
                order,
            } => {
                if self.streams.get(&router).is_some_and(|s| s.0 == stream) {
                    self.order(router, order, cx);
                }
            }
            Input::Loaded { job, outcome } if job == self.jobs => self.loaded(outcome),
            Input::Loaded { .. } => {}
            Input::Rows(rows) => self.queue += rows,
        }
        self.settle(cx)
    }

    fn close(&mut self, peer: RankId, cx: &mut Context) {
        if self.open.remove(&peer).is_none() {
            return;
        }
        self.lose(peer, cx);
    }

    fn lose(&mut self, peer: RankId, cx: &mut Context) {
        self.lockstep.lost(peer);
        if let Some(running) = &self.running
            && running.record.member(peer).is_some()
            && !self.has_all_of(peer, running)
        {
            self.drop_step(cx);
        }
    }

    fn has_all_of(&self, peer: RankId, running: &Running) -> bool {
        let Step { epoch, step, .. } = running.step;
        (running.phase..PHASES).all(|phase| self.data.contains_key(&(peer, (epoch, step, phase))))
    }

    fn drop_step(&mut self, cx: &mut Context) {
        self.running = None;
        self.lockstep.dropped();
        cx.check.seen.dropped += 1;
    }

    fn order(&mut self, router: usize, order: Order, cx: &mut Context) {
        if let Some(epoch) = &order.epoch
            && epoch.number > self.lockstep.known()
        {
            self.latest = Some(Arc::clone(epoch));
            if cx.flaw == Flaw::AdoptAlone && epoch.member(self.id()).is_some() {
                // As if it had no epoch to leave.
                self.forced_at = Some(self.lockstep.step());
                self.lockstep = Lockstep::new(self.id());
                self.running = None;
            }
            self.lockstep.commit(Arc::clone(epoch));
            if cx.flaw == Flaw::AdoptUnstaged {
                self.lockstep.staged(epoch.number);
            }
        }
        let of = |order: &Order| number(order.epoch.as_ref());
        let newest = self.orders.values().map(of).max().unwrap_or(0);
        if of(&order) >= newest {
            self.heed = Some(router);
        }
        self.orders.insert(router, order);
    }

    pub fn hang_up(&mut self, router: usize) {
        self.streams.remove(&router);
        self.orders.remove(&router);
        let newest = self
            .orders
            .iter()
            .max_by_key(|(_, o)| number(o.epoch.as_ref()));
        self.heed = newest.map(|(&router, _)| router);
    }

    fn slots(&self, epoch: &Epoch) -> Vec<u32> {
        epoch.placement.slots(0, self.me.id.rank).to_vec()
    }

    fn holds(&self, table: &[u32]) -> bool {
        self.live == table || self.spare.as_deref() == Some(table)
    }

    /// The latest epoch, if this rank is still to adopt it.
    fn ahead(&self) -> Option<Arc<Epoch>> {
        let adopted = self.lockstep.adopted().map_or(0, |epoch| epoch.number);
        let latest = self.latest.clone()?;
        (latest.number > adopted && latest.member(self.id()).is_some()).then_some(latest)
    }

    fn stage(&mut self, cx: &mut Context) {
        if let Some(epoch) = self.ahead() {
            let table = self.slots(&epoch);
            if self.holds(&table) {
                self.lockstep.staged(epoch.number);
            } else if self.job.as_ref().is_none_or(|job| job.table != table) && !self.makes_room() {
                self.load(epoch.number, None, table, cx);
            }
        }
        let Some(plan) = self.heed.and_then(|r| self.orders[&r].plan.clone()) else {
            self.staged = None;
            return;
        };
        self.stage_plan(&plan, cx);
    }

    /// A reset that is planned takes the room of an epoch that was never adopted.
    fn makes_room(&self) -> bool {
        let plan = self
            .heed
            .and_then(|router| self.orders[&router].plan.as_ref());
        plan.is_some_and(|plan| {
            plan.next.reset == plan.next.number
                && plan.next.number > self.lockstep.known()
                && plan.next.member(self.id()).is_some()
        })
    }

    fn stage_plan(&mut self, plan: &Plan, cx: &mut Context) {
        if self
            .staged
            .as_ref()
            .is_some_and(|staged| staged.plan != plan.id)
        {
            self.staged = None;
        }
        let known = self.lockstep.known();
        if plan.next.number <= known || plan.next.member(self.id()).is_none() {
            return;
        }
        let table = self.slots(&plan.next);
        if self.staged.is_some() {
            return;
        }
        if self.holds(&table) {
            self.staged = Some(Staged {
                plan: plan.id,
                outcome: Ok(()),
            });
        } else if self
            .job
            .as_ref()
            .is_none_or(|job| job.plan != Some(plan.id))
            && (self.ahead().is_none() || self.makes_room())
        {
            self.load(plan.next.number, Some(plan.id), table, cx);
        }
    }

    /// Overwrites the spare slots, from now on.
    fn load(&mut self, number: u64, plan: Option<u64>, table: Vec<u32>, cx: &mut Context) {
        let needed = self.ahead().is_some_and(|epoch| !self.is_live(&epoch));
        if needed && cx.flaw != Flaw::AdoptUnstaged {
            self.lockstep.unstaged();
        }
        self.spare = None;
        if plan.is_none() {
            self.staged = None;
        }
        self.jobs += 1;
        self.job = Some(Job {
            number,
            plan,
            table,
        });
        let outcome = match cx.faults && cx.rng.random_bool(0.1) {
            true => Err("checksum".to_owned()),
            false => Ok(()),
        };
        let job = self.jobs;
        let delay = cx.rng.random_range(500..30_000);
        cx.deliver(self.id(), delay, Input::Loaded { job, outcome });
    }

    fn is_live(&self, epoch: &Epoch) -> bool {
        self.live == self.slots(epoch)
    }

    fn loaded(&mut self, outcome: Result<(), String>) {
        let Some(Job { plan, table, .. }) = self.job.take() else {
            return;
        };
        if outcome.is_ok() {
            self.spare = Some(table);
        }
        if let Some(plan) = plan {
            self.staged = Some(Staged { plan, outcome });
        }
    }

    fn settle(&mut self, cx: &mut Context) -> Checked {
        for _ in 0..200 {
            self.stage(cx);
            if self.lockstep.must_drop() {
                self.drop_step(cx);
            }
            self.advance(cx)?;
            let step = self.lockstep.step();
            match self.lockstep.poll(self.queue.min(4)) {
                Action::Wait => return Ok(()),
                Action::Announce(start) => self.announce(start, cx),
                Action::Adopt(epoch) => self.adopt(&epoch, step, cx)?,
                Action::Leave => {
                    self.queue = 0;
                    cx.check.leave(self.id());
                }
                Action::Run(step) => self.run(step, cx)?,
            }
        }
        Err(Violation(format!("{:?} never comes to rest", self.id())))
    }

    fn announce(&mut self, start: Start, cx: &mut Context) {
        let members = self
            .lockstep
            .adopted()
            .expect("it announces")
            .members
            .clone();
        let me = self.id();
        for peer in members.iter().map(|m| m.id).filter(|&id| id != me) {
            match self.open.get(&peer) {
                Some(&generation) => cx.send(self.id(), peer, generation, Message::Start(start)),
                None => self.lockstep.lost(peer),
            }
        }
    }

    fn adopt(&mut self, epoch: &Arc<Epoch>, at_step: u64, cx: &mut Context) -> Checked {
        let table = self.slots(epoch);
        let at_step = self.forced_at.take().unwrap_or(at_step);
        let in_memory = self.holds(&table);
        cx.check.adopt(self.id(), epoch, at_step, in_memory)?;
        if self.live != table {
            self.live = table;
            self.spare = None;
            self.staged = None;
        }
        self.data
            .retain(|(_, (number, ..)), _| *number >= epoch.number);
        Ok(())
    }

    fn run(&mut self, step: Step, cx: &mut Context) -> Checked {
        let record = Arc::clone(self.lockstep.adopted().expect("it runs"));
        let in_memory = self.is_live(&record);
        cx.check.run(self.id(), &record, &step, in_memory)?;
        let mine = step.rows.iter().find(|(id, _)| *id == self.id());
        ensure!(
            mine.is_some_and(|(_, rows)| *rows <= self.queue.min(4)),
            "{:?} has fewer rows than it said",
            self.id()
        );
        self.running = Some(Running {
            step,
            record,
            phase: 0,
        });
        self.send_phase(cx);
        Ok(())
    }

    fn send_phase(&mut self, cx: &mut Context) {
        let Some(running) = &self.running else { return };
        let message = Message::Data {
            epoch: running.step.epoch,
            step: running.step.step,
            phase: running.phase,
            truth: (Arc::clone(&running.record), running.step.step),
        };
        let peers: Vec<RankId> = running.step.rows.iter().map(|&(id, _)| id).collect();
        for peer in peers.into_iter().filter(|&id| id != self.id()) {
            match self.open.get(&peer) {
                Some(&generation) => cx.send(self.id(), peer, generation, message.clone()),
                None => {
                    self.lockstep.lost(peer);
                    return self.drop_step(cx);
                }
            }
        }
    }

    /// As far as what has arrived allows.
    fn advance(&mut self, cx: &mut Context) -> Checked {
        while let Some(running) = &mut self.running {
            let Step { epoch, step, .. } = running.step;
            let me = self.me.id;
            let phase = running.phase;
            let key = |data: &BTreeMap<(RankId, DataKey), _>, peer| match cx.flaw {
                // Believes that a step's number is enough.
                Flaw::IgnoreEpochOfData => data
                    .keys()
                    .find(|(from, (_, s, p))| *from == peer && *s == step && *p == phase)
                    .copied(),
                _ => Some((peer, (epoch, step, phase))).filter(|key| data.contains_key(key)),
            };
            let others = running
                .step
                .rows
                .iter()
                .map(|&(id, _)| id)
                .filter(|&id| id != me);
            let keys: Option<Vec<_>> = others.map(|peer| key(&self.data, peer)).collect();
            let Some(keys) = keys else { return Ok(()) };
            for key in keys {
                let (sent, at) = self.data.remove(&key).expect("it is there");
                cx.check
                    .used(me, (&running.record, step), key.0, (&sent, at))?;
            }
            running.phase += 1;
            if running.phase < PHASES {
                self.send_phase(cx);
            } else {
                self.finish(cx);
            }
        }
        Ok(())
    }

    fn finish(&mut self, cx: &mut Context) {
        let running = self.running.take().expect("it runs");
        let mine = running.step.rows.iter().find(|(id, _)| *id == self.id());
        self.queue -= mine.map_or(0, |(_, rows)| *rows).min(self.queue);
        let done = (running.step.epoch, running.step.step);
        if cx.flaw != Flaw::IgnoreEpochOfData {
            self.data
                .retain(|(_, (epoch, step, _)), _| (*epoch, *step) > done);
        }
        cx.check.seen.steps += 1;
        self.lockstep.done();
    }

    /// Tells routers what changed.
    pub fn tell(&mut self, lives: &[u64], cx: &mut Context) {
        let report = self.report();
        for (&router, (stream, last)) in &mut self.streams {
            if last.as_ref() != Some(&report) {
                let first = last.is_none();
                *last = Some(report.clone());
                let router = (router, lives[router]);
                cx.push_report(router, *stream, first, report.clone());
            }
        }
    }

    pub fn describe(&self) -> String {
        format!(
            "rank {} of {:?} queue {} running {} epoch {} step {} known {} lost {:?} job {} staged {:?}",
            self.me.id.rank,
            self.open.keys().map(|id| id.rank).collect::<Vec<_>>(),
            self.queue,
            self.running.is_some(),
            number(self.lockstep.adopted()),
            self.lockstep.step(),
            self.lockstep.known(),
            self.lockstep.lost_members(),
            self.job.as_ref().map_or(0, |job| job.number),
            self.staged,
        )
    }
}
