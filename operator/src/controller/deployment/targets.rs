//! How many groups there are to be. Pure.
//!
//! Where the ModelDeployment does not say it, whoever scales the WorkerPool does, as long as there is
//! one of a role. During a rollout there are two, whose replicas the rollout sets: then it is what the
//! status remembers, and so a rollout ends with as many as it began with; or more, if a PoolAutoscaler
//! asks for more meanwhile. Its wish is read from its status, as nobody but the rollout may scale then.

use super::there::{PoolFacts, There};
use crate::api::{DeploymentStatus, PoolCounts, Role};
use crate::build::Resolved;
use crate::rollout::{Amount, Groups, Strategy, Wanted};

/// `asked`: groups that a PoolAutoscaler wants; 0 for as many as there are.
pub fn wanted(
    resolved: &Resolved,
    there: &There,
    previous: &DeploymentStatus,
    asked: Groups,
) -> Wanted {
    let groups = |role: Role, remembered: &PoolCounts| {
        let shape = resolved.pool(role)?;
        let declared = shape.replicas.and_then(|n| u32::try_from(n).ok());
        // Without a summary nothing was wanted of this role, not even none.
        let known = !matches!(remembered.summary.as_str(), "" | "-");
        let remembered = u32::try_from(remembered.wanted).ok().filter(|_| known);
        // Nobody scales what was told to have no groups during a rollout, either.
        let remembered = remembered.map(|groups| groups.max(asked.of(role)));
        let scaled = || scaled(&resolved.revision, role, there, remembered);
        Some(declared.unwrap_or_else(scaled))
    };
    Wanted {
        revision: resolved.revision.clone(),
        prefill: groups(Role::Prefill, &previous.prefill),
        decode: groups(Role::Decode, &previous.decode).unwrap_or(0),
    }
}

fn scaled(revision: &str, role: Role, there: &There, remembered: Option<u32>) -> u32 {
    let pools = there.pools.iter().filter(|pool| pool.role == role);
    let (own, others): (Vec<&PoolFacts>, Vec<&PoolFacts>) =
        pools.partition(|pool| pool.revision == revision);
    let sum = |pools: &[&PoolFacts]| pools.iter().map(|p| p.pool.replicas).sum::<u32>();
    match (own.first(), &others[..]) {
        // Made a moment ago, and empty only because of that.
        (Some(own), _) if own.fresh => remembered.unwrap_or_else(|| sum(&others).max(1)),
        (Some(own), []) => own.pool.replicas,
        // It was scaled up while what it replaces drains: a rollout never exceeds what is wanted.
        (Some(own), others) if sum(others) == 0 && Some(own.pool.replicas) > remembered => {
            own.pool.replicas
        }
        (None, [older]) if !older.fresh => older.pool.replicas,
        (own, others) => remembered.unwrap_or_else(|| {
            let own = own.map_or(0, |own| own.pool.replicas);
            (own + sum(others)).max(1)
        }),
    }
}

/// Defaults: one pair more, none less.
pub fn strategy(resolved: &Resolved, wanted: &Wanted) -> Strategy {
    let rollout = &resolved.rollout;
    let surge = rollout.max_surge.as_ref().and_then(Amount::parse);
    let unavailable = rollout.max_unavailable.as_ref().and_then(Amount::parse);
    Strategy::new(
        surge.unwrap_or(Amount::Pairs(1)),
        unavailable.unwrap_or(Amount::Pairs(0)),
        wanted.ratio().pairs(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::Pool;

    fn there(pools: &[(&str, u32, bool)]) -> There {
        let facts = pools.iter().map(|&(revision, replicas, fresh)| PoolFacts {
            revision: revision.to_owned(),
            role: Role::Decode,
            pool: Pool {
                replicas,
                ..Pool::default()
            },
            fresh,
            running: 0,
            groups: Default::default(),
            waits: None,
        });
        There {
            pools: facts.collect(),
            ..There::default()
        }
    }

    fn groups(pools: &[(&str, u32, bool)], remembered: Option<u32>) -> u32 {
        scaled("new", Role::Decode, &there(pools), remembered)
    }

    #[test]
    fn whoever_scales_decides_while_there_is_one_pool() {
        assert_eq!(groups(&[], None), 1);
        assert_eq!(groups(&[("new", 0, true)], Some(1)), 1);
        assert_eq!(groups(&[("new", 5, false)], Some(1)), 5);
        assert_eq!(groups(&[("new", 0, false)], Some(5)), 0);
    }

    #[test]
    fn a_rollout_ends_with_what_it_began_with() {
        // It begins with what the old pool has now, whatever was remembered before.
        assert_eq!(groups(&[("old", 4, false)], Some(2)), 4);
        assert_eq!(groups(&[("old", 4, false), ("new", 0, true)], Some(4)), 4);
        assert_eq!(groups(&[("old", 3, false), ("new", 2, false)], Some(4)), 4);
        assert_eq!(groups(&[("old", 0, false), ("new", 4, false)], Some(4)), 4);
        // Another revision on top.
        let three = [("a", 3, false), ("b", 1, false)];
        assert_eq!(groups(&three, Some(4)), 4);
        // Scaled up while the old one drains.
        assert_eq!(groups(&[("old", 0, false), ("new", 6, false)], Some(4)), 6);
        // With none, too.
        assert_eq!(groups(&[("old", 0, false)], Some(0)), 0);
        assert_eq!(groups(&[("old", 0, false), ("new", 0, true)], Some(0)), 0);
        // A status that was lost.
        assert_eq!(groups(&[("old", 3, false), ("new", 1, false)], None), 4);
    }

    #[test]
    fn a_rollout_takes_in_what_is_asked_for_meanwhile() {
        let json = serde_json::json!({
            "apiVersion": "serving.millrace.dev/v1alpha1", "kind": "ModelDeployment",
            "metadata": {"name": "m", "namespace": "n", "uid": "u"},
            "spec": {"model": {"source": {"builtin": "tiny-r1"}}, "decode": {}},
        });
        let defaults = crate::build::Defaults {
            image: "i".to_owned(),
            etcd: Vec::new(),
            operator_namespace: "o".to_owned(),
        };
        let deployment = serde_json::from_value(json).unwrap();
        let resolved = crate::build::resolve(&deployment, &defaults).unwrap();
        let new = resolved.revision.as_str();
        let status = DeploymentStatus {
            decode: PoolCounts {
                wanted: 4,
                summary: "4/4".to_owned(),
                ..PoolCounts::default()
            },
            ..DeploymentStatus::default()
        };
        let decode = |pools: &[(&str, u32, bool)], decode| {
            let asked = Groups { prefill: 0, decode };
            wanted(&resolved, &there(pools), &status, asked).decode
        };
        let rolling = [("old", 3, false), (new, 2, false)];
        assert_eq!(decode(&rolling, 6), 6);
        assert_eq!(decode(&rolling, 2), 4, "never fewer");
        assert_eq!(decode(&[(new, 2, false)], 6), 2, "then it scales the pool");
    }
}
