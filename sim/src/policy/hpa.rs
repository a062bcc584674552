//! Kubernetes' HorizontalPodAutoscaler, one for each pool, on what waits for it.
//!
//! `desired = ceil(metric / target)`, where the metric is all that is at the role's workers or waits for them and the
//! target is for each replica (an external metric of type AverageValue); nothing changes while the ready replicas'
//! average is within a tenth of the target. Fewer replicas only after 300 s in which no look wanted more (the highest
//! of their wishes counts); more at once, but at most twice as many or 4 more at a look. These are the controller's
//! defaults. Missing metrics change nothing.

use std::collections::VecDeque;

use millrace_autoscaler::{ByRole, Observation, Role};

use super::{Policy, Setup};

const TOLERANCE: f64 = 0.1;
const DOWN_STABILIZATION: f64 = 300.0;
/// Of the default policies for more replicas: the larger of a doubling and 4.
const UP_STEP: u32 = 4;

pub(super) struct Hpa {
    setup: Setup,
    /// Time and wish of the looks that still count, by role.
    wishes: ByRole<VecDeque<(f64, u32)>>,
}

impl Hpa {
    pub(super) fn new(setup: Setup) -> Hpa {
        Hpa {
            setup,
            wishes: ByRole::default(),
        }
    }

    /// What waits for a role. Prompts wait for prefill workers; sequences that hold a turn or wait for one are decode's.
    fn metric(observation: &Observation, role: Role) -> f64 {
        let workers = observation.workers.iter().filter(|w| w.role == role);
        match role {
            Role::Prefill => workers.map(|w| f64::from(w.waiting + w.running)).sum(),
            Role::Decode => {
                let routers: u64 = observation.routers.iter().map(|r| r.waiting).sum();
                let there: f64 = workers.map(|w| f64::from(w.waiting + w.running)).sum();
                there + routers as f64
            }
        }
    }
}

impl Policy for Hpa {
    fn period(&self) -> f64 {
        self.setup.scaling.hpa_interval
    }

    fn decide(&mut self, observation: &Observation) -> ByRole<u32> {
        let present = observation.pools.map(|_, pool| pool.wanted);
        if observation.routers.len() < observation.routers_expected as usize {
            return present;
        }
        let setup = self.setup;
        let wanted = present.map(|role, &now| {
            let target = match role {
                Role::Prefill => setup.scaling.hpa_prefill_target,
                Role::Decode => setup.scaling.hpa_decode_target,
            } * f64::from(setup.replica);
            let ready = observation.pools.of(role).ready;
            let ratio = Hpa::metric(observation, role) / f64::from(ready.max(1)) / target;
            let wish = match (ratio - 1.0).abs() <= TOLERANCE {
                true => now,
                false => (ratio * f64::from(ready.max(1))).ceil() as u32,
            };
            let wish = wish.min(now.saturating_mul(2).max(now + UP_STEP));
            let wishes = self.wishes.of_mut(role);
            wishes.push_back((observation.now, wish));
            while wishes
                .front()
                .is_some_and(|&(at, _)| at < observation.now - DOWN_STABILIZATION)
            {
                wishes.pop_front();
            }
            let highest = wishes.iter().map(|&(_, wish)| wish).max().unwrap_or(wish);
            // The window is for fewer alone.
            if wish >= now { wish } else { highest.min(now) }
        });
        setup.bound(wanted)
    }
}
