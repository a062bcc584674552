use proptest::prelude::*;

use super::*;
use crate::Shape;
use crate::eplb::{self, Hierarchy};

#[derive(Debug)]
struct Case {
    current: Placement,
    loads: Loads,
    live: Vec<bool>,
    domains: Vec<usize>,
}

impl Case {
    fn situation(&self) -> Situation<'_> {
        Situation {
            current: &self.current,
            loads: &self.loads,
            live: &self.live,
            domains: &self.domains,
        }
    }

    fn all_live(&self) -> Case {
        Case {
            current: self.current.clone(),
            loads: self.loads.clone(),
            live: vec![true; self.live.len()],
            domains: self.domains.clone(),
        }
    }

    /// Failure domains of an expert's live replicas.
    fn spread(&self, placement: &Placement, layer: usize, expert: usize) -> usize {
        let replicas = placement.replicas(layer, expert);
        let live = replicas.filter(|&(rank, _)| self.live[rank]);
        let mut domains: Vec<usize> = live.map(|(rank, _)| self.domains[rank]).collect();
        domains.sort_unstable();
        domains.dedup();
        domains.len()
    }
}

/// Any placement, replicas of one expert on one rank included; any loads; some ranks dead.
fn cases() -> impl Strategy<Value = Case> {
    (1usize..3, 1usize..10, 1usize..7, 0usize..14).prop_flat_map(
        |(layers, experts, ranks, more)| {
            let shape = Shape::new(layers, experts, ranks, more).unwrap();
            let places = layers * shape.layer_slots();
            (
                prop::collection::vec(0..experts as u32, places),
                prop::collection::vec(any::<u32>(), places),
                prop::collection::vec(
                    prop_oneof![Just(0u64), 1u64..50, 0u64..5000],
                    layers * experts,
                ),
                prop::collection::vec(prop::bool::weighted(0.8), ranks),
                prop::collection::vec(0usize..4, ranks),
            )
                .prop_map(move |(mut table, order, counts, live, domains)| {
                    let size = shape.layer_slots();
                    for (layer, order) in table.chunks_exact_mut(size).zip(order.chunks_exact(size))
                    {
                        for (slot, expert) in layer.iter_mut().zip(0..experts as u32) {
                            *slot = expert;
                        }
                        let mut shuffled: Vec<_> =
                            order.iter().zip(layer.iter().copied()).collect();
                        shuffled.sort();
                        for (slot, (_, expert)) in layer.iter_mut().zip(shuffled) {
                            *slot = expert;
                        }
                    }
                    Case {
                        current: Placement::new(shape, table).unwrap(),
                        loads: Loads { experts, counts },
                        live,
                        domains,
                    }
                })
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn plans_hold(case in cases()) {
        let shape = case.current.shape();
        let live = case.live.iter().filter(|&&live| live).count();
        let planned = plan(&case.situation(), &Limits::default());
        if live * shape.slots < shape.experts {
            let refused = matches!(planned, Err(PlanError::TooFewLive { .. }));
            prop_assert!(refused);
            return Ok(());
        }
        let planned = planned.unwrap();
        prop_assert_eq!(&planned, &plan(&case.situation(), &Limits::default()).unwrap());
        prop_assert_eq!(planned.placement.missing(&case.live), vec![]);
        let domains: Vec<usize> = (0..shape.ranks).filter(|&r| case.live[r]).map(|r| case.domains[r]).collect();
        let spread = spread::possible(&domains, shape.slots, shape.experts);
        for layer in 0..shape.layers {
            for rank in 0..shape.ranks {
                let (was, is) = (case.current.slots(layer, rank), planned.placement.slots(layer, rank));
                prop_assert!(case.live[rank] || was == is, "a dead rank's slots");
                // What stays on a rank stays in its slot.
                for (slot, expert) in is.iter().enumerate() {
                    let stays = was.contains(expert) && was[slot] != *expert;
                    let count = |of: &[u32]| of.iter().filter(|e| *e == expert).count();
                    prop_assert!(!stays || count(is) > count(was), "{was:?} {is:?}");
                }
            }
            for expert in 0..shape.experts {
                prop_assert!(!spread || case.spread(&planned.placement, layer, expert) > 1);
            }
        }
    }

    #[test]
    fn plans_are_as_even_as_eplb(case in cases()) {
        let case = case.all_live();
        let limits = Limits { two_domains: false, ..Limits::default() };
        // Without domains to keep apart, nothing but balance counts.
        let apart = own_domains(case.live.len());
        let situation = Situation { domains: &apart, ..case.situation() };
        let planned = plan(&situation, &limits).unwrap();
        let plain = eplb::place(&case.loads, case.current.shape(), Hierarchy::GLOBAL).unwrap();
        let plain = Balance::predicted(&case.loads, &plain, &case.live);
        for layer in 0..case.current.shape().layers {
            prop_assert!(planned.after.layer(layer) >= plain.layer(layer) - 2e-4);
        }
    }

    #[test]
    fn limits_are_kept(case in cases(), most in 0usize..4) {
        let case = case.all_live();
        let limits = Limits { loads_per_rank: most, two_domains: false, ..Limits::default() };
        let planned = plan(&case.situation(), &limits).unwrap();
        prop_assert!(planned.loads_per_rank.iter().all(|&loads| loads <= most));
        let better = planned.after.overall() >= planned.before.overall() * (1.0 - 1e-5);
        prop_assert!(better, "{} after {}", planned.after.overall(), planned.before.overall());
    }

    #[test]
    fn repairs_load_what_is_lost_and_nothing_else(case in cases()) {
        let shape = case.current.shape();
        match repair(&case.situation()) {
            Ok(repaired) => {
                prop_assert_eq!(repaired.placement.missing(&case.live), vec![]);
                prop_assert_eq!(repaired.moved(), case.current.missing(&case.live).len());
            }
            Err(_) => {
                let live = case.live.iter().filter(|&&live| live).count();
                prop_assert!(live * shape.slots < shape.experts);
            }
        }
    }
}

#[test]
fn nothing_to_gain_nothing_moved() {
    for (ranks, redundant) in [(2, 2), (4, 4), (8, 8)] {
        let shape = Shape::new(4, 32, ranks, redundant).unwrap();
        let current = Placement::initial(shape).unwrap();
        let case = Case {
            loads: Loads::zero(4, 32),
            live: vec![true; ranks],
            domains: own_domains(ranks),
            current,
        };
        let first = plan(&case.situation(), &Limits::default()).unwrap();
        assert!(first.after.overall() > 0.97, "{}", first.after.overall());
        let again = Situation {
            current: &first.placement,
            ..case.situation()
        };
        assert_eq!(plan(&again, &Limits::default()).unwrap().moved(), 0);
    }
}

#[test]
fn sizes_that_do_not_agree_are_named() {
    let current = Placement::initial(Shape::new(1, 4, 2, 0).unwrap()).unwrap();
    let situation = Situation {
        current: &current,
        loads: &Loads::zero(1, 5),
        live: &[true, true],
        domains: &[0, 1],
    };
    let error = plan(&situation, &Limits::default()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("experts of loads are for 5, but the placement for 4")
    );
}
