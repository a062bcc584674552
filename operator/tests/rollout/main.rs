//! The planner of rollouts against worlds that do what they like: groups become ready, fail and drain
//! in any order, the spec changes at any moment, and every decision is judged by rules that are
//! written here a second time.

mod judge;
mod scenarios;
mod world;

use millrace_operator::rollout::{Step, Strategy, Wanted};
use proptest::prelude::*;
use world::{Event, World};

fn wanted() -> impl Strategy_<Value = Wanted> {
    let revision = prop::sample::select(vec!["a", "b", "c", "bad"]);
    let prefill = prop::option::weighted(0.8, 0..6u32);
    (revision, prefill, 0..6u32).prop_map(|(revision, prefill, decode)| Wanted {
        revision: revision.to_owned(),
        prefill,
        decode,
    })
}

/// proptest's, beside the rollout's.
use proptest::strategy::Strategy as Strategy_;

fn limits() -> impl Strategy_<Value = Strategy> {
    (0..4u32, 0..4u32)
        .prop_filter("something must be able to move", |(s, u)| s + u > 0)
        .prop_map(|(surge, unavailable)| Strategy { surge, unavailable })
}

fn event(failures: bool, specs: bool) -> impl Strategy_<Value = Event> {
    let at = any::<prop::sample::Index>();
    prop_oneof![
        6 => Just(Event::Plan { steps: usize::MAX }),
        2 => (0..3usize).prop_map(|steps| Event::Plan { steps }),
        6 => at.clone().prop_map(Event::Sync),
        6 => at.clone().prop_map(Event::Ready),
        4 => at.clone().prop_map(Event::Drained),
        2 => any::<bool>().prop_map(Event::Router),
        (if failures { 2 } else { 0 }) => at.clone().prop_map(Event::Unready),
        (if failures { 2 } else { 0 }) => at.prop_map(Event::Dies),
        (if specs { 2 } else { 0 }) => wanted().prop_map(Event::Spec),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Whatever happens, each step of each plan keeps the limits (judged in `World::judge`), and once
    /// nothing happens any more what is wanted is there and nothing else.
    #[test]
    fn limits_hold_and_it_ends(
        limits in limits(),
        first in wanted(),
        events in prop::collection::vec(event(true, true), 0..120),
        last in wanted(),
    ) {
        let mut world = World::new(limits, first);
        for event in events {
            world.happens(event)?;
        }
        if last.revision != "bad" {
            world.happens(Event::Spec(last))?;
            world.settle()?;
        }
    }

    /// Without failures and with an unchanged number of pairs, what truly serves, and not only what
    /// the operator knows of it, never falls below N - maxUnavailable: under any chain of revisions,
    /// reverts and bad images included.
    #[test]
    fn what_serves_never_dips(
        limits in limits(),
        sizes in (prop::option::weighted(0.8, 1..6u32), 1..6u32),
        events in prop::collection::vec(event(false, false), 0..60),
        revisions in prop::collection::vec(
            (prop::sample::select(vec!["a", "b", "c", "bad"]), prop::collection::vec(event(false, false), 0..60)),
            1..5,
        ),
    ) {
        let spec = |revision: &str| Wanted {
            revision: revision.to_owned(),
            prefill: sizes.0,
            decode: sizes.1,
        };
        let mut world = World::new(limits, spec("a"));
        for event in events {
            world.happens(event)?;
        }
        world.settle()?;
        let floor = spec("a").ratio().pairs().saturating_sub(limits.unavailable);
        for (revision, events) in revisions {
            world.happens(Event::Spec(spec(revision)))?;
            for event in events {
                world.happens(event)?;
                prop_assert!(world.serving() >= floor, "{} of {floor}: {world:?}", world.serving());
            }
        }
    }

    /// The same view gives the same plan, and a finished world none.
    #[test]
    fn a_finished_world_is_left_alone(limits in limits(), spec in wanted()) {
        prop_assume!(spec.revision != "bad");
        let mut world = World::new(limits, spec);
        world.settle()?;
        let plan = world.decide();
        prop_assert!(plan.complete(), "{plan:?}");
        prop_assert_eq!(plan.steps, Vec::<Step>::new());
    }
}
