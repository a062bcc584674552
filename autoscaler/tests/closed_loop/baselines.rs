//! Two ways that others scale by, to compare with. Both are given the true sizes of workers.

use std::collections::VecDeque;

use millrace_autoscaler::ByRole;
use millrace_autoscaler::model::PerformanceModel;
use millrace_autoscaler::observation::{Observation, Traffic};

use crate::counters::{ITL, TTFT};
use crate::run::Scaler;

const MOST: u32 = 40;

/// What Kubernetes' HorizontalPodAutoscaler does with an average of sequences a worker as its target: the
/// ratio, a tolerance of 10%, the most of the last five minutes when going down.
pub struct QueueLength {
    pub target: ByRole<f64>,
    recent: ByRole<VecDeque<(f64, u32)>>,
}

impl QueueLength {
    pub fn new(prefill: f64, decode: f64) -> QueueLength {
        QueueLength {
            target: ByRole { prefill, decode },
            recent: ByRole::default(),
        }
    }
}

impl Scaler for QueueLength {
    fn look(&mut self, observation: &Observation) -> ByRole<u32> {
        let at_routers: f64 = observation.routers.iter().map(|r| r.waiting as f64).sum();
        observation.pools.map(|role, pool| {
            let workers = observation.workers.iter();
            let workers = workers.filter(|w| w.role == role && w.available);
            let here: f64 = workers.map(|w| f64::from(w.running + w.waiting)).sum();
            let ratio = (here + at_routers) / f64::from(pool.ready.max(1)) / self.target.of(role);
            let wanted = match (0.9..=1.1).contains(&ratio) {
                true => pool.wanted,
                false => (f64::from(pool.ready.max(1)) * ratio).ceil() as u32,
            };
            let wanted = wanted.clamp(1, MOST);
            let recent: &mut VecDeque<(f64, u32)> = self.recent.of_mut(role);
            recent.push_back((observation.now, wanted));
            recent.retain(|(at, _)| observation.now - at <= 300.0);
            let most = recent.iter().map(|entry| entry.1).max().unwrap_or(wanted);
            // Up at once, at most twice as many.
            if wanted > pool.wanted {
                wanted.min(2 * pool.wanted)
            } else {
                most.min(pool.wanted)
            }
        })
    }
}

/// Every three minutes and for each pool on its own: the throughput of the last three minutes over what
/// the profile says that one worker does within its objective.
pub struct Interpolated {
    pub model: PerformanceModel,
    /// Share of a worker's throughput that is planned with.
    pub used: f64,
    last: Option<(f64, Traffic)>,
}

impl Interpolated {
    pub fn new(model: PerformanceModel, used: f64) -> Interpolated {
        Interpolated {
            model,
            used,
            last: None,
        }
    }
}

impl Scaler for Interpolated {
    fn look(&mut self, observation: &Observation) -> ByRole<u32> {
        let present = observation.pools.map(|_, pool| pool.wanted);
        let traffic = &observation.routers[0].traffic;
        let now = observation.now;
        if self.last.as_ref().is_some_and(|(at, _)| now - at < 180.0) {
            return present;
        }
        let Some((at, before)) = self.last.replace((now, traffic.clone())) else {
            return present;
        };
        let seconds = now - at;
        let arrived = (traffic.arrived - before.arrived) as f64;
        if arrived == 0.0 {
            return ByRole {
                prefill: 1,
                decode: 1,
            };
        }
        let begun = |t: &Traffic| t.prompt_length.counts.iter().sum::<u64>() as f64;
        let begun = begun(traffic) - begun(&before);
        let prompt = (traffic.prompt_tokens - before.prompt_tokens) as f64 / begun.max(1.0);
        let cached =
            (traffic.cached_prompt_tokens - before.cached_prompt_tokens) as f64 / begun.max(1.0);
        let prefill = self.model.prefill.seconds(prompt - cached, cached);
        // The throughput of one worker, if a prompt alone is within the objective.
        let prefill = if prefill <= TTFT {
            arrived / seconds * prefill
        } else {
            f64::from(MOST)
        };
        let tokens = (traffic.generated_tokens - before.generated_tokens) as f64;
        let updates = (traffic.updates - before.updates) as f64;
        let each = self.model.decode.seconds_of_one(prompt);
        let per_update = tokens / updates.max(1.0);
        let batch = ((ITL * per_update - self.model.decode.base_seconds) / each)
            .clamp(1.0, f64::from(self.model.max_running));
        let step = self.model.decode.step_seconds(batch, prompt);
        let decode = tokens / seconds / (batch / step * per_update);
        let whole = |need: f64| (need.ceil() as u32).clamp(1, MOST);
        ByRole {
            prefill: whole(prefill / self.used),
            decode: whole(decode / self.used),
        }
    }
}
