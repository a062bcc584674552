//! What uneven experts cost a group: ranks wait for the hottest of them in every layer.
//!
//! The planner is the real one; loads of experts follow Zipf's law, in another order in each layer. A step takes as
//! much longer in its experts as the hottest rank has more to do than the mean.

use millrace_experts::planner::{Limits, Situation, own_domains, plan};
use millrace_experts::{Loads, Placement, Shape};
use serde::{Deserialize, Serialize};

use crate::random::Random;
use crate::scenario::ScenarioError;

/// DeepSeek-V3's.
const LAYERS: usize = 58;
const EXPERTS: usize = 256;
/// Rows of a window, times 8 choices.
const CHOICES: f64 = 65_536.0 * 8.0;

/// The group that a worker is a rank of.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    pub ranks: usize,
    /// Replicas a layer besides one of each expert.
    pub redundant: usize,
    /// Zipf's exponent: 0 is even.
    pub skew: f64,
    /// `false`: experts stay where they are at the start.
    pub planned: bool,
    /// Share of an even step that goes to experts (25 % of the decode pass in bench/results/2026-11-30-cuda.md).
    pub share: f64,
}

impl Group {
    /// How many times as long as an even group's a step takes.
    ///
    /// # Errors
    /// The experts do not fit the ranks.
    pub fn factor(&self, seed: u64) -> Result<f64, ScenarioError> {
        let fits = |_| ScenarioError::Value {
            field: "profile.group",
            problem: "needs at least one rank, and slots for all experts",
        };
        let shape = Shape::new(LAYERS, EXPERTS, self.ranks, self.redundant).map_err(fits)?;
        let current = Placement::initial(shape).map_err(fits)?;
        let loads = self.loads(seed);
        let situation = Situation {
            current: &current,
            loads: &loads,
            live: &vec![true; self.ranks],
            domains: &own_domains(self.ranks),
        };
        let proposal = plan(&situation, &Limits::default());
        let proposal = proposal.expect("all ranks are live and all sizes agree");
        let balance = match self.planned {
            true => proposal.after,
            false => proposal.before,
        };
        Ok(1.0 - self.share + self.share / balance.overall())
    }

    fn loads(&self, seed: u64) -> Loads {
        let mut random = Random::new(seed, "experts");
        let popularity: Vec<f64> = (1..=EXPERTS).map(|n| (n as f64).powf(-self.skew)).collect();
        let sum: f64 = popularity.iter().sum();
        let mut loads = Loads::zero(LAYERS, EXPERTS);
        for layer in loads.counts.chunks_exact_mut(EXPERTS) {
            for (count, part) in layer.iter_mut().zip(&popularity) {
                *count = (part / sum * CHOICES).round() as u64;
            }
            for last in (1..EXPERTS).rev() {
                layer.swap(last, random.below(last as u64 + 1) as usize);
            }
        }
        loads
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_planner_takes_most_of_what_uneven_experts_cost() {
        let group = |skew, planned| Group {
            ranks: 32,
            redundant: 32,
            skew,
            planned,
            share: 0.25,
        };
        let factor = |skew, planned| group(skew, planned).factor(1).unwrap();
        assert!(
            (factor(0.0, true) - 1.0).abs() < 0.01,
            "even loads cost nothing"
        );
        let (without, with) = (factor(0.8, false), factor(0.8, true));
        assert!(with < 1.0 + (without - 1.0) / 4.0, "{without} to {with}");
    }
}
