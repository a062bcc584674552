//! Demand against what is there: whether to go up or down, and by how much.
//!
//! Two questions. Is there evidence that what is there does not suffice: a rate surely above it, load that
//! surely rises, or a queue that makes everybody late? Then both pools are sized at once for what likely
//! comes when new replicas are there, and for what will have piled up by then; what was added to work that off
//! goes when it is done. Does less surely suffice: at the upper bound of demand, with the tolerance added, for
//! all of the stabilisation window? Then there is less, once no queue is left. Between the two lie the errors
//! and the tolerance, so that noise does not lead from one to the other.

use crate::choose::{Needed, Room, Short, needed, score};
use crate::correction::Factors;
use crate::decision::{Cause, Limit};
use crate::feedback::attained;
use crate::load::{NOW, Rate, Shape};
use crate::memory::{Draft, Memory};
use crate::observation::Observation;
use crate::policy::Policy;
use crate::predict::Predictor;
use crate::window::{MIDDLE, SHORT};
use crate::{ByRole, Role};

const ROLES: [Role; 2] = [Role::Prefill, Role::Decode];

/// What one look is about.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Look<'a> {
    pub policy: &'a Policy,
    pub observation: &'a Observation,
    pub room: &'a Room,
    /// `None`: nothing came whose length is known.
    pub shape: Option<&'a Shape>,
    pub rate: &'a Rate,
}

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

    pub(crate) fn weigh(&mut self, look: &Look<'_>, draft: &mut Draft) {
        for role in ROLES {
            let pool = look.observation.pools.of(role);
            if pool.ready < pool.wanted {
                *draft.causes.of_mut(role) = Cause::Starting;
            }
        }
        let up = look.shape.and_then(|shape| self.more(look, shape, draft));
        self.fewer(look, up, draft);
    }

    /// `Some`: what demand or a violation asks for beyond what is there. Sets the target.
    fn more(&mut self, look: &Look<'_>, shape: &Shape, draft: &mut Draft) -> Option<Needed> {
        let Look {
            policy, room, rate, ..
        } = *look;
        let now = look.observation.now;
        let present = draft.target;
        let predictor = self.predictor(policy, shape, self.learned.hopeful());
        let bounds = predictor.bounds();
        let from_here = Room {
            low: present.map(|role, &n| n.max(*room.low.of(role)).min(*room.high.of(role))),
            ..*room
        };
        let grows = rate.grows_by(policy);
        let waits = self.backlog(look, shape);
        let margin = 1.0 + policy.behavior.tolerance;
        let fails = |rate| !predictor.state(rate, present).meets(&bounds);
        let surely = rate.low + grows.min(rate.low);
        let likely = rate.likely(policy);
        let by_demand = fails(surely)
            || ((rate.steep > 0.0 || rate.rises) && fails(likely))
            || self.agreed(look, shape, present);
        let backlog = match waits > 0.0 || by_demand {
            true => self.backlog_then(look, shape, likely, waits),
            false => 0.0,
        };
        let asked = likely + backlog / (policy.cold_start_seconds / 3.0).max(NOW);
        let sizing = self.predictor(policy, shape, self.learned.believed());
        let more = if by_demand || (waits > 0.0 && fails(asked)) {
            let mut more = needed(&sizing, &sizing.bounds(), asked * margin, &from_here);
            if more.short == Some(Short::Budget) && waits == 0.0 {
                // How it is best spent is asked of what comes in the mean, so that it is not moved about.
                more = Needed {
                    short: more.short,
                    ..needed(&sizing, &sizing.bounds(), rate.expected(), &from_here)
                };
            }
            let alone = || needed(&sizing, &sizing.bounds(), likely * margin, room).replicas;
            let alone = (backlog > 0.0).then(alone);
            let turns = self.turns(look, shape, backlog, more.replicas.prefill);
            if turns > more.replicas.decode {
                let asked = ByRole {
                    decode: turns,
                    ..more.replicas
                };
                more.replicas = room.fit(asked, present);
            }
            let cause = if by_demand {
                Cause::Demand
            } else {
                Cause::Backlog
            };
            let adds = |role: &Role| more.replicas.of(*role) > present.of(*role);
            for role in ROLES.into_iter().filter(adds) {
                *draft.causes.of_mut(role) = cause;
            }
            if alone.is_some() || ROLES.iter().any(adds) {
                self.without_backlog = alone;
            }
            Some(more)
        } else {
            self.violation(look, shape, draft)
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

    fn fewer(&mut self, look: &Look<'_>, up: Option<Needed>, draft: &mut Draft) {
        let Look {
            policy,
            observation,
            room,
            ..
        } = *look;
        let now = observation.now;
        let present = observation.pools.map(|_, pool| pool.wanted);
        let (fewest, holds) = match look.shape {
            None => (room.low, true),
            Some(shape) => {
                let fewest = self.fewest(look, shape, present, up);
                let predictor = self.predictor(policy, shape, self.learned.believed());
                let bounds = predictor.bounds();
                (fewest, attained(&self.window, &bounds, SHORT, f64::MIN))
            }
        };
        let asked = policy.behavior.down.stabilization_seconds;
        let seen_enough = self.window.covered() >= MIDDLE;
        let settled = self.settled.map_or(0.0, |since| now - since);
        for role in ROLES {
            let (fewest, present) = (*fewest.of(role), *present.of(role));
            let window = asked * self.patience.of_mut(role).times(now);
            let down = self.down.of_mut(role);
            down.push(now, fewest, window);
            let most = match window > 0.0 {
                true => down.range(now, window).map_or(u32::MAX, |(_, most)| most),
                false => fewest,
            };
            // What was added to work off a backlog goes when that is done.
            let most = match (self.without_backlog, down.most(now, SHORT)) {
                (Some(alone), Some(lately)) if (SHORT..window).contains(&settled) => {
                    most.min(lately.max(*alone.of(role)))
                }
                _ => most,
            };
            if fewest >= present || *draft.target.of(role) > present {
                continue;
            }
            let pool = observation.pools.of(role);
            let rebalances = up.is_some_and(|up| up.short == Some(Short::Budget));
            let cause = if observation.rollout {
                Cause::Rollout
            } else if pool.existing > pool.wanted {
                Cause::Draining
            } else if most >= present || !seen_enough || (!rebalances && (!holds || up.is_some())) {
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
        look: &Look<'_>,
        shape: &Shape,
        present: ByRole<u32>,
        up: Option<Needed>,
    ) -> ByRole<u32> {
        let Look {
            policy, room, rate, ..
        } = *look;
        let tolerance = policy.behavior.tolerance;
        if let Some(up) = up.filter(|up| up.short == Some(Short::Budget)) {
            let predictor = self.predictor(policy, shape, self.learned.believed());
            let bounds = predictor.bounds();
            if self.backlog(look, shape) > 0.0 {
                return present;
            }
            let split = needed(&predictor, &bounds, up.rate, room).replicas;
            let misses = |replicas| score(&predictor.state(up.rate, replicas), &bounds);
            return if misses(split) < misses(present) * (1.0 - tolerance) {
                split.map(|role, &n| n.min(*present.of(role)))
            } else {
                present
            };
        }
        let predictor = self.predictor(policy, shape, self.learned.cautious());
        let bounds = predictor.bounds();
        let most = (rate.high + rate.grows_by(policy)) * (1.0 + tolerance);
        let fewest = needed(&predictor, &bounds, most, room);
        match fewest.short {
            Some(_) => present,
            None => fewest.replicas,
        }
    }
}

impl Rate {
    /// Sequences a second that there will be more once replicas that are decided on now are there.
    pub fn grows_by(&self, policy: &Policy) -> f64 {
        self.trend * (policy.cold_start_seconds.max(0.0) + MIDDLE / 2.0)
    }

    /// Sequences a second that there likely are once replicas that are decided on now are there: the mean
    /// and what it grows by, or what comes now and what that grows by. At most twice as many.
    pub fn likely(&self, policy: &Policy) -> f64 {
        let expected = self.expected();
        let start = policy.cold_start_seconds.max(0.0);
        let steep = self.steep * (start + NOW / 2.0);
        (expected + self.grows_by(policy).min(expected)).max(self.latest + steep.min(self.latest))
    }
}
