use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::{Loads, Member, Placement, RankId, Shape};

fn epoch(placement: Placement, counts: Vec<u64>, live: &[bool]) -> Epoch {
    let experts = placement.shape().experts;
    let members = (0..live.len()).filter(|&rank| live[rank]);
    Epoch {
        number: 1,
        reset: 1,
        members: members
            .map(|rank| Member {
                id: RankId {
                    rank,
                    incarnation: 7,
                },
                exchange: String::new(),
                grpc: String::new(),
            })
            .collect(),
        placement: Arc::new(placement),
        expected: Arc::new(Loads { experts, counts }),
    }
}

/// Placements with a few redundant slots, some ranks dead, any loads: those that pass the check.
fn epochs() -> impl Strategy<Value = Epoch> {
    (1usize..3, 1usize..9, 1usize..7, 0usize..9).prop_flat_map(|(layers, experts, ranks, more)| {
        let shape = Shape::new(layers, experts, ranks, more).unwrap();
        let table = prop::collection::vec(0..experts as u32, layers * shape.layer_slots());
        let counts = prop::collection::vec(0u64..1000, layers * experts);
        let live = prop::collection::vec(prop::bool::weighted(0.8), ranks);
        (table, counts, live).prop_filter_map(
            "an expert is missing",
            move |(mut table, c, live)| {
                for layer in table.chunks_exact_mut(shape.layer_slots()) {
                    for (slot, expert) in layer.iter_mut().zip(0..experts as u32) {
                        *slot = expert;
                    }
                }
                let epoch = epoch(Placement::new(shape, table).ok()?, c, &live);
                epoch.check().ok()?;
                Some(epoch)
            },
        )
    })
}

proptest! {
    #[test]
    fn a_live_replica_and_the_local_one_first(epoch in epochs(), rows in prop::collection::vec(any::<u32>(), 1..20)) {
        let (shape, live) = (epoch.placement.shape(), epoch.live());
        for rank in 0..shape.ranks {
            let choice = Choice::new(&epoch, rank);
            prop_assert_eq!(&choice, &Choice::new(&epoch.clone(), rank));
            for layer in 0..shape.layers {
                for expert in 0..shape.experts {
                    for &row in &rows {
                        let (to, slot) = choice.pick(layer, expert, row);
                        prop_assert!(live[to]);
                        prop_assert_eq!(epoch.placement.slots(layer, to)[slot] as usize, expert);
                        let local = live[rank] && epoch.placement.slots(layer, rank).contains(&(expert as u32));
                        prop_assert!(!local || to == rank);
                    }
                }
            }
        }
    }
}

/// Tokens each rank computes if every live rank sends `rows` tokens of expert `e` for each unit of
/// its count.
fn computed(epoch: &Epoch, layer: usize) -> Vec<f64> {
    let shape = epoch.placement.shape();
    let mut load = vec![0.0; shape.ranks];
    for member in &epoch.members {
        let choice = Choice::new(epoch, member.id.rank);
        for (expert, &count) in epoch.expected.layer(layer).iter().enumerate() {
            for row in 0..count as u32 {
                load[choice.pick(layer, expert, row).0] += 1.0;
            }
        }
    }
    load
}

#[test]
fn shares_come_out_as_planned() {
    let shape = Shape::new(2, 32, 8, 16).unwrap();
    let counts: Vec<u64> = (0..64).map(|e| 2400 / (1 + e % 32)).collect();
    for dead in [None, Some(3)] {
        let live: Vec<bool> = (0..8).map(|rank| Some(rank) != dead).collect();
        let mut table: Vec<u32> = Vec::new();
        for layer in 0..2 {
            // Every expert and, beside it on other ranks, the hottest ones again.
            for rank in 0..8u32 {
                table.extend((0..4).map(|s| rank + 8 * s));
                table.extend([(rank + 3 + layer) % 8, (rank + 6) % 8]);
            }
        }
        // What only the dead rank held would be missing; the first rank lends its spare slots.
        if let Some(dead) = dead {
            for layer in 0..2 {
                for s in 1..4 {
                    table[layer * 48 + (dead + s) % 8 * 6 + 5] = dead as u32 + 8 * s as u32;
                }
            }
        }
        let epoch = epoch(Placement::new(shape, table).unwrap(), counts.clone(), &live);
        epoch.check().unwrap();
        for layer in 0..2 {
            let hosts = Hosts::of(&epoch.placement, layer, &live);
            let members = epoch.members.len();
            let weights: Vec<f64> = weights(epoch.expected.layer(layer))
                .iter()
                .map(|w| w * members as f64)
                .collect();
            let planned = Fill::new(&weights, &hosts, 8, members);
            for (rank, load) in computed(&epoch, layer).into_iter().enumerate() {
                let plan = planned.ranks[rank];
                assert!(
                    (load - plan).abs() <= plan * 0.01 + 4.0,
                    "rank {rank}: {load} instead of {plan}"
                );
            }
        }
    }
}

#[test]
fn few_rows_are_spread_too() {
    // One expert's tokens may go to ranks 0..4 alike; ranks 4..12 have four rows each.
    let shape = Shape {
        layers: 1,
        experts: 2,
        ranks: 12,
        slots: 1,
    };
    let table = (0..12).map(|rank| u32::from(rank >= 4)).collect();
    let epoch = epoch(
        Placement::new(shape, table).unwrap(),
        vec![0, 0],
        &[true; 12],
    );
    let mut load = [0; 4];
    for rank in 4..12 {
        let choice = Choice::new(&epoch, rank);
        let to: Vec<usize> = (0..4).map(|row| choice.pick(0, 0, row).0).collect();
        to.iter().for_each(|&to| load[to] += 1);
    }
    assert!(
        load.iter().all(|&load| (6..=10).contains(&load)),
        "{load:?}"
    );
}

#[test]
fn an_expert_nobody_expected_goes_to_the_idlest() {
    let shape = Shape {
        layers: 1,
        experts: 3,
        ranks: 3,
        slots: 2,
    };
    let placement = Placement::new(shape, vec![0, 2, 1, 2, 0, 0]).unwrap();
    let epoch = epoch(placement, vec![5, 1, 0], &[true; 3]);
    assert_eq!(Choice::new(&epoch, 2).pick(0, 2, 9), (1, 1));
}
