//! Demand against what is there: whether to go up or down, and by how much.
//!
//! Up needs proof that what is there does not suffice, down needs proof that less does: at the lower bound
//! of demand the present replicas must fail, at its upper bound with the tolerance added fewer must
//! suffice. Between the two bounds lie twice the errors and the tolerance, so that noise does not lead
//! from one to the other.

use crate::choose::{Needed, Room, Short, needed, score};
use crate::correction::Factors;
use crate::decision::{Cause, Limit, Objective};
use crate::feedback::{attained, violated};
use crate::load::{Rate, Shape};
use crate::memory::{Draft, Memory};
use crate::observation::Observation;
use crate::policy::Policy;
use crate::predict::Predictor;
use crate::window::{LONG, MIDDLE, SHORT};
use crate::{ByRole, Role};

/// Seconds in which what piled up should be gone.
const CATCH_UP: f64 = 300.0;
/// After a change, measurements still show what was before it for so long.
const SETTLING: f64 = 180.0;
/// A violation adds such a part of a pool, more if fewer sequences are served than come.
const ADD: f64 = 0.1;
const ROLES: [Role; 2] = [Role::Prefill, Role::Decode];

impl Memory {
    pub(crate) fn predictor<'a>(
        &self,
        policy: &'a Policy,
        shape: &'a Shape,
        factors: Factors,
    ) -> Predictor<'a> {
        Predictor {
            policy,
            shape,
            factors,
            learned: self.lessons.most,
        }
    }

    pub(crate) fn weigh(
        &mut self,
        policy: &Policy,
        observation: &Observation,
        room: &Room,
        shape: Option<&Shape>,
        rate: &Rate,
        draft: &mut Draft,
    ) {
        for role in ROLES {
            let pool = observation.pools.of(role);
            if pool.ready < pool.wanted {
                *draft.causes.of_mut(role) = Cause::Starting;
            }
        }
        let up = shape.and_then(|shape| self.more(policy, observation, room, shape, rate, draft));
        self.fewer(policy, observation, room, shape, rate, up, draft);
    }

    /// `Some`: what demand or a violation asks for beyond what is there. Sets the target.
    fn more(
        &mut self,
        policy: &Policy,
        observation: &Observation,
        room: &Room,
        shape: &Shape,
        rate: &Rate,
        draft: &mut Draft,
    ) -> Option<Needed> {
        let now = observation.now;
        let present = draft.target;
        let predictor = self.predictor(policy, shape, self.learned.hopeful());
        let bounds = predictor.bounds();
        let from_here = Room {
            low: present.map(|role, &n| n.max(*room.low.of(role)).min(*room.high.of(role))),
            ..*room
        };
        let grows = rate.grows_by(policy);
        let piled_up = if self.settled.is_some() {
            self.piled_up(shape)
        } else {
            0.0
        };
        let margin = 1.0 + policy.behavior.tolerance;
        let fails = |rate| !predictor.state(rate, present).meets(&bounds);
        let surely = rate.low + grows.min(rate.low);
        let by_demand = fails(surely) || self.agreed(policy, shape, rate, present);
        let more = if by_demand || (piled_up > 0.0 && fails(surely + piled_up)) {
            let size = (rate.to_serve() + grows.min(rate.to_serve()) + piled_up) * margin;
            let more = needed(&predictor, &bounds, size, &from_here);
            let cause = if by_demand {
                Cause::Demand
            } else {
                Cause::Backlog
            };
            for role in ROLES {
                if more.replicas.of(role) > present.of(role) {
                    *draft.causes.of_mut(role) = cause;
                }
            }
            Some(more)
        } else {
            self.violation(policy, room, shape, rate, observation, draft)
        };
        let wanted = more.map_or(present, |more| more.replicas);
        for role in ROLES {
            let window = policy.behavior.up.stabilization_seconds;
            let up = self.up.of_mut(role);
            up.push(now, *wanted.of(role), window);
            let stable = match window > 0.0 {
                true => up.range(now, window).map_or(0, |(least, _)| least),
                false => *wanted.of(role),
            };
            let target = draft.target.of_mut(role);
            if *wanted.of(role) > *present.of(role) && stable <= *present.of(role) {
                *draft.causes.of_mut(role) = Cause::Stabilizing;
            }
            *target = stable.max(*present.of(role));
        }
        let more = more?;
        match more.short {
            Some(Short::Budget) => draft.limits.push(Limit::Budget),
            Some(Short::Max) => {
                for role in ROLES {
                    if more.replicas.of(role) == room.high.of(role) {
                        draft.limits.push(Limit::Max(role));
                    }
                }
            }
            None => {}
        }
        Some(more)
    }

    /// Neither is sure, but the best estimate and what was measured for 15 minutes agree that what is there
    /// does not suffice.
    fn agreed(&self, policy: &Policy, shape: &Shape, rate: &Rate, present: ByRole<u32>) -> bool {
        let Some(settled) = self.settled.filter(|_| self.learned.is_known()) else {
            return false;
        };
        let from = settled + SHORT;
        let predictor = self.predictor(policy, shape, self.learned.believed());
        let bounds = predictor.bounds();
        self.window.totals(LONG, from).seconds > LONG - SHORT
            && !predictor.state(rate.mean, present).meets(&bounds)
            && !attained(&self.window, &bounds, LONG, from)
    }

    /// Sequences a second on top of those that arrive, so that what piled up is gone in time. What a
    /// queue holds anyway is none: of a minute the least counts, and only if spare time does not do.
    fn piled_up(&self, shape: &Shape) -> f64 {
        let fleet = self.window.totals(SHORT, f64::MIN).fleet;
        let each: f64 = shape.prompts.iter().map(|p| p.share * p.tokens).sum();
        let turns = fleet.turns_waiting.unwrap_or(0.0);
        let prompts = fleet.prompts_waiting.unwrap_or(0.0) / each;
        (turns + prompts) / CATCH_UP
    }

    /// An objective is violated though nothing predicts it: a little more of the pool that it is about,
    /// and a lesson. Measurements of before the last change prove nothing.
    fn violation(
        &mut self,
        policy: &Policy,
        room: &Room,
        shape: &Shape,
        rate: &Rate,
        observation: &Observation,
        draft: &mut Draft,
    ) -> Option<Needed> {
        let settled = self.settled?;
        if observation.rollout || observation.now - settled < SETTLING {
            return None;
        }
        let present = draft.target;
        let mut predictor = self.predictor(policy, shape, self.learned.believed());
        predictor.learned = ByRole::default();
        let bounds = predictor.bounds();
        let objective = violated(&self.window, &bounds, settled + SHORT)?;
        let totals = self.window.totals(MIDDLE, settled + SHORT);
        let fleet = totals.fleet;
        // Sequences whose prompts wait hold turns, so that turns run out too: what is busier counts.
        let slots = shape.turns.min(shape.fits) * fleet.decode_seen;
        let prefill_is_busier = fleet.prefill_busy * slots >= fleet.decoding * fleet.prefill_seen;
        let aggregated = policy.pools.prefill.max == 0;
        let role = match objective {
            Objective::Itl => Role::Decode,
            _ if prefill_is_busier && !aggregated => Role::Prefill,
            _ => Role::Decode,
        };
        let asked = (rate.to_serve() + self.piled_up(shape)) * (1.0 + policy.behavior.tolerance);
        let model = needed(&predictor, &bounds, asked, room).replicas;
        let now = *present.of(role);
        let (predicted, served) = (*model.of(role), totals.sums.ttft.count());
        let behind = totals.sums.arrived as f64 / served.max(1.0) - 1.0;
        let add = (f64::from(now) * behind.clamp(ADD, 1.0)).ceil().max(1.0);
        let mut more = now.saturating_add(add as u32);
        if predictor.state(rate.mean, present).meets(&bounds) {
            // Where the model is off by more than this, it is not replicas that are missing.
            if u64::from(now) > 2 * u64::from(predicted) {
                return None;
            }
            predictor.factors = Factors::ONE;
            let utilization = predictor.state(rate.mean, present).utilization();
            self.lessons.learn(role, *utilization.of(role));
        } else {
            // What the model said in vain as long as it was not sure.
            more = more.max(predicted);
        }
        let mut replicas = present;
        *replicas.of_mut(role) = more;
        *draft.causes.of_mut(role) = Cause::Violated;
        let fits = room.fit(replicas, present);
        let short = match fits == replicas {
            true => None,
            false if room.cost(replicas) > room.budget => Some(Short::Budget),
            false => Some(Short::Max),
        };
        Some(Needed {
            replicas: fits,
            short,
        })
    }

    #[expect(clippy::too_many_arguments)]
    fn fewer(
        &mut self,
        policy: &Policy,
        observation: &Observation,
        room: &Room,
        shape: Option<&Shape>,
        rate: &Rate,
        up: Option<Needed>,
        draft: &mut Draft,
    ) {
        let now = observation.now;
        let present = observation.pools.map(|_, pool| pool.wanted);
        let (fewest, holds) = match shape {
            None => (room.low, true),
            Some(shape) => (
                self.fewest(policy, room, shape, rate, present, up),
                attained(
                    &self.window,
                    &self
                        .predictor(policy, shape, self.learned.believed())
                        .bounds(),
                    MIDDLE,
                    f64::MIN,
                ),
            ),
        };
        let asked = policy.behavior.down.stabilization_seconds;
        let seen_enough = self.window.covered() >= MIDDLE;
        for role in ROLES {
            let (fewest, present) = (*fewest.of(role), *present.of(role));
            let window = asked * self.patience.of_mut(role).times(now);
            let down = self.down.of_mut(role);
            down.push(now, fewest, window);
            let most = match window > 0.0 {
                true => down.range(now, window).map_or(u32::MAX, |(_, most)| most),
                false => fewest,
            };
            if fewest >= present || *draft.target.of(role) > present {
                continue;
            }
            let pool = observation.pools.of(role);
            // Load still falls: once, rather than step by step.
            let falls = window > 0.0 && down.lately(now, window).is_some_and(|late| late < most);
            let rebalances = up.is_some_and(|up| up.short == Some(Short::Budget));
            let cause = if observation.rollout {
                Cause::Rollout
            } else if pool.existing > pool.wanted {
                Cause::Draining
            } else if most >= present
                || falls
                || !seen_enough
                || (!rebalances && (!holds || up.is_some()))
            {
                Cause::Stabilizing
            } else {
                *draft.target.of_mut(role) = most;
                Cause::Surplus
            };
            *draft.causes.of_mut(role) = cause;
        }
    }

    /// The fewest that surely suffice, with the tolerance, and no more than there are. Where the budget
    /// binds: what is better spent on the other pool.
    fn fewest(
        &self,
        policy: &Policy,
        room: &Room,
        shape: &Shape,
        rate: &Rate,
        present: ByRole<u32>,
        up: Option<Needed>,
    ) -> ByRole<u32> {
        let tolerance = policy.behavior.tolerance;
        if up.is_some_and(|up| up.short == Some(Short::Budget)) {
            let predictor = self.predictor(policy, shape, self.learned.believed());
            let bounds = predictor.bounds();
            let split = needed(&predictor, &bounds, rate.to_serve(), room).replicas;
            let misses = |replicas| score(&predictor.state(rate.to_serve(), replicas), &bounds);
            return if misses(split) < misses(present) * (1.0 - tolerance) {
                split.map(|role, &n| n.min(*present.of(role)))
            } else {
                present
            };
        }
        let predictor = self.predictor(policy, shape, self.learned.cautious());
        let bounds = predictor.bounds();
        let most = (rate.high.max(rate.mean) + rate.grows_by(policy)) * (1.0 + tolerance);
        if !predictor.state(most, present).meets(&bounds) {
            return present;
        }
        let up_to_here = Room {
            high: present.map(|role, &n| n.min(*room.high.of(role)).max(*room.low.of(role))),
            ..*room
        };
        needed(&predictor, &bounds, most, &up_to_here).replicas
    }
}

impl Rate {
    /// Sequences a second that there will be more once replicas that are decided on now are there.
    pub fn grows_by(&self, policy: &Policy) -> f64 {
        self.trend * (policy.cold_start_seconds.max(0.0) + MIDDLE / 2.0)
    }
}
