//! A placement for those who are left.

use crate::{Loads, Placement};

/// `live` ranks (`[ranks]`) do not have room for every expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{ranks} ranks with {slots} slots are left for {experts} experts: start more ranks")]
pub struct Shortage {
    pub ranks: usize,
    pub slots: usize,
    pub experts: usize,
}

/// `placement` with every expert on a live rank. Experts that have none take slots of experts that
/// have several, heaviest first, where it costs the least: the slot with the smallest share of load.
///
/// # Errors
/// There are fewer slots on live ranks than experts.
pub(super) fn repair(
    placement: &Placement,
    live: &[bool],
    expected: &Loads,
) -> Result<Placement, Shortage> {
    let shape = placement.shape();
    let ranks: Vec<usize> = (0..shape.ranks).filter(|&rank| live[rank]).collect();
    if ranks.len() * shape.slots < shape.experts {
        return Err(Shortage {
            ranks: ranks.len(),
            slots: ranks.len() * shape.slots,
            experts: shape.experts,
        });
    }
    let mut table = Vec::with_capacity(shape.layers * shape.layer_slots());
    for layer in 0..shape.layers {
        let start = table.len();
        table.extend_from_slice(placement.layer(layer));
        repair_layer(
            &mut table[start..],
            shape.slots,
            &ranks,
            expected.layer(layer),
        );
    }
    Ok(Placement::new(shape, table)
        .expect("only replicas of experts that have others were replaced"))
}

fn repair_layer(layer: &mut [u32], slots: usize, ranks: &[usize], load: &[u64]) {
    let mut replicas = vec![0u64; load.len()];
    for &rank in ranks {
        for &expert in &layer[rank * slots..][..slots] {
            replicas[expert as usize] += 1;
        }
    }
    let mut missing: Vec<usize> = (0..load.len()).filter(|&e| replicas[e] == 0).collect();
    missing.sort_by_key(|&expert| std::cmp::Reverse(load[expert]));
    let mut taken = vec![0; layer.len() / slots];
    for expert in missing {
        let places = ranks
            .iter()
            .flat_map(|&rank| rank * slots..(rank + 1) * slots);
        let spare = places.filter(|&place| replicas[layer[place] as usize] > 1);
        let place = spare
            .min_by_key(|&place| {
                let held = layer[place] as usize;
                (load[held] / replicas[held], taken[place / slots], place)
            })
            .expect("there are as many live slots as experts");
        replicas[layer[place] as usize] -= 1;
        replicas[expert] = 1;
        taken[place / slots] += 1;
        layer[place] = expert as u32;
    }
}
