//! Which runs there are, and how often ours is ahead in them.

use std::collections::BTreeSet;

use super::Report;
use super::verdict::{Figures, is_ahead, is_ahead_by_objective};
use crate::policy::PolicyName;

/// Those that scale: `static` is there to show what the peak costs.
pub const BASELINES: [PolicyName; 2] = [PolicyName::Hpa, PolicyName::Planner];

/// Reports by scenario, size, policy and seed, in whatever order they came.
pub struct Runs<'a>(Vec<&'a Report>);

/// In how many seeds ours is ahead, of those that all who are compared ran with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ahead {
    pub plainly: usize,
    pub by_objective: usize,
    pub seeds: usize,
}

/// Ours against these, each of whom it has to be ahead of.
pub struct Contest {
    pub name: &'static str,
    pub against: &'static [PolicyName],
}

const CONTESTS: [Contest; 3] = [
    Contest {
        name: "hpa",
        against: &[PolicyName::Hpa],
    },
    Contest {
        name: "planner",
        against: &[PolicyName::Planner],
    },
    Contest {
        name: "both",
        against: &BASELINES,
    },
];

impl<'a> Runs<'a> {
    pub fn new(reports: &'a [Report]) -> Runs<'a> {
        let mut runs: Vec<&Report> = reports.iter().collect();
        runs.sort_by_key(|r| (&r.scenario, r.gpus, r.policy, r.seed));
        // Who asks for a seed twice has one run of it.
        runs.dedup_by(|a, b| {
            (&a.scenario, a.gpus, a.policy, a.seed) == (&b.scenario, b.gpus, b.policy, b.seed)
        });
        Runs(runs)
    }

    pub fn iter(&self) -> impl Iterator<Item = &'a Report> {
        self.0.iter().copied()
    }

    /// Those of each size.
    pub fn by_size(&self) -> Vec<(u32, Runs<'a>)> {
        let sizes: BTreeSet<u32> = self.iter().map(|r| r.gpus).collect();
        let of = |gpus| Runs(self.iter().filter(|r| r.gpus == gpus).collect());
        sizes.into_iter().map(|gpus| (gpus, of(gpus))).collect()
    }

    pub fn scenarios(&self) -> BTreeSet<&'a str> {
        self.iter().map(|r| r.scenario.as_str()).collect()
    }

    pub fn seeds(&self) -> BTreeSet<u64> {
        self.iter().map(|r| r.seed).collect()
    }

    pub fn policies(&self) -> BTreeSet<PolicyName> {
        self.iter().map(|r| r.policy).collect()
    }

    /// One run with every seed that there is.
    pub fn of(&self, scenario: &str, policy: PolicyName) -> Vec<&'a Report> {
        let runs = self.iter();
        runs.filter(|r| r.scenario == scenario && r.policy == policy)
            .collect()
    }

    /// Something was run with more than one seed. (Scenarios may have seeds of their own, one each.)
    pub fn several_seeds(&self) -> bool {
        let same = |a: &Report, b: &Report| {
            (&a.scenario, a.gpus, a.policy) == (&b.scenario, b.gpus, b.policy) && a.seed != b.seed
        };
        self.0.windows(2).any(|pair| same(pair[0], pair[1]))
    }

    /// The run of another policy that is the same otherwise.
    pub fn instead(&self, ours: &Report, policy: PolicyName) -> Option<&'a Report> {
        let same =
            |r: &&Report| (&r.scenario, r.gpus, r.seed) == (&ours.scenario, ours.gpus, ours.seed);
        self.iter().find(|r| r.policy == policy && same(r))
    }

    /// Of one size and scenario. `None`: no seed has them all.
    pub fn ahead(&self, scenario: &str, against: &[PolicyName]) -> Option<Ahead> {
        let mut ahead = Ahead {
            plainly: 0,
            by_objective: 0,
            seeds: 0,
        };
        for ours in self.of(scenario, PolicyName::Millrace) {
            let others = against.iter().map(|&policy| self.instead(ours, policy));
            let Some(others) = others.collect::<Option<Vec<_>>>() else {
                continue;
            };
            let all = |rule: fn(Figures, Figures) -> bool| {
                others.iter().all(|&other| rule(ours.into(), other.into()))
            };
            ahead.seeds += 1;
            ahead.plainly += usize::from(all(is_ahead));
            ahead.by_objective += usize::from(all(is_ahead_by_objective));
        }
        (ahead.seeds > 0).then_some(ahead)
    }

    /// What can be said of these runs.
    pub fn contests(&self) -> Vec<Contest> {
        let can = |contest: &Contest| {
            let sizes = self.by_size();
            sizes.iter().any(|(_, runs)| {
                let mut scenarios = runs.scenarios().into_iter();
                scenarios.any(|scenario| runs.ahead(scenario, contest.against).is_some())
            })
        };
        CONTESTS.into_iter().filter(can).collect()
    }
}
