//! A planner after NVIDIA Dynamo's: every interval it takes the last interval's traffic for the next one's, and asks
//! a profile how many replicas of each role serve it. Prefill and decode are planned without regard to each other.
//!
//! ```text
//! prefill = ceil(requests/s * prompt tokens * correction / throughput of a prefill worker at that length)
//! decode  = ceil(requests/s * output tokens / throughput of a decode worker with the largest batch whose step
//!                meets the ITL, the ITL divided by its correction)
//! ```
//!
//! Corrections are measured over expected latencies, as there, between 1/2 and 2 here. Its interpolated profile is
//! this simulation's own model: it errs in nothing that ours does not.

use millrace_autoscaler::observation::{Distribution, Traffic};
use millrace_autoscaler::{ByRole, Observation};

use super::{Policy, Setup};

pub(super) struct Planner {
    setup: Setup,
    last: Option<Traffic>,
}

impl Planner {
    pub(super) fn new(setup: Setup) -> Planner {
        Planner { setup, last: None }
    }

    fn plan(&self, since: &Traffic, now: &Traffic, present: ByRole<u32>) -> Option<ByRole<u32>> {
        let model = self.setup.model;
        let seconds = now.seconds - since.seconds;
        let arrived = now.arrived.checked_sub(since.arrived)? as f64;
        if seconds <= 0.0 || arrived == 0.0 {
            // Without requests it has nothing to plan from, and keeps what is there.
            return None;
        }
        let rate = arrived / seconds;
        let count = |d: &Distribution| d.counts.iter().sum::<u64>() as f64;
        let mean = |now: &Distribution, since: &Distribution| {
            let new = count(now) - count(since);
            (new > 0.0).then(|| (now.sum - since.sum) / new)
        };
        let prompt = mean(&now.prompt_length, &since.prompt_length)?;
        let output = mean(&now.generation_length, &since.generation_length).unwrap_or(1.0);
        let expected = model.prefill.seconds(prompt, 0.0);
        let ttft = mean(&now.first_token_seconds, &since.first_token_seconds);
        let correction = ttft.map_or(1.0, |ttft| (ttft / expected).clamp(0.5, 2.0));
        // A correction below 1 stands for prompts found in caches; above 1 for queues, which more replicas empty.
        let prefill = rate * expected * correction.min(1.0);
        let context = prompt + output / 2.0;
        let step = |batch: f64| model.decode.step_seconds(batch, context);
        let itl = mean(&now.inter_token_seconds, &since.inter_token_seconds);
        let workers = f64::from(present.decode.max(1) * self.setup.replica);
        let batch_now = rate * output * itl.unwrap_or(0.0) / workers;
        let correction = itl.map_or(1.0, |itl| (itl / step(batch_now)).clamp(0.5, 2.0));
        let room = self.setup.objectives.itl / correction - model.decode.base_seconds;
        let cache = model.kv_tokens as f64 / context;
        let batch = (room / model.decode.seconds_of_one(context))
            .min(f64::from(model.max_running))
            .min(cache)
            .max(1.0);
        let decode = rate * output / (batch / (step(batch) * correction));
        let replicas = |workers: f64| (workers / f64::from(self.setup.replica)).ceil() as u32;
        Some(ByRole {
            prefill: replicas(prefill),
            decode: replicas(decode),
        })
    }
}

impl Policy for Planner {
    fn period(&self) -> f64 {
        self.setup.scaling.planner_interval
    }

    fn decide(&mut self, observation: &Observation) -> ByRole<u32> {
        let present = observation.pools.map(|_, pool| pool.wanted);
        let [router] = observation.routers.as_slice() else {
            return present;
        };
        let last = self.last.replace(router.traffic.clone());
        let Some(last) = last.filter(|last| last.incarnation == router.traffic.incarnation) else {
            return present;
        };
        // It changes nothing while an earlier change is on its way.
        let pools = [observation.pools.prefill, observation.pools.decode];
        if pools
            .iter()
            .any(|p| p.ready != p.wanted || p.existing != p.wanted)
        {
            return present;
        }
        let planned = self.plan(&last, &router.traffic, present);
        planned.map_or(present, |planned| self.setup.bound(planned))
    }
}
