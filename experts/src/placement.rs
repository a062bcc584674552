//! Which logical expert is in which physical slot.
//!
//! A *logical expert* is one of the model's (256 a layer for V3). A *slot* is room for one expert's
//! weights on one rank; a *replica* is a logical expert in a slot. Every MoE layer of a rank has the
//! same number of slots. Layers are counted over MoE layers alone, the MTP layer's last.

use serde::{Deserialize, Serialize};

/// The sizes of a placement; fixed for a group's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Shape {
    /// MoE layers, the MTP layer included if the group drafts.
    pub layers: usize,
    /// Logical experts a layer.
    pub experts: usize,
    pub ranks: usize,
    /// Physical slots of a rank in each layer.
    pub slots: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    #[error("a group needs at least one rank, one layer and one expert, not {0:?}")]
    Empty(Shape),
    #[error("{experts} experts do not fit {ranks} ranks of {slots} slots")]
    TooFewSlots {
        experts: usize,
        ranks: usize,
        slots: usize,
    },
    #[error("{got} slots are named, but {expected} are there")]
    SlotCount { expected: usize, got: usize },
    #[error("layer {layer}, rank {rank}, slot {slot}: there is no expert {expert}")]
    UnknownExpert {
        layer: usize,
        rank: usize,
        slot: usize,
        expert: u32,
    },
    #[error("layer {layer}: expert {expert} has no slot")]
    Homeless { layer: usize, expert: usize },
}

impl Shape {
    /// Room for every expert and at least `redundant` replicas a layer besides, evenly over ranks:
    /// what the last rank would lack is rounded up.
    pub fn new(
        layers: usize,
        experts: usize,
        ranks: usize,
        redundant: usize,
    ) -> Result<Shape, PlacementError> {
        let slots = if ranks == 0 {
            0
        } else {
            (experts + redundant).div_ceil(ranks)
        };
        let shape = Shape {
            layers,
            experts,
            ranks,
            slots,
        };
        shape.check()?;
        Ok(shape)
    }

    pub fn check(&self) -> Result<(), PlacementError> {
        let &Shape {
            layers,
            experts,
            ranks,
            slots,
        } = self;
        if layers == 0 || experts == 0 || ranks == 0 {
            return Err(PlacementError::Empty(*self));
        }
        if ranks * slots < experts {
            return Err(PlacementError::TooFewSlots {
                experts,
                ranks,
                slots,
            });
        }
        Ok(())
    }

    /// Slots of one layer over all ranks.
    pub fn layer_slots(&self) -> usize {
        self.ranks * self.slots
    }
}

/// `[layer][rank][slot]` → logical expert; every expert has at least one slot in every layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct Placement {
    #[serde(flatten)]
    shape: Shape,
    table: Vec<u32>,
}

#[derive(Deserialize)]
struct Unchecked {
    #[serde(flatten)]
    shape: Shape,
    table: Vec<u32>,
}

impl TryFrom<Unchecked> for Placement {
    type Error = PlacementError;

    fn try_from(raw: Unchecked) -> Result<Placement, PlacementError> {
        Placement::new(raw.shape, raw.table)
    }
}

impl Placement {
    /// # Errors
    /// `table` is not `[layer][rank][slot]` of `shape`, names an expert that is not there, or leaves
    /// one out.
    pub fn new(shape: Shape, table: Vec<u32>) -> Result<Placement, PlacementError> {
        shape.check()?;
        let expected = shape.layers * shape.layer_slots();
        if table.len() != expected {
            return Err(PlacementError::SlotCount {
                expected,
                got: table.len(),
            });
        }
        let mut housed = vec![false; shape.experts];
        for (layer, slots) in table.chunks_exact(shape.layer_slots()).enumerate() {
            housed.fill(false);
            for (place, &expert) in slots.iter().enumerate() {
                match housed.get_mut(expert as usize) {
                    Some(housed) => *housed = true,
                    None => {
                        let (rank, slot) = (place / shape.slots, place % shape.slots);
                        return Err(PlacementError::UnknownExpert {
                            layer,
                            rank,
                            slot,
                            expert,
                        });
                    }
                }
            }
            if let Some(expert) = housed.iter().position(|housed| !housed) {
                return Err(PlacementError::Homeless { layer, expert });
            }
        }
        Ok(Placement { shape, table })
    }

    /// Where every group begins: experts in order, dealt to slot 0 of every rank, then slot 1, and so
    /// on, and from expert 0 again for what is left. Ranks can load it without asking anyone.
    pub fn initial(shape: Shape) -> Result<Placement, PlacementError> {
        shape.check()?;
        // An expert comes to the same rank again after so many slots. From there on the deal begins
        // one rank further, so that replicas of an expert are on different ranks.
        let again = shape.experts / gcd(shape.experts, shape.ranks) * shape.ranks;
        let mut layer = vec![0; shape.layer_slots()];
        for (number, expert) in (0..shape.layer_slots()).zip((0..shape.experts as u32).cycle()) {
            let (slot, rank) = (number / shape.ranks, number % shape.ranks);
            layer[(rank + number / again) % shape.ranks * shape.slots + slot] = expert;
        }
        Placement::new(shape, layer.repeat(shape.layers))
    }

    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// `[rank][slot]` of a layer.
    pub fn layer(&self, layer: usize) -> &[u32] {
        let slots = self.shape.layer_slots();
        &self.table[layer * slots..][..slots]
    }

    /// The experts of a rank's slots in a layer.
    pub fn slots(&self, layer: usize, rank: usize) -> &[u32] {
        &self.layer(layer)[rank * self.shape.slots..][..self.shape.slots]
    }

    /// `(rank, slot)` of every replica of an expert, in order.
    pub fn replicas(&self, layer: usize, expert: usize) -> impl Iterator<Item = (usize, usize)> {
        let slots = self.shape.slots;
        let of_expert = move |&(_, &e): &(usize, &u32)| e as usize == expert;
        self.layer(layer)
            .iter()
            .enumerate()
            .filter(of_expert)
            .map(move |(place, _)| (place / slots, place % slots))
    }

    /// `(layer, expert)` that no rank of `live` (`[ranks]`) holds.
    pub fn missing(&self, live: &[bool]) -> Vec<(usize, usize)> {
        let mut missing = Vec::new();
        for layer in 0..self.shape.layers {
            let mut held = vec![false; self.shape.experts];
            for (place, &expert) in self.layer(layer).iter().enumerate() {
                held[expert as usize] |= live[place / self.shape.slots];
            }
            missing.extend(
                held.iter()
                    .enumerate()
                    .filter(|(_, held)| !**held)
                    .map(|(expert, _)| (layer, expert)),
            );
        }
        missing
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_are_on_different_ranks_whatever_divides_what() {
        for (experts, ranks, slots) in [
            (256, 144, 2),
            (31, 4, 16),
            (32, 4, 16),
            (6, 4, 6),
            (3, 5, 2),
            (2, 2, 2),
        ] {
            let shape = Shape {
                layers: 1,
                experts,
                ranks,
                slots,
            };
            let placement = Placement::initial(shape).unwrap();
            for rank in 0..ranks {
                let held = placement.slots(0, rank);
                for (slot, expert) in held.iter().enumerate() {
                    let full = placement.replicas(0, *expert as usize).count() > ranks;
                    assert!(full || !held[..slot].contains(expert), "{shape:?} {held:?}");
                }
            }
        }
    }

    #[test]
    fn the_first_placement_spreads_replicas() {
        let shape = Shape::new(2, 32, 4, 4).unwrap();
        assert_eq!(shape.slots, 9);
        let placement = Placement::initial(shape).unwrap();
        for expert in 0..4 {
            let ranks: Vec<usize> = placement
                .replicas(1, expert)
                .map(|(rank, _)| rank)
                .collect();
            assert_eq!(ranks.len(), 2, "expert {expert}");
            assert_ne!(ranks[0], ranks[1], "expert {expert}");
        }
        assert_eq!(placement.missing(&[true; 4]), []);
        let lost = placement.missing(&[true, true, true, false]);
        assert!(!lost.is_empty());
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let shape = Shape::new(1, 3, 2, 0).unwrap();
        assert_eq!(shape.slots, 2);
        assert_eq!(
            Placement::new(shape, vec![0, 1, 2, 3]),
            Err(PlacementError::UnknownExpert {
                layer: 0,
                rank: 1,
                slot: 1,
                expert: 3
            })
        );
        assert_eq!(
            Placement::new(shape, vec![0, 1, 1, 0]),
            Err(PlacementError::Homeless {
                layer: 0,
                expert: 2
            })
        );
        assert_eq!(
            Placement::new(shape, vec![0, 1, 2]),
            Err(PlacementError::SlotCount {
                expected: 4,
                got: 3
            })
        );
        assert!(Shape::new(1, 3, 0, 0).is_err());
        let json = r#"{"layers":1,"experts":3,"ranks":2,"slots":2,"table":[0,1,1,0]}"#;
        assert!(
            serde_json::from_str::<Placement>(json)
                .unwrap_err()
                .to_string()
                .contains("expert 2 has no slot")
        );
    }

    #[test]
    fn what_was_written_is_read() {
        let placement = Placement::initial(Shape::new(3, 8, 2, 2).unwrap()).unwrap();
        let json = serde_json::to_string(&placement).unwrap();
        assert_eq!(serde_json::from_str::<Placement>(&json).unwrap(), placement);
    }
}
