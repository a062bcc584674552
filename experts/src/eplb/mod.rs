//! DeepSeek's expert-parallel load balancer (EPLB), after its published description: the yardstick
//! [`planner`](crate::planner) is measured by, and what it falls back on.
//!
//! Each layer by itself: groups of experts are packed onto nodes, experts replicated within their
//! node, replicas packed onto the node's ranks. With one group and one node the same steps are the
//! global policy.

mod greedy;

use crate::{Loads, Placement, PlacementError, Shape};
use greedy::{pack, replicate};

/// What the hierarchical policy keeps together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hierarchy {
    /// Groups the gate chooses among (8 for V3): neighbours of the same size, in order of expert.
    pub groups: usize,
    /// Ranks `0..ranks / nodes` are the first node, and so on.
    pub nodes: usize,
}

impl Hierarchy {
    /// Everything in one: the global policy.
    pub const GLOBAL: Hierarchy = Hierarchy {
        groups: 1,
        nodes: 1,
    };
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EplbError {
    #[error(
        "{experts} experts in {groups} groups on {ranks} ranks in {nodes} nodes: nodes and groups must \
         be of one size; use the global policy"
    )]
    Uneven {
        experts: usize,
        groups: usize,
        ranks: usize,
        nodes: usize,
    },
    #[error("loads of {got:?} layers and experts for a placement of {expected:?}")]
    Loads {
        got: (usize, usize),
        expected: (usize, usize),
    },
    #[error(transparent)]
    Placement(#[from] PlacementError),
}

/// EPLB's placement for `loads`. Falls back to the global policy if groups do not divide over nodes,
/// as the original does.
///
/// # Errors
/// Sizes that do not go with each other.
pub fn place(loads: &Loads, shape: Shape, hierarchy: Hierarchy) -> Result<Placement, EplbError> {
    shape.check()?;
    let (got, expected) = (
        (loads.layers(), loads.experts),
        (shape.layers, shape.experts),
    );
    if got != expected {
        return Err(EplbError::Loads { got, expected });
    }
    let Hierarchy { groups, nodes } = hierarchy;
    let uneven = |whole: usize, parts: usize| parts == 0 || !whole.is_multiple_of(parts);
    if uneven(shape.experts, groups) || uneven(shape.ranks, nodes) {
        return Err(EplbError::Uneven {
            experts: shape.experts,
            groups,
            ranks: shape.ranks,
            nodes,
        });
    }
    let hierarchy = if groups.is_multiple_of(nodes) {
        hierarchy
    } else {
        Hierarchy::GLOBAL
    };
    let mut table = Vec::with_capacity(shape.layers * shape.layer_slots());
    for layer in 0..shape.layers {
        let weights: Vec<f64> = loads.layer(layer).iter().map(|&c| c as f64).collect();
        table.extend(place_layer(&weights, shape.ranks, shape.slots, hierarchy));
    }
    Ok(Placement::new(shape, table)?)
}

/// One layer: `[rank][slot]`. The sizes divide, and there are slots enough.
pub(crate) fn place_layer(
    weights: &[f64],
    ranks: usize,
    slots: usize,
    Hierarchy { groups, nodes }: Hierarchy,
) -> Vec<u32> {
    let size = weights.len() / groups;
    let of_group: Vec<f64> = weights.chunks_exact(size).map(|g| g.iter().sum()).collect();
    let mut table = Vec::with_capacity(ranks * slots);
    for groups in pack(&of_group, nodes, groups / nodes) {
        let experts: Vec<usize> = groups
            .iter()
            .flat_map(|&group| group * size..(group + 1) * size)
            .collect();
        let local: Vec<f64> = experts.iter().map(|&expert| weights[expert]).collect();
        let ranks = ranks / nodes;
        let (replicas, shares) = replicate(&local, ranks * slots);
        for rank in pack(&shares, ranks, slots) {
            table.extend(
                rank.iter()
                    .map(|&replica| experts[replicas[replica]] as u32),
            );
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loads(experts: usize, counts: &[u64]) -> Loads {
        Loads {
            experts,
            counts: counts.to_vec(),
        }
    }

    #[test]
    fn global_by_hand() {
        // 6 slots for 4 experts: 90 becomes 45+45, then 60 becomes 30+30. Heaviest first onto the
        // lightest: 45|0, 45|1, 40|0 makes 85, 30|1 makes 75, 30|1 makes 105 and is full, 10|0.
        let shape = Shape {
            layers: 1,
            experts: 4,
            ranks: 2,
            slots: 3,
        };
        let placed = place(&loads(4, &[90, 10, 40, 60]), shape, Hierarchy::GLOBAL).unwrap();
        assert_eq!(placed.slots(0, 0), [0, 2, 1]);
        assert_eq!(placed.slots(0, 1), [0, 3, 3]);
    }

    #[test]
    fn hierarchical_by_hand() {
        // Groups weigh 50, 20, 40, 10: nodes get {0, 3} and {2, 1}. Each node has 4 experts and 6
        // slots on 2 ranks.
        let counts = [30, 20, 15, 5, 24, 16, 6, 4];
        let shape = Shape {
            layers: 1,
            experts: 8,
            ranks: 4,
            slots: 3,
        };
        let hierarchy = Hierarchy {
            groups: 4,
            nodes: 2,
        };
        let placed = place(&loads(8, &counts), shape, hierarchy).unwrap();
        // Node 0, experts 0 1 6 7 of 30 20 6 4: 15 15 10 10 6 4.
        assert_eq!(placed.slots(0, 0), [0, 1, 6]);
        assert_eq!(placed.slots(0, 1), [0, 1, 7]);
        // Node 1, experts 4 5 2 3 of 24 16 15 5: 16 15 12 12 5 after one, and 8 8 in 16's place
        // after two: 15 12 12 8 8 5.
        assert_eq!(placed.slots(0, 2), [2, 5, 5]);
        assert_eq!(placed.slots(0, 3), [4, 4, 3]);
    }

    #[test]
    fn groups_that_do_not_divide_are_placed_globally() {
        let counts = loads(6, &[9, 8, 7, 6, 5, 4]);
        let shape = Shape::new(1, 6, 2, 2).unwrap();
        let hierarchy = Hierarchy {
            groups: 3,
            nodes: 2,
        };
        assert_eq!(
            place(&counts, shape, hierarchy),
            place(&counts, shape, Hierarchy::GLOBAL)
        );
        let uneven = Hierarchy {
            groups: 4,
            nodes: 2,
        };
        let error = place(&counts, shape, uneven).unwrap_err();
        assert!(error.to_string().contains("use the global policy"));
        assert!(matches!(
            place(&Loads::zero(2, 6), shape, Hierarchy::GLOBAL),
            Err(EplbError::Loads { .. })
        ));
    }

    #[test]
    fn v3_sizes_and_no_load_at_all() {
        for (ranks, redundant) in [(32, 32), (144, 32), (320, 64)] {
            let shape = Shape::new(2, 256, ranks, redundant).unwrap();
            for hierarchy in [
                Hierarchy::GLOBAL,
                Hierarchy {
                    groups: 8,
                    nodes: 8,
                },
            ] {
                place(&Loads::zero(2, 256), shape, hierarchy).unwrap();
            }
        }
    }
}
