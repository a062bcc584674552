//! The model against what was measured. A model of another GPU, driver or context length is wrong by a
//! factor more than in shape, so a factor each is learned: slowly, within bounds, and only from pools
//! that are neither idle nor full nor in the middle of a change.

use crate::decision::Correction;
use crate::load::Shape;
use crate::policy::Policy;
use crate::predict::Predictor;
use crate::window::Totals;
use crate::{ByRole, Role};

const LEAST: f64 = 0.25;
const MOST: f64 = 4.0;
/// Seconds within which a factor moves by two thirds of the way to what is measured.
const SLOWNESS: f64 = 3600.0;
/// Seconds of learning until a factor is believed.
const ENOUGH: f64 = 120.0;
/// What the model is taken to be wrong by, in the direction that changes less, until then.
const DOUBT: f64 = 2.0;
/// The same of TTFT, which follows from the others.
const TTFT_DOUBT: f64 = 1.3;

/// What a factor may be off by that has learned for `SLOWNESS`. That of prefill comes from looks at whether
/// workers are busy: of one worker, by so much more; of more, by the root of their number less.
const NOISE: f64 = 0.01;
const PREFILL_NOISE: f64 = 0.1;
/// A mean TTFT so far from the model's was measured in another state.
const OUTLIER: f64 = 3.0;

/// Measured over modelled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Factors {
    pub prefill: f64,
    pub decode: f64,
    /// Of TTFT, after that of prefill: what queues do that a formula does not say.
    pub ttft: f64,
}

impl Factors {
    pub const ONE: Factors = Factors {
        prefill: 1.0,
        decode: 1.0,
        ttft: 1.0,
    };
}

#[derive(Debug, Clone, Copy)]
struct Factor {
    value: f64,
    /// Seconds that it has learned for.
    learned: f64,
}

impl Default for Factor {
    fn default() -> Self {
        Factor {
            value: 1.0,
            learned: 0.0,
        }
    }
}

impl Factor {
    /// `measured` is over what the uncorrected model says. The first seconds count in full, later ones as
    /// a running mean of `SLOWNESS`.
    fn learn(&mut self, measured: f64, seconds: f64) {
        if !measured.is_finite() || measured <= 0.0 {
            return;
        }
        self.learned += seconds;
        let weight = (seconds / self.learned.min(SLOWNESS)).min(1.0);
        let measured = measured.clamp(LEAST, MOST);
        // Of logarithms: twice and half are as far from 1.
        self.value = (self.value.ln() * (1.0 - weight) + measured.ln() * weight).exp();
    }

    /// `noise` is what it may be off by once it has learned for `SLOWNESS`.
    fn doubt(&self, noise: f64) -> f64 {
        if self.learned < ENOUGH {
            return DOUBT;
        }
        1.0 + noise * (SLOWNESS / self.learned.min(SLOWNESS)).sqrt()
    }
}

/// What was learned.
#[derive(Debug, Clone, Default)]
pub struct Learned {
    prefill: Factor,
    decode: Factor,
    ttft: Factor,
    /// Prefill workers that were learned from last.
    workers: f64,
}

/// A prefill pool that is busy for a share of the time outside of these says little.
const BUSY: std::ops::Range<f64> = 0.1..0.9;
/// Decode ranks that have fewer sequences than this, in the mean, say little. One alone takes a step, too, so
/// there need not be many: a pool that is too large by a wrong model has few, and learns it from these.
const IDLE: f64 = 0.05;

impl Learned {
    /// `settled` is what was measured since both pools are as they should be, `seconds` the time since it
    /// was last learned from.
    pub fn learn(
        &mut self,
        policy: &Policy,
        shape: &Shape,
        settled: &Totals,
        replicas: ByRole<u32>,
        seconds: f64,
    ) {
        let fleet = &settled.fleet;
        if fleet.turns_waiting.is_some_and(|waiting| waiting > 0.0) {
            return;
        }
        let rate = settled.sums.arrived as f64 / settled.seconds.max(1.0);
        let predictor = |factors| Predictor {
            policy,
            shape,
            factors,
            learned: ByRole::default(),
        };

        let busy = fleet.prefill_busy / fleet.prefill_seen;
        let modelled = predictor(Factors::ONE)
            .state(rate, replicas)
            .utilization()
            .prefill;
        // Less is beyond what a factor may be, and a few looks of a pool that is all but idle.
        let loaded = modelled > BUSY.start / MOST;
        if BUSY.contains(&busy) && fleet.prefill_seen >= 30.0 && loaded {
            self.prefill.learn(busy / modelled, seconds);
            self.workers = fleet.prefill_seen * seconds / settled.seconds.max(1.0);
        }

        let batch = fleet.decoding / fleet.decode_seen;
        let itl = &settled.sums.itl;
        let room = batch < 0.9 * shape.turns.min(shape.fits);
        if batch >= IDLE && room && itl.count() >= 1000.0 {
            let time_left = 1.0 - self.prefill.value * local_share(policy, shape, rate, replicas);
            let step = policy
                .model
                .decode
                .step_seconds(batch.max(1.0), shape.context);
            let step = step / time_left.max(0.1);
            let measured = itl.mean().unwrap_or(0.0) * shape.tokens_per_update;
            self.decode.learn(measured / step, seconds);
        }

        let ttft = &settled.sums.ttft;
        let state = predictor(Factors {
            ttft: 1.0,
            ..self.believed()
        })
        .state(rate, replicas);
        let known = self.prefill.learned >= ENOUGH && state.utilization().prefill < BUSY.end;
        if known
            && (busy.is_nan() || busy <= BUSY.end)
            && ttft.count() >= 50.0
            && let Some(modelled) = state.mean_ttft()
        {
            // What a queue left behind that has just gone is no property of the pool.
            let measured = ttft.mean().unwrap_or(0.0) / modelled;
            if (1.0 / OUTLIER..OUTLIER).contains(&measured) {
                self.ttft.learn(measured.clamp(0.5, 2.0), seconds);
            }
        }
    }

    /// Both pools have been learned from.
    pub fn is_known(&self) -> bool {
        self.prefill.learned >= ENOUGH && self.decode.learned >= ENOUGH
    }

    /// The best estimate.
    pub fn believed(&self) -> Factors {
        Factors {
            prefill: self.prefill.value,
            decode: self.decode.value,
            ttft: self.ttft.value,
        }
    }

    /// To take replicas away by: what is not known is taken to be slow.
    pub fn cautious(&self) -> Factors {
        let workers = PREFILL_NOISE / self.workers.max(1.0).sqrt();
        Factors {
            prefill: self.prefill.value * self.prefill.doubt(workers),
            decode: self.decode.value * self.decode.doubt(NOISE),
            ttft: self.ttft.value * self.ttft.doubt(workers).min(TTFT_DOUBT),
        }
    }

    /// To add replicas by: what is not known is taken to be fast, or a lost memory would add some.
    pub fn hopeful(&self) -> Factors {
        Factors {
            prefill: self.prefill.value / self.prefill.doubt(NOISE),
            decode: self.decode.value / self.decode.doubt(NOISE),
            ttft: self.ttft.value / self.ttft.doubt(NOISE).min(TTFT_DOUBT),
        }
    }

    pub fn told(&self) -> Correction {
        Correction {
            prefill: self.prefill.value,
            decode: self.decode.value,
            ttft: self.ttft.value,
        }
    }
}

/// Share of the decode ranks' time that the uncorrected model gives to prompts they compute themselves.
fn local_share(policy: &Policy, shape: &Shape, rate: f64, replicas: ByRole<u32>) -> f64 {
    let aggregated = policy.pools.prefill.max == 0;
    let ranks = f64::from(replicas.decode) * f64::from(policy.pools.of(Role::Decode).ranks);
    let local = shape
        .prompts
        .iter()
        .filter(|prompt| aggregated || prompt.tokens <= f64::from(policy.local_prefill_tokens));
    let prefill = &policy.model.prefill;
    let work = local.map(|p| p.share * prefill.seconds(p.tokens, p.cached));
    rate * work.sum::<f64>() / ranks.max(1.0)
}

#[cfg(test)]
#[path = "correction_tests.rs"]
mod tests;
