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

/// Seconds in which what piled up should be gone.
const CATCH_UP: f64 = 300.0;
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

    /// Sequences a second on top of those that arrive, so that what piled up is gone in time. What a
    /// queue holds anyway is none: of a minute the least counts, and only if spare time does not do.
    pub(crate) fn piled_up(&self, shape: &Shape) -> f64 {
        let fleet = self.window.totals(SHORT, f64::MIN).fleet;
        let each: f64 = shape.prompts.iter().map(|p| p.share * p.tokens).sum();
        let turns = fleet.turns_waiting.unwrap_or(0.0);
        let prompts = fleet.prompts_waiting.unwrap_or(0.0) / each;
        (turns + prompts) / CATCH_UP
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
        let asked = (rate.expected() + self.piled_up(shape)) * (1.0 + policy.behavior.tolerance);
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
}
