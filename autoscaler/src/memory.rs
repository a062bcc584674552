//! What is kept between two looks. All of it can be lost.

use crate::choose::Room;
use crate::correction::Learned;
use crate::decision::{Cause, Frozen, Limit, Status};
use crate::explain::explain;
use crate::feedback::Lessons;
use crate::load::{NOW, Rate, Shape};
use crate::observation::Observation;
use crate::policy::Policy;
use crate::steady::{Patience, Stabilizer, Steps};
use crate::weigh::Look;
use crate::window::{MIDDLE, SHORT, Window};
use crate::{ByRole, Decision, Role, schedule};

/// Bounded: the samples of the last 15 minutes and a few numbers that were learned. Begins empty, with
/// [`Memory::default`].
#[derive(Debug, Clone, Default)]
pub struct Memory {
    pub(crate) window: Window,
    pub(crate) learned: Learned,
    pub(crate) lessons: Lessons,
    pub(crate) steps: Steps,
    /// What up and down looks wanted since replicas last changed.
    pub(crate) up: ByRole<Stabilizer>,
    pub(crate) down: ByRole<Stabilizer>,
    pub(crate) patience: ByRole<Patience>,
    /// Since when all wanted replicas are ready. `None`: they are not.
    pub(crate) settled: Option<f64>,
    /// Since when replicas are starting. `None`: none are.
    pub(crate) starting: Option<f64>,
    /// What is needed without what waits, where more was asked for to work that off.
    pub(crate) without_backlog: Option<ByRole<u32>>,
    present: Option<ByRole<u32>>,
    idle_since: Option<f64>,
    last_look: Option<f64>,
}

/// A decision in the making.
#[derive(Debug)]
pub(crate) struct Draft {
    pub status: Status,
    pub target: ByRole<u32>,
    pub causes: ByRole<Cause>,
    pub limits: Vec<Limit>,
}

impl Draft {
    fn new(status: Status, target: ByRole<u32>, cause: Cause) -> Draft {
        Draft {
            status,
            target,
            causes: ByRole {
                prefill: cause,
                decode: cause,
            },
            limits: Vec::new(),
        }
    }
}

impl Memory {
    /// The policy is valid.
    pub(crate) fn decide(&mut self, policy: &Policy, observation: &Observation) -> Decision {
        let present = observation.pools.map(|_, pool| pool.wanted);
        let heard = self.window.take(observation);
        let window = policy.behavior.down.stabilization_seconds;
        self.note(observation, present, window, heard.is_err());
        let minimum = policy.minimum();
        let hints = schedule::floor(policy, observation.unix_seconds);
        let with_hints = Room::of(policy, minimum.map(|role, &n| n.max(*hints.of(role))));
        let room = if with_hints.cost(with_hints.low) <= with_hints.budget {
            with_hints
        } else {
            // As many as the budget allows.
            let low = Room::of(policy, minimum).fit(with_hints.low, minimum);
            Room::of(policy, low)
        };
        let shape = Shape::of(&self.window, observation, policy);
        let rate = Rate::of(&self.window, shape.as_ref());
        if let (Ok(()), Some(shape)) = (&heard, &shape) {
            self.learn(policy, observation, shape, present);
        }
        self.last_look = Some(observation.now);
        let look = Look {
            policy,
            observation,
            room: &room,
            shape: shape.as_ref(),
            rate: &rate,
        };

        let mut draft = if self.sleeps(policy, observation, present, hints) {
            let mut draft = Draft::new(Status::Active, ByRole::default(), Cause::Idle);
            if let Err(why) = heard {
                draft.status = Status::Frozen(why);
            }
            return explain(self, &look, draft);
        } else if present.decode == 0 {
            Draft::new(Status::Active, room.low, Cause::Wake)
        } else if let Err(why) = heard {
            Draft::new(Status::Frozen(why), present, Cause::Frozen)
        } else if self.window.covered() < self.warm() || (shape.is_none() && rate.count > 0.0) {
            Draft::new(Status::Frozen(Frozen::Warming), present, Cause::Frozen)
        } else {
            let mut draft = Draft::new(Status::Active, present, Cause::Enough);
            self.weigh(&look, &mut draft);
            draft
        };
        self.limit(policy, observation.now, present, &room, &mut draft);
        explain(self, &look, draft)
    }

    /// Seconds of traffic until anything is decided on it: after a gap fewer than after a start, which knows
    /// nothing of these pools.
    fn warm(&self) -> f64 {
        match self.learned.is_known() {
            true => NOW,
            false => SHORT,
        }
    }

    /// Steps and bounds.
    fn limit(
        &self,
        policy: &Policy,
        now: f64,
        present: ByRole<u32>,
        room: &Room,
        draft: &mut Draft,
    ) {
        let wanted = draft.target;
        let stepped = wanted.map(|role, &n| self.steps.limit(now, role, n, &policy.behavior));
        draft.target = room.fit(stepped, present);
        for role in [Role::Prefill, Role::Decode] {
            let (wanted, stepped) = (*wanted.of(role), *stepped.of(role));
            if wanted != stepped {
                draft.limits.push(Limit::Step(role));
            }
            if *draft.target.of(role) != stepped {
                *draft.causes.of_mut(role) = Cause::Bounds;
            }
        }
        if stepped.map(|role, &n| n.min(*room.high.of(role))) != draft.target
            && room.cost(stepped) > room.budget
        {
            draft.limits.push(Limit::Budget);
        }
    }

    /// Takes down what there is, apart from traffic.
    fn note(&mut self, observation: &Observation, present: ByRole<u32>, window: f64, gap: bool) {
        let now = observation.now;
        if self.present != Some(present) {
            for role in [Role::Prefill, Role::Decode] {
                let before = self.present.unwrap_or(present);
                let patience: &mut Patience = self.patience.of_mut(role);
                patience.changed(now, *before.of(role), *present.of(role), window);
                if before.of(role) != present.of(role) {
                    *self.up.of_mut(role) = Stabilizer::default();
                }
            }
            self.present = Some(present);
            self.settled = None;
        }
        if gap {
            self.up = ByRole::default();
            self.down = ByRole::default();
        }
        self.steps.push(now, present);
        let pools = [observation.pools.prefill, observation.pools.decode];
        if pools.iter().all(|pool| pool.ready >= pool.wanted) {
            self.settled.get_or_insert(now);
            self.starting = None;
        } else {
            self.settled = None;
            self.starting.get_or_insert(now);
        }
        let waiting = observation.routers.iter().any(|router| router.waiting > 0);
        let works = (observation.workers.iter()).any(|w| w.running > 0 || w.waiting > 0);
        let came =
            (self.window.latest()).is_some_and(|piece| piece.at == now && piece.sums.arrived > 0);
        if waiting || works || came || gap {
            self.idle_since = None;
        } else {
            self.idle_since.get_or_insert(now);
        }
        let since = self.last_look.map_or(0.0, |last| now - last);
        self.lessons.forget(since);
    }

    fn learn(
        &mut self,
        policy: &Policy,
        observation: &Observation,
        shape: &Shape,
        present: ByRole<u32>,
    ) {
        let now = observation.now;
        let seconds = self.last_look.map_or(0.0, |last| now - last);
        let draining = |pool: crate::observation::Pool| pool.existing > pool.wanted;
        let changing = observation.rollout
            || draining(observation.pools.prefill)
            || draining(observation.pools.decode);
        let Some(settled) = self.settled.filter(|_| !changing) else {
            return;
        };
        // The first minute still shows what was before.
        let from = settled + SHORT;
        let totals = self.window.totals(MIDDLE, from);
        if totals.seconds >= SHORT && (0.0..SHORT).contains(&seconds) {
            self.learned.learn(policy, shape, &totals, present, seconds);
        }
    }

    /// Nothing is there and nothing came, or nothing came for long enough.
    fn sleeps(
        &self,
        policy: &Policy,
        observation: &Observation,
        present: ByRole<u32>,
        hints: ByRole<u32>,
    ) -> bool {
        let Some(zero) = policy.scale_to_zero else {
            return false;
        };
        if hints.prefill > 0 || hints.decode > 0 {
            return false;
        }
        if present.prefill == 0 && present.decode == 0 {
            // A gap is no reason to wake; what waits is.
            let waiting = observation.routers.iter().any(|router| router.waiting > 0);
            return !waiting && (self.idle_since.is_some() || !self.came_lately());
        }
        let idle = self.idle_since.map(|since| observation.now - since);
        idle.is_some_and(|idle| idle >= zero.idle_seconds)
    }

    fn came_lately(&self) -> bool {
        let lately = self.window.totals(SHORT, f64::MIN);
        lately.sums.arrived > 0
    }
}
