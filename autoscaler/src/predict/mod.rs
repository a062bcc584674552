//! What so many replicas would do under a load, by the corrected model.
//!
//! Prefill ranks are the servers of one queue (M/G/c), in which a prompt takes as long as the model says.
//! A decode rank's batch follows from Little's law: as many sequences as arrive in the time that one
//! stays, which is longer the larger the batch is. Turns of decode ranks are the servers of another queue.
//! TTFT is both waits and the prefill; both pools share it.

mod state;

pub use state::State;

use crate::correction::Factors;
use crate::load::Shape;
use crate::policy::Policy;
use crate::queue::{Wait, normal};
use crate::{ByRole, Role};

/// ITL is not held below what an empty pool takes times this: more replicas would not get there.
const REACHABLE: f64 = 1.2;
/// Prompts that take too long by themselves are late however many replicas there are. Waiting may always
/// make so much of what may be late late, or a few long prompts would ask for a pool in which nobody waits.
const WAITING: f64 = 0.25;
/// A pool is busy for at most such a share of the time, if waiting is an objective and if it is not.
const MOST_BUSY: f64 = 0.95;
const BUSY: f64 = 0.85;
/// Stands for work that nobody does: worse than any utilisation.
const HOPELESS: f64 = 1000.0;

/// Everything that a prediction is made of but rate and replicas.
#[derive(Debug, Clone, Copy)]
pub struct Predictor<'a> {
    pub policy: &'a Policy,
    pub shape: &'a Shape,
    pub factors: Factors,
    /// Most utilisation by the uncorrected model, as far as violations have taught.
    pub learned: ByRole<Option<f64>>,
}

impl Predictor<'_> {
    pub fn state(&self, rate: f64, replicas: ByRole<u32>) -> State {
        let (policy, shape, model) = (self.policy, self.shape, &self.policy.model);
        let ranks =
            |role: Role| f64::from(*replicas.of(role)) * f64::from(policy.pools.of(role).ranks);
        let (prefill_ranks, decode_ranks) = (ranks(Role::Prefill), ranks(Role::Decode));
        let aggregated = policy.pools.prefill.max == 0;
        let mut services = Vec::with_capacity(shape.prompts.len());
        let (mut remote, mut remote_work, mut remote_square, mut local_work) = (0.0, 0.0, 0.0, 0.0);
        for prompt in &shape.prompts {
            let seconds =
                self.factors.prefill * model.prefill.seconds(prompt.tokens, prompt.cached);
            let is_remote = !aggregated && prompt.tokens > f64::from(policy.local_prefill_tokens);
            if is_remote {
                remote += prompt.share;
                remote_work += prompt.share * seconds;
                remote_square += prompt.share * seconds * seconds;
            } else {
                local_work += prompt.share * seconds;
            }
            services.push((prompt.share, seconds, is_remote));
        }
        let utilization = |work: f64, ranks: f64| match (work > 0.0, ranks > 0.0) {
            (false, _) => 0.0,
            (true, true) => work / ranks,
            (true, false) => HOPELESS,
        };
        let prefill_utilization = utilization(rate * remote_work, prefill_ranks);
        let mean = remote_work / remote;
        let variation = (remote_square / remote / (mean * mean) - 1.0).max(0.0);
        let prefill = if remote > 0.0 {
            Wait::of(prefill_ranks, prefill_utilization, mean, variation)
        } else {
            Some(Wait::NONE)
        };

        // A decode rank that prefills has so much less time for steps.
        let time_left = 1.0 - utilization(rate * local_work, decode_ranks);
        let tokens = rate * shape.generation / shape.tokens_per_update;
        let steps = utilization(tokens, decode_ranks);
        let base = self.factors.decode * model.decode.base_seconds;
        let each = self.factors.decode * model.decode.seconds_of_one(shape.context);
        let slots = shape.turns.min(shape.fits).floor().max(1.0);
        let full = steps * (base + each * slots) / slots;
        let decode_utilization = if time_left > 0.0 {
            (full / time_left).min(HOPELESS)
        } else {
            HOPELESS
        };
        let batch = steps * base / (time_left - steps * each);
        // A sequence has its turn while a peer prefills it.
        let prefilling = prefill.map_or(slots, |wait| {
            utilization(rate * (remote * wait.mean() + remote_work), decode_ranks)
        });
        let held = batch + prefilling;
        let keeps_up = decode_utilization < 1.0 && batch >= 0.0 && held < slots;
        let batch = if keeps_up { batch } else { slots };
        let step = |batch: f64| (base + each * batch.max(1.0)) / time_left;
        let itl = keeps_up.then(|| {
            // Arrivals come unevenly, and ranks are not loaded quite alike.
            let away = normal(policy.objectives.quantile) * (batch / decode_ranks).sqrt() + 1.0;
            step((batch + away).min(slots)) * self.slowest_share()
        });
        let turn = if keeps_up {
            let stays = shape.generation / shape.tokens_per_update * step(batch);
            let servers = slots * decode_ranks;
            Wait::of(servers, held / slots, stays, shape.generation_variation)
        } else {
            None
        };
        for (_, seconds, is_remote) in &mut services {
            // Its chunks take turns with steps.
            if !*is_remote && keeps_up {
                *seconds += step(batch);
            }
        }
        State {
            prefill_utilization,
            decode_utilization,
            batch,
            kv_bound: shape.fits < shape.turns,
            itl,
            turn,
            prefill,
            services,
            ttft_factor: self.factors.ttft,
        }
    }

    /// Tokens that come together share a step's time evenly; with one draft, most that come alone are
    /// those whose draft was wrong. The share of a step that the quantile's token takes.
    fn slowest_share(&self) -> f64 {
        let tokens = self.shape.tokens_per_update;
        let alone = ((2.0 - tokens) / tokens).max(0.0);
        if alone > 1.0 - self.policy.objectives.quantile {
            1.0
        } else {
            1.0 / tokens.max(2.0)
        }
    }

    /// What bounds each objective, and how much of it.
    pub fn bounds(&self) -> Bounds {
        let objectives = &self.policy.objectives;
        let late = 1.0 - objectives.quantile;
        let one = ByRole {
            prefill: 1,
            decode: 1,
        };
        let empty = self.state(0.0, one);
        let least = empty.itl.unwrap_or(0.0);
        let waits = objectives.ttft_seconds.is_some() || objectives.queue_seconds.is_some();
        let busy = if waits { MOST_BUSY } else { BUSY };
        Bounds {
            ttft: objectives.ttft_seconds.map(|value| {
                let anyway = empty.ttft_beyond(value);
                Bound {
                    value,
                    late: late.max(1.1 * anyway + WAITING * late),
                    attainable: anyway <= late,
                }
            }),
            itl: objectives.itl_seconds.map(|value| Bound {
                value: value.max(REACHABLE * least),
                late,
                attainable: value >= REACHABLE * least,
            }),
            queue: objectives.queue_seconds.map(|value| Bound {
                value,
                late,
                attainable: true,
            }),
            utilization: self.learned.map(|role, learned| {
                let factor = match role {
                    Role::Prefill => self.factors.prefill,
                    Role::Decode => self.factors.decode,
                };
                learned.map_or(busy, |learned| (learned * factor).min(busy))
            }),
        }
    }
}

/// At most a share `late` of all may be above `value`.
#[derive(Debug, Clone, Copy)]
pub struct Bound {
    pub value: f64,
    pub late: f64,
    /// It is what was asked for. Else it is what more replicas can help to reach.
    pub attainable: bool,
}

#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub ttft: Option<Bound>,
    pub itl: Option<Bound>,
    pub queue: Option<Bound>,
    pub utilization: ByRole<f64>,
}
