//! Evidence that more is needed, other than that demand is surely above what there is.

use crate::choose::{Needed, Short, needed};
use crate::correction::Factors;
use crate::decision::{Cause, Objective};
use crate::feedback::{attained, violated};
use crate::load::Shape;
use crate::memory::{Draft, Memory};
use crate::weigh::Look;
use crate::window::{LONG, MIDDLE, SHORT};
use crate::{ByRole, Role};

/// Seconds of which the least that waited counts, so that what a queue holds now and then does not.
const PILED_UP: f64 = 15.0;
/// Of a single look: times what makes everybody late.
const BEYOND_CHANCE: f64 = 2.0;
/// After a change, measurements still show what was before it for so long.
const SETTLING: f64 = 180.0;
/// Times what may be late that is measured and predicted, for weak evidence to count.
const AGREED: f64 = 1.2;
/// A violation adds such a part of a pool, more if fewer sequences are served than come.
const ADD: f64 = 0.1;

impl Memory {
    /// Neither is sure, but the best estimate and what was measured for 15 minutes agree that what is there
    /// does not suffice.
    pub(crate) fn agreed(&self, look: &Look<'_>, shape: &Shape, present: ByRole<u32>) -> bool {
        let Some(settled) = self.settled.filter(|_| self.learned.is_known()) else {
            return false;
        };
        let from = settled + SHORT;
        let predictor = self.predictor(look.policy, shape, self.learned.believed());
        let mut bounds = predictor.bounds();
        // Both by more than they scatter: they come from the same sequences.
        for bound in [&mut bounds.ttft, &mut bounds.queue].into_iter().flatten() {
            bound.late *= AGREED;
        }
        let rate = look.rate.mean - look.rate.error / 2.0;
        self.window.totals(LONG, from).seconds > LONG - SHORT
            && !predictor.state(rate, present).meets(&bounds)
            && !attained(&self.window, &bounds, LONG, from)
    }

    /// Sequences that wait, for turns or to be prefilled, if whoever comes now is late because of them;
    /// else 0. A queue over what is served a second is its wait (Little's law).
    pub(crate) fn backlog(&self, look: &Look<'_>, shape: &Shape) -> f64 {
        let objectives = &look.policy.objectives;
        let Some(bound) = objectives.ttft_seconds.or(objectives.queue_seconds) else {
            return 0.0;
        };
        let each: f64 = shape.prompts.iter().map(|p| p.share * p.tokens).sum();
        let waiting = |seconds| {
            let fleet = self.window.totals(seconds, f64::MIN).fleet;
            fleet.turns_waiting.unwrap_or(0.0) + fleet.prompts_waiting.unwrap_or(0.0) / each
        };
        let late = bound * self.capacity(look, shape);
        // The latest piece, whatever its length.
        let now = waiting(1.0);
        if waiting(PILED_UP) > late || now > BEYOND_CHANCE * late {
            now
        } else {
            0.0
        }
    }

    /// Sequences a second that what is ready can serve at all, whatever their times.
    fn capacity(&self, look: &Look<'_>, shape: &Shape) -> f64 {
        let ready = look.observation.pools.map(|_, pool| pool.ready.max(1));
        let predictor = self.predictor(look.policy, shape, self.learned.believed());
        let used = predictor.state(1.0, ready).utilization();
        1.0 / used.prefill.max(used.decode)
    }

    /// Sequences that will wait when replicas that are decided on now are there, if so many come a second
    /// until then and `backlog` wait now.
    pub(crate) fn backlog_then(
        &self,
        look: &Look<'_>,
        shape: &Shape,
        rate: f64,
        backlog: f64,
    ) -> f64 {
        let start = look.policy.cold_start_seconds.max(0.0);
        let passed = self
            .starting
            .map_or(0.0, |since| look.observation.now - since);
        let excess = (rate - self.capacity(look, shape)).max(0.0);
        backlog + excess * (start - passed).max(0.0)
    }

    /// Decode replicas so that those that wait have turns: prompts that wait for prefill hold them, and new
    /// prefill workers stand idle as long as old ones' queues hold all. At most in proportion to prefill.
    pub(crate) fn turns(&self, look: &Look<'_>, shape: &Shape, backlog: f64, prefill: u32) -> u32 {
        let ready = look
            .observation
            .pools
            .map(|_, pool| f64::from(pool.ready.max(1)));
        let ranks = f64::from(look.policy.pools.decode.ranks);
        let missing = backlog / (shape.turns.min(shape.fits) * ranks);
        let in_proportion = ready.decode * f64::from(prefill) / ready.prefill;
        (ready.decode + missing.round()).min(in_proportion.ceil()) as u32
    }

    /// An objective is violated though nothing predicts it: a little more of the pool that it is about,
    /// and a lesson. Measurements of before the last change prove nothing.
    pub(crate) fn violation(
        &mut self,
        look: &Look<'_>,
        shape: &Shape,
        draft: &mut Draft,
    ) -> Option<Needed> {
        let Look {
            policy,
            observation,
            room,
            rate,
            ..
        } = *look;
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
        let asked = rate.expected() * (1.0 + policy.behavior.tolerance);
        let model = needed(&predictor, &bounds, asked, room).replicas;
        let now = *present.of(role);
        let (predicted, served) = (*model.of(role), totals.sums.ttft.count());
        let behind = totals.sums.arrived as f64 / served.max(1.0) - 1.0;
        let add = (f64::from(now) * behind.clamp(ADD, 1.0)).ceil().max(1.0);
        let mut more = now.saturating_add(add as u32);
        if predictor.state(rate.mean, present).meets(&bounds) && self.backlog(look, shape) == 0.0 {
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
            rate: asked,
        })
    }
}
