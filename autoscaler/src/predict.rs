//! What so many replicas would do under a load, by the corrected model.
//!
//! Prefill ranks are the servers of one queue (M/G/c), in which a prompt takes as long as the model says.
//! A decode rank's batch follows from Little's law: as many sequences as arrive in the time that one
//! stays, which is longer the larger the batch is. Turns of decode ranks are the servers of another queue.
//! TTFT is both waits and the prefill; both pools share it.

use crate::correction::Factors;
use crate::decision::{Alternative, Objective, Predicted};
use crate::load::Shape;
use crate::policy::Policy;
use crate::queue::{Wait, normal};
use crate::{ByRole, Role};

/// No objective is tighter than what an empty pool takes and this much of it: more replicas would not
/// meet it.
const REACHABLE: f64 = 1.2;
/// A pool is busy for at most such a share of the time, if waiting is an objective and if it is not.
const MOST_BUSY: f64 = 0.95;
const BUSY: f64 = 0.85;
/// Weights of what cannot keep up: worse than any finite time.
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

/// The state of both pools under a load.
#[derive(Debug, Clone)]
pub struct State {
    prefill_utilization: f64,
    decode_utilization: f64,
    batch: f64,
    kv_bound: bool,
    /// Seconds of a token in the objectives' quantile. `None`: the decode ranks cannot keep up.
    itl: Option<f64>,
    turn: Option<Wait>,
    prefill: Option<Wait>,
    /// (share, seconds without waiting, computed by a prefill worker).
    services: Vec<(f64, f64, bool)>,
    ttft_factor: f64,
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

    /// What bounds each objective, and whether that is what was asked for: `None` where nothing was.
    pub fn bounds(&self) -> Bounds {
        let objectives = &self.policy.objectives;
        let mut empty = self.state(
            0.0,
            ByRole {
                prefill: 1,
                decode: 1,
            },
        );
        empty.ttft_factor = 1.0;
        let reach = |asked: Option<f64>, least: Option<f64>| {
            let least = least.unwrap_or(0.0) * REACHABLE;
            asked.map(|asked| (asked.max(least), asked >= least))
        };
        let least_ttft = empty.ttft(objectives.quantile);
        let waits = objectives.ttft_seconds.is_some() || objectives.queue_seconds.is_some();
        let busy = if waits { MOST_BUSY } else { BUSY };
        let most = self.learned.map(|role, learned| {
            let factor = match role {
                Role::Prefill => self.factors.prefill,
                Role::Decode => self.factors.decode,
            };
            learned.map_or(busy, |learned| (learned * factor).min(busy))
        });
        Bounds {
            quantile: objectives.quantile,
            ttft: reach(objectives.ttft_seconds, least_ttft),
            itl: reach(objectives.itl_seconds, empty.itl),
            queue: reach(objectives.queue_seconds, None),
            utilization: most,
        }
    }
}

/// With each objective whether it is what was asked for, and not what can be reached.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub quantile: f64,
    pub ttft: Option<(f64, bool)>,
    pub itl: Option<(f64, bool)>,
    pub queue: Option<(f64, bool)>,
    pub utilization: ByRole<f64>,
}

impl State {
    /// P(TTFT > `seconds`).
    fn ttft_beyond(&self, seconds: f64) -> f64 {
        let (Some(turn), Some(prefill)) = (&self.turn, &self.prefill) else {
            return 1.0;
        };
        let seconds = seconds / self.ttft_factor;
        let services = self.services.iter();
        services
            .map(|&(share, service, remote)| {
                let left = seconds - service;
                share
                    * if remote {
                        turn.sum_beyond(prefill, left)
                    } else {
                        turn.beyond(left)
                    }
            })
            .sum()
    }

    fn ttft(&self, quantile: f64) -> Option<f64> {
        self.turn.and(self.prefill)?;
        let (mut low, mut high) = (0.0, 1e-3);
        while self.ttft_beyond(high) > 1.0 - quantile {
            (low, high) = (high, high * 2.0);
            if high > 1e9 {
                return None;
            }
        }
        while high - low > 1e-3 * high {
            let middle = (low + high) / 2.0;
            if self.ttft_beyond(middle) > 1.0 - quantile {
                low = middle;
            } else {
                high = middle;
            }
        }
        Some(high)
    }

    /// Seconds, without the factor that measurements give. `None`: without bound.
    pub fn mean_ttft(&self) -> Option<f64> {
        let (turn, prefill) = (self.turn?, self.prefill?);
        let services = self.services.iter();
        let rest = services.map(|&(share, service, remote)| {
            share * (service + if remote { prefill.mean() } else { 0.0 })
        });
        Some(turn.mean() + rest.sum::<f64>())
    }

    /// Rather than for prefill workers.
    pub fn waits_for_turns(&self) -> bool {
        match (self.turn, self.prefill) {
            (Some(turn), Some(prefill)) => turn.mean() > prefill.mean(),
            (turn, _) => turn.is_none(),
        }
    }

    fn queue(&self, quantile: f64) -> Option<f64> {
        let turn = self.turn?;
        let beyond = turn.probability / (1.0 - quantile);
        Some(if beyond > 1.0 {
            beyond.ln() / turn.rate
        } else {
            0.0
        })
    }

    pub fn utilization(&self) -> ByRole<f64> {
        ByRole {
            prefill: self.prefill_utilization,
            decode: self.decode_utilization,
        }
    }

    /// What of decode alone is within bounds.
    pub fn decode_meets(&self, bounds: &Bounds) -> bool {
        self.decode_utilization <= bounds.utilization.decode
            && bounds
                .itl
                .is_none_or(|(bound, _)| self.itl.is_some_and(|itl| itl <= bound))
            && bounds.queue.is_none_or(|(bound, _)| {
                self.turn
                    .is_some_and(|turn| turn.beyond(bound) <= 1.0 - bounds.quantile)
            })
    }

    pub fn prefill_meets(&self, bounds: &Bounds) -> bool {
        self.prefill_utilization <= bounds.utilization.prefill
    }

    pub fn ttft_meets(&self, bounds: &Bounds) -> bool {
        bounds
            .ttft
            .is_none_or(|(bound, _)| self.ttft_beyond(bound) <= 1.0 - bounds.quantile)
    }

    pub fn meets(&self, bounds: &Bounds) -> bool {
        self.decode_meets(bounds) && self.prefill_meets(bounds) && self.ttft_meets(bounds)
    }

    /// Each objective with what it comes to.
    pub fn objectives(&self, bounds: &Bounds) -> Vec<(Objective, Option<f64>, f64)> {
        let asked = |objective, predicted, bound: Option<(f64, bool)>| {
            bound.map(|(bound, _)| (objective, predicted, bound))
        };
        let used = |objective, role: Role, share: f64| {
            Some((objective, Some(share), *bounds.utilization.of(role)))
        };
        let all = [
            asked(Objective::Ttft, self.ttft(bounds.quantile), bounds.ttft),
            asked(Objective::Itl, self.itl, bounds.itl),
            asked(Objective::Queue, self.queue(bounds.quantile), bounds.queue),
            used(
                Objective::PrefillUtilization,
                Role::Prefill,
                self.prefill_utilization,
            ),
            used(
                Objective::DecodeUtilization,
                Role::Decode,
                self.decode_utilization,
            ),
        ];
        all.into_iter().flatten().collect()
    }

    /// Predicted over bound of an objective. What cannot keep up is worse the less it can.
    pub fn severity(&self, predicted: Option<f64>, bound: f64) -> f64 {
        let ratio = predicted.map(|predicted| predicted / bound);
        ratio.unwrap_or_else(|| {
            HOPELESS
                * self
                    .prefill_utilization
                    .max(self.decode_utilization)
                    .max(1.0)
        })
    }

    /// The objective that is worst off.
    pub fn worst(&self, bounds: &Bounds, replicas: u32) -> Alternative {
        let mut worst: Option<(f64, Alternative)> = None;
        for (objective, predicted, bound) in self.objectives(bounds) {
            let severity = self.severity(predicted, bound);
            if worst.is_none_or(|(most, _)| severity > most) {
                worst = Some((
                    severity,
                    Alternative {
                        replicas,
                        objective,
                        predicted,
                        bound,
                        meets: severity <= 1.0,
                    },
                ));
            }
        }
        worst.expect("utilisation is always there").1
    }

    /// How badly prefill's and decode's objectives are missed: 1 if they are met. TTFT counts for prefill.
    pub fn missed(&self, bounds: &Bounds) -> ByRole<f64> {
        let mut missed: ByRole<f64> = ByRole {
            prefill: 1.0,
            decode: 1.0,
        };
        for (objective, predicted, bound) in self.objectives(bounds) {
            let role = match objective {
                Objective::Ttft | Objective::PrefillUtilization => Role::Prefill,
                Objective::Itl | Objective::Queue | Objective::DecodeUtilization => Role::Decode,
            };
            let severity = match (predicted, role) {
                (Some(predicted), _) => predicted / bound,
                (None, Role::Prefill) => HOPELESS * self.prefill_utilization,
                (None, Role::Decode) => HOPELESS * self.decode_utilization,
            };
            let most: &mut f64 = missed.of_mut(role);
            *most = most.max(severity);
        }
        missed
    }

    pub fn told(&self, quantile: f64) -> Predicted {
        Predicted {
            ttft_seconds: self.ttft(quantile),
            itl_seconds: self.itl,
            queue_seconds: self.queue(quantile),
            prefill_utilization: self.prefill_utilization,
            decode_utilization: self.decode_utilization,
            batch: self.batch,
            kv_bound: self.kv_bound,
        }
    }
}
