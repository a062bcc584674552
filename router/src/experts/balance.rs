//! One look at a placement. Pure.

use std::collections::BTreeMap;

use millrace_experts::planner::{self, Limits, PlanError, Proposal, Verdict};
use millrace_experts::{Epoch, planner::own_domains};

use super::config::CostModel;
use super::group::Situation;

/// Choices remembered for each expert, on average, before a placement is planned for them: with fewer
/// it would follow chance.
pub const ENOUGH: f64 = 16.0;

/// What a look came to.
pub struct Look {
    pub proposal: Proposal,
    pub worthwhile: bool,
    /// With the numbers it was decided on.
    pub reason: String,
}

/// # Errors
/// The planner cannot plan for such a group.
pub fn look(situation: &Situation, cost: &CostModel, expert_bytes: u64) -> Result<Look, PlanError> {
    let Situation { epoch, loads } = situation;
    let (live, domains) = (epoch.live(), domains(epoch));
    let from = planner::Situation {
        current: &epoch.placement,
        loads,
        live: &live,
        domains: &domains,
    };
    let proposal = planner::plan(&from, &Limits::default())?;
    let verdict = planner::worthwhile(&proposal, &cost.of(expert_bytes));
    let (before, after) = (proposal.before.overall(), proposal.after.overall());
    let Verdict {
        gained,
        lost,
        staging,
    } = verdict;
    let moved = proposal.moved();
    let worthwhile = moved > 0 && after - before >= cost.min_gain && verdict.is_worthwhile();
    let reason = format!(
        "balancedness {before:.3} becomes {after:.3}: {gained:.2} s gained, {lost:.2} s lost, {staging:.1} s of staging"
    );
    Ok(Look {
        proposal,
        worthwhile,
        reason,
    })
}

/// Ranks of one host fail together. On a single host each is a domain of its own, as far as anything
/// can be told apart there.
fn domains(epoch: &Epoch) -> Vec<usize> {
    let ranks = epoch.placement.shape().ranks;
    let host = |address: &str| {
        address
            .rsplit_once(':')
            .map_or(address, |(host, _)| host)
            .to_owned()
    };
    let mut hosts: BTreeMap<String, usize> = BTreeMap::new();
    let mut domains = own_domains(ranks);
    for member in &epoch.members {
        // The host's first rank names it.
        domains[member.id.rank] = *hosts.entry(host(&member.grpc)).or_insert(member.id.rank);
    }
    if hosts.len() < 2 {
        own_domains(ranks)
    } else {
        domains
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use millrace_experts::{Loads, Member, Placement, RankId, Shape};

    use super::*;

    fn situation(hosts: [&str; 4], counts: [u64; 4]) -> Situation {
        // Each expert on three ranks: one more than two failure domains take.
        let shape = Shape::new(1, 4, 4, 8).unwrap();
        let member = |(rank, host): (usize, &&str)| Member {
            id: RankId {
                rank,
                incarnation: 1,
            },
            exchange: format!("{host}:2"),
            grpc: format!("{host}:1"),
        };
        let epoch = Epoch {
            number: 1,
            reset: 1,
            members: hosts.iter().enumerate().map(member).collect(),
            placement: Arc::new(Placement::initial(shape).unwrap()),
            expected: Arc::new(Loads::zero(1, 4)),
        };
        let loads = Loads {
            experts: 4,
            counts: counts.to_vec(),
        };
        Situation {
            epoch: Arc::new(epoch),
            loads,
        }
    }

    #[test]
    fn a_host_is_a_failure_domain() {
        let of = |hosts| domains(&situation(hosts, [1; 4]).epoch);
        assert_eq!(of(["a", "a", "b", "b"]), [0, 0, 2, 2]);
        assert_eq!(of(["a", "a", "a", "a"]), [0, 1, 2, 3]);
        assert_eq!(of(["[::1]", "[::2]", "[::1]", "[::2]"]), [0, 1, 0, 1]);
    }

    #[test]
    fn only_what_pays_is_worthwhile() {
        let skewed = situation(["a"; 4], [1000, 10, 10, 10]);
        let cost = CostModel::default();
        let found = look(&skewed, &cost, 1000).unwrap();
        assert!(found.worthwhile, "{}", found.reason);
        let dear = look(&skewed, &cost, 1 << 50).unwrap();
        assert!(!dear.worthwhile, "{}", dear.reason);
        let brief = CostModel {
            holds: Duration::ZERO,
            ..cost
        };
        assert!(!look(&skewed, &brief, 1000).unwrap().worthwhile);
        let even = look(&situation(["a"; 4], [100; 4]), &cost, 1000).unwrap();
        assert!(!even.worthwhile, "{}", even.reason);
    }
}
