//! What is kept between two looks. All of it can be lost.

use crate::decision::{Bottleneck, Cause, Correction, Frozen, Reasons, Status};
use crate::{Decision, Observation, Policy};

/// Bounded: the samples of the last 15 minutes and a few numbers that were learned. Begins empty, with
/// [`Memory::default`].
#[derive(Debug, Clone, Default)]
pub struct Memory {}

impl Memory {
    /// Until the body follows: replicas stay as they are.
    pub(crate) fn decide(&mut self, _policy: &Policy, observation: &Observation) -> Decision {
        let present = observation.pools.map(|_, pool| pool.wanted);
        let reasons = Reasons {
            cause: Cause::Frozen,
            needed: None,
            one_fewer: None,
            one_more: None,
        };
        Decision {
            desired: present,
            present,
            status: Status::Frozen(Frozen::Warming),
            limits: Vec::new(),
            pools: present.map(|_, _| reasons.clone()),
            bottleneck: Bottleneck::None,
            seen: None,
            predicted: None,
            correction: Correction {
                prefill: 1.0,
                decode: 1.0,
            },
            gpus: 0,
        }
    }
}
