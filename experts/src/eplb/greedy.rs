//! The two greedy steps of EPLB.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// The heaviest, then the first, is the greatest in a heap.
#[derive(PartialEq)]
struct Heaviest(f64, usize);

impl Eq for Heaviest {}

impl PartialOrd for Heaviest {
    fn partial_cmp(&self, other: &Heaviest) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Heaviest {
    fn cmp(&self, other: &Heaviest) -> Ordering {
        self.0.total_cmp(&other.0).then(other.1.cmp(&self.1))
    }
}

/// Gives each expert one replica, then one more again and again to the one whose replicas are
/// heaviest, up to `slots`. The expert and the weight of each replica.
pub(super) fn replicate(weights: &[f64], slots: usize) -> (Vec<usize>, Vec<f64>) {
    let mut replicas: Vec<usize> = (0..weights.len()).collect();
    let mut counts = vec![1.0; weights.len()];
    let mut heap: BinaryHeap<_> = weights
        .iter()
        .enumerate()
        .map(|(expert, &weight)| Heaviest(weight, expert))
        .collect();
    while replicas.len() < slots {
        let Some(Heaviest(_, expert)) = heap.pop() else {
            break;
        };
        replicas.push(expert);
        counts[expert] += 1.0;
        heap.push(Heaviest(weights[expert] / counts[expert], expert));
    }
    let shares = replicas
        .iter()
        .map(|&expert| weights[expert] / counts[expert])
        .collect();
    (replicas, shares)
}

/// Packs items, heaviest first, onto the lightest pack that has room; `packs` of `room` each hold all
/// of them. The items of each pack.
pub(super) fn pack(weights: &[f64], packs: usize, room: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]));
    let mut packed = vec![Vec::with_capacity(room); packs];
    // Negative weights: the lightest is the heap's greatest.
    let mut heap: BinaryHeap<_> = (0..packs).map(|pack| Heaviest(0.0, pack)).collect();
    for item in order {
        let Some(Heaviest(weight, pack)) = heap.pop() else {
            break;
        };
        packed[pack].push(item);
        if packed[pack].len() < room {
            heap.push(Heaviest(weight - weights[item], pack));
        }
    }
    packed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_heaviest_is_halved_first() {
        let (replicas, shares) = replicate(&[9.0, 30.0, 12.0], 6);
        assert_eq!(replicas, [0, 1, 2, 1, 1, 2]);
        assert_eq!(shares, [9.0, 10.0, 6.0, 10.0, 10.0, 6.0]);
    }

    #[test]
    fn packs_are_full_and_even() {
        assert_eq!(
            pack(&[1.0, 7.0, 6.0, 2.0, 3.0, 3.0], 3, 2),
            [vec![1, 0], vec![2, 3], vec![4, 5]]
        );
        assert_eq!(pack(&[4.0, 1.0, 1.0, 0.0], 2, 2), [vec![0, 3], vec![1, 2]]);
        assert_eq!(pack(&[5.0], 1, 1), [vec![0]]);
    }
}
