//! Whether a proposal is worth its moves.

use std::time::Duration;

use super::Proposal;

/// What moving experts costs a group and what balance is worth to it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CostModel {
    /// Weights of one expert.
    pub expert_bytes: u64,
    /// Bytes a second that a rank may spend on staging.
    pub bandwidth: f64,
    /// The part of its speed that the group loses while ranks stage (0 to 1).
    pub interference: f64,
    /// What a swap stops the group for, whatever its size.
    pub pause: Duration,
    /// The part of a step's time that goes with the most loaded rank's expert work (0 to 1).
    pub expert_time: f64,
    /// How long loads are expected to stay as planned for once the plan is adopted.
    pub holds: Duration,
}

impl Default for CostModel {
    /// V3 in FP8 over a tenth of a 400 Gbit/s link, planned every ten minutes.
    fn default() -> CostModel {
        CostModel {
            expert_bytes: 3 * 7168 * 2048,
            bandwidth: 5e9,
            interference: 0.1,
            pause: Duration::from_millis(50),
            expert_time: 0.5,
            holds: Duration::from_secs(600),
        }
    }
}

/// Both sides in seconds of the group's time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Verdict {
    /// Of work done sooner while the plan holds.
    pub gained: f64,
    /// Of work not done while it is staged and swapped.
    pub lost: f64,
    /// How long the rank with the most to load stages.
    pub staging: f64,
}

impl Verdict {
    pub fn is_worthwhile(&self) -> bool {
        self.gained > self.lost
    }
}

/// A step takes `1 − x + x / balancedness`, with `x` = [`CostModel::expert_time`] and an even group's
/// step as the unit. So
///
/// ```text
/// gained  = holds · (1 − step after / step before)
/// staging = most experts a rank loads · expert_bytes / bandwidth
/// lost    = staging · interference + pause
/// ```
///
/// Nothing to move and nothing to gain is not worthwhile. A proposal that brings back lost experts
/// is no matter of cost: do not ask.
pub fn worthwhile(proposal: &Proposal, model: &CostModel) -> Verdict {
    let step = |balance: f64| 1.0 - model.expert_time + model.expert_time / balance;
    let (before, after) = (
        step(proposal.before.overall()),
        step(proposal.after.overall()),
    );
    let most = proposal.loads_per_rank.iter().copied().max().unwrap_or(0);
    let staging = most as f64 * model.expert_bytes as f64 / model.bandwidth;
    Verdict {
        gained: model.holds.as_secs_f64() * (1.0 - after / before),
        lost: staging * model.interference + model.pause.as_secs_f64(),
        staging,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Balance;
    use crate::{Placement, Shape};

    #[test]
    fn seconds_won_against_seconds_lost() {
        let shape = Shape::new(1, 2, 2, 0).unwrap();
        let proposal = Proposal {
            placement: Placement::initial(shape).unwrap(),
            before: Balance::measured(&[&[1], &[3]]),
            after: Balance::measured(&[&[2], &[2]]),
            loads_per_rank: vec![1, 4],
        };
        let model = CostModel {
            expert_bytes: 1_000,
            bandwidth: 500.0,
            interference: 0.5,
            pause: Duration::from_secs(1),
            expert_time: 1.0,
            holds: Duration::from_secs(30),
        };
        let verdict = worthwhile(&proposal, &model);
        assert_eq!(verdict.staging, 8.0);
        assert_eq!(verdict.lost, 5.0);
        assert!((verdict.gained - 10.0).abs() < 1e-9);
        assert!(verdict.is_worthwhile());
        let brief = CostModel {
            holds: Duration::from_secs(14),
            ..model
        };
        assert!(!worthwhile(&proposal, &brief).is_worthwhile());
        let nothing = Proposal {
            before: proposal.after.clone(),
            ..proposal
        };
        assert!(!worthwhile(&nothing, &model).is_worthwhile());
    }
}
