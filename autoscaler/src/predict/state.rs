//! Both pools under a load: times, and how far they are from their bounds.

use super::{Bound, Bounds, HOPELESS};
use crate::decision::{Alternative, Objective, Predicted};
use crate::queue::Wait;
use crate::{ByRole, Role};

/// The state of both pools under a load.
#[derive(Debug, Clone)]
pub struct State {
    pub(super) prefill_utilization: f64,
    pub(super) decode_utilization: f64,
    pub(super) batch: f64,
    pub(super) kv_bound: bool,
    /// Seconds of a token in the objectives' quantile. `None`: the decode ranks cannot keep up.
    pub(super) itl: Option<f64>,
    pub(super) turn: Option<Wait>,
    pub(super) prefill: Option<Wait>,
    /// (share, seconds without waiting, computed by a prefill worker).
    pub(super) services: Vec<(f64, f64, bool)>,
    pub(super) ttft_factor: f64,
}

impl State {
    /// P(TTFT > `seconds`).
    pub(super) fn ttft_beyond(&self, seconds: f64) -> f64 {
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

    pub fn kv_bound(&self) -> bool {
        self.kv_bound
    }

    /// Rather than for prefill workers.
    pub fn waits_for_turns(&self) -> bool {
        match (self.turn, self.prefill) {
            (Some(turn), Some(prefill)) => turn.mean() > prefill.mean(),
            // Sequences whose prompts wait hold turns: what is busier is at the root.
            _ => self.decode_utilization > self.prefill_utilization,
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
                .is_none_or(|bound| self.itl.is_some_and(|itl| itl <= bound.value))
            && bounds.queue.is_none_or(|bound| {
                self.turn
                    .is_some_and(|turn| turn.beyond(bound.value) <= bound.late)
            })
    }

    pub fn prefill_meets(&self, bounds: &Bounds) -> bool {
        self.prefill_utilization <= bounds.utilization.prefill
    }

    pub fn ttft_meets(&self, bounds: &Bounds) -> bool {
        bounds
            .ttft
            .is_none_or(|bound| self.ttft_beyond(bound.value) <= bound.late)
    }

    pub fn meets(&self, bounds: &Bounds) -> bool {
        self.decode_meets(bounds) && self.prefill_meets(bounds) && self.ttft_meets(bounds)
    }

    /// Each objective with what it comes to.
    pub fn objectives(&self, bounds: &Bounds) -> Vec<(Objective, Option<f64>, f64)> {
        let asked = |objective, bound: Option<Bound>, predicted: &dyn Fn(f64) -> Option<f64>| {
            bound.map(|bound| (objective, predicted(1.0 - bound.late), bound.value))
        };
        let used = |objective, role: Role, share: f64| {
            Some((objective, Some(share), *bounds.utilization.of(role)))
        };
        let all = [
            asked(Objective::Ttft, bounds.ttft, &|quantile| {
                self.ttft(quantile)
            }),
            asked(Objective::Itl, bounds.itl, &|_| self.itl),
            asked(Objective::Queue, bounds.queue, &|quantile| {
                self.queue(quantile)
            }),
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
