//! The rules that every step of every plan keeps, whatever the world is like.

use millrace_operator::api::Role;
use millrace_operator::rollout::{Pool, Revision, Step, Wanted};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use crate::world::World;

/// The most pairs that groups of one revision make, by trying.
pub fn complete(wanted: &Wanted, has_prefill: bool, prefill: u32, decode: u32) -> u32 {
    let all = wanted.prefill.unwrap_or(0).max(wanted.decode);
    let enough = |wanted: u32, k: u32, have: u32| wanted * k <= have * all;
    if wanted.decode == 0 {
        return 0;
    }
    let fits = |k: &u32| {
        enough(wanted.decode, *k, decode)
            && (!has_prefill || enough(wanted.prefill.unwrap_or(0), *k, prefill))
    };
    (0..200).take_while(fits).last().unwrap_or(0)
}

impl World {
    pub fn judge(&self, before: &World, step: &Step) -> Result<(), TestCaseError> {
        let all = self.wanted.prefill.unwrap_or(0).max(self.wanted.decode);
        let floor = all.saturating_sub(self.limits.unavailable);
        let (was, is) = (before.all_available(), self.all_available());
        prop_assert!(
            is >= was.min(floor),
            "available {was} to {is}, at least {floor}: {step:?} {before:?}"
        );

        for role in Role::ALL
            .into_iter()
            .filter(|&role| self.wanted.of(role) == Some(all))
        {
            let grows =
                matches!(step, Step::Scale { role: r, from, to, .. } if *r == role && to > from);
            let exist = self.existing(role);
            let alone = self
                .pools
                .keys()
                .all(|(name, _)| *name == self.wanted.revision);
            prop_assert!(
                !grows || alone || exist <= all + self.limits.surge,
                "{exist} {role} exist: {step:?} {before:?}"
            );
        }

        let to_wanted = matches!(step, Step::Scale { revision, role, from, to }
            if *revision == self.wanted.revision && *to < self.wanted.of(*role).unwrap_or(0) && to < from);
        prop_assert!(
            !to_wanted,
            "the wanted revision shrinks: {step:?} {before:?}"
        );

        let older = |world: &World| -> u32 {
            let view = world.view();
            let older = view
                .iter()
                .filter(|(name, _)| **name != world.wanted.revision);
            older
                .map(|(name, revision)| world.available(name, revision))
                .sum()
        };
        if !self.router_done && all + self.limits.surge > 1 && older(before) > 0 {
            prop_assert!(older(self) > 0, "no old pair is left: {step:?} {before:?}");
        }
        Ok(())
    }

    /// As the operator sees it.
    pub fn available(&self, name: &str, revision: &Revision) -> u32 {
        let ready = |pool: Option<Pool>| pool.map_or(0, |p| p.ready.min(p.replicas));
        let told = |pool: Option<Pool>| pool.map_or(0, |p| p.replicas);
        let (prefill, decode) = (ready(revision.prefill), ready(revision.decode));
        if self.wanted.prefill.unwrap_or(0) == 0 && told(revision.prefill) > 0 && prefill == 0 {
            return 0;
        }
        let split = revision.prefill.is_some() || name == self.wanted.revision;
        complete(&self.wanted, split, prefill, decode)
    }

    fn all_available(&self) -> u32 {
        let view = self.view();
        view.iter()
            .map(|(name, revision)| self.available(name, revision))
            .sum()
    }

    fn existing(&self, role: Role) -> u32 {
        let pools = self.pools.iter().filter(|((_, r), _)| *r == role);
        pools.map(|(_, pool)| pool.exist()).sum()
    }
}
