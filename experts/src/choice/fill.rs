//! How the load of experts spreads over the ranks that hold them.
//!
//! A rank keeps the tokens of its own requests for an expert it holds (local first); the rest of an
//! expert's tokens may go to any rank that holds it. Of all ways to spread that rest, this finds the
//! one whose ranks are loaded most evenly: the least sum of squares, which is also the least maximum.
//! The sum of squares is convex and falls with every expert that is *poured* onto its hosts anew
//! while the others stand still, so pouring in turn leads there.
//!
//! Only `+ - * /` on `f64` in a fixed order: every rank comes to the same bits.

use crate::Placement;

/// Sweeps over a layer's experts at most. What remains after them is far below what sampling noise
/// does to a window of counts.
const SWEEPS: usize = 128;

/// A sweep that moves less than this part of the mean load of a rank is the last.
const SETTLED: f64 = 1e-7;

/// Which live ranks hold each expert of a layer.
pub(crate) struct Hosts {
    /// `[experts + 1]`: where an expert's hosts begin.
    starts: Vec<usize>,
    /// The host and its first slot with the expert: a second slot on one rank takes no load off it.
    places: Vec<(usize, usize)>,
}

impl Hosts {
    pub(crate) fn of(placement: &Placement, layer: usize, live: &[bool]) -> Hosts {
        let shape = placement.shape();
        let slots = placement.layer(layer).chunks_exact(shape.slots);
        let live = slots.enumerate().filter(|&(rank, _)| live[rank]);
        Hosts::new(shape.experts, live)
    }

    /// From the slots of each live rank, in order of rank.
    pub(crate) fn new<'a>(
        experts: usize,
        live: impl Iterator<Item = (usize, &'a [u32])> + Clone,
    ) -> Hosts {
        // Counted, then filled in: this runs for every layer of every plan.
        let mut starts = vec![0; experts + 1];
        let mut last = vec![usize::MAX; experts];
        for (rank, slots) in live.clone() {
            for &expert in slots {
                let first = last[expert as usize] != rank;
                last[expert as usize] = rank;
                starts[expert as usize + 1] += usize::from(first);
            }
        }
        for expert in 0..experts {
            starts[expert + 1] += starts[expert];
        }
        let mut next = starts.clone();
        let mut places = vec![(0, 0); starts[experts]];
        last.fill(usize::MAX);
        for (rank, slots) in live {
            for (slot, &expert) in slots.iter().enumerate() {
                if last[expert as usize] != rank {
                    last[expert as usize] = rank;
                    places[next[expert as usize]] = (rank, slot);
                    next[expert as usize] += 1;
                }
            }
        }
        Hosts { starts, places }
    }

    /// `(rank, slot)` of an expert's hosts, by rank.
    pub(crate) fn places(&self, expert: usize) -> &[(usize, usize)] {
        &self.places[self.range(expert)]
    }

    fn range(&self, expert: usize) -> std::ops::Range<usize> {
        self.starts[expert]..self.starts[expert + 1]
    }
}

/// What each replica and each rank of a layer gets.
pub(crate) struct Fill {
    /// As `Hosts::places`: the load of each replica, local tokens included.
    shares: Vec<f64>,
    /// `[ranks]`.
    pub(crate) ranks: Vec<f64>,
}

impl Fill {
    /// Spreads `weights` (`[experts]`), which come from `members` ranks evenly. An expert without a
    /// host is left out.
    pub(crate) fn new(weights: &[f64], hosts: &Hosts, ranks: usize, members: usize) -> Fill {
        let mut fill = Fill {
            shares: vec![0.0; hosts.places.len()],
            ranks: vec![0.0; ranks],
        };
        for (expert, &weight) in weights.iter().enumerate() {
            let range = hosts.range(expert);
            let each = weight / range.len() as f64; // never read if there is none
            for place in range {
                fill.shares[place] = each;
                fill.ranks[hosts.places[place].0] += each;
            }
        }
        let settled = weights.iter().sum::<f64>() / members as f64 * SETTLED;
        // The others have one way only: all to one, or every rank its own.
        let choosy = |&expert: &usize| (2..members).contains(&hosts.range(expert).len());
        let choosy: Vec<usize> = (0..weights.len()).filter(choosy).collect();
        let mut base = Vec::new();
        for _ in 0..SWEEPS {
            let mut moved = 0.0f64;
            for &expert in &choosy {
                let (weight, range) = (weights[expert], hosts.range(expert));
                let own = weight / members as f64;
                base.clear();
                base.extend(
                    range
                        .clone()
                        .map(|at| fill.ranks[hosts.places[at].0] - fill.shares[at] + own),
                );
                let level = level(&mut base, weight - own * range.len() as f64);
                for at in range {
                    let rank = &mut fill.ranks[hosts.places[at].0];
                    let rest = *rank - fill.shares[at];
                    let share = own.max(level - rest);
                    moved = moved.max((share - fill.shares[at]).abs());
                    fill.shares[at] = share;
                    *rank = rest + share;
                }
            }
            if moved <= settled {
                break;
            }
        }
        fill
    }

    /// An expert's load by host, as [`Hosts::places`] names them.
    pub(crate) fn shares<'a>(&'a self, hosts: &Hosts, expert: usize) -> &'a [f64] {
        &self.shares[hosts.range(expert)]
    }
}

/// How high `amount` of water stands over the ground `base`: `Σ max(0, level − base) = amount`.
/// May sort `base`.
pub(crate) fn level(base: &mut [f64], amount: f64) -> f64 {
    if let &mut [a, b] = base {
        // By far the most common.
        let (low, high) = if a < b { (a, b) } else { (b, a) };
        return (low + amount).min((low + high + amount) / 2.0);
    }
    base.sort_unstable_by(f64::total_cmp);
    let mut sum = amount;
    let mut level = f64::INFINITY;
    for (under, &ground) in base.iter().enumerate() {
        if under > 0 && ground >= level {
            break;
        }
        sum += ground;
        level = sum / (under + 1) as f64;
    }
    level
}

/// A layer's counts as weights: a layer nobody has counted yet is taken as evenly loaded.
pub(crate) fn weights(counts: &[u64]) -> Vec<f64> {
    if counts.iter().all(|&count| count == 0) {
        return vec![1.0; counts.len()];
    }
    counts.iter().map(|&count| count as f64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Shape;

    #[test]
    fn water_finds_its_level() {
        assert_eq!(level(&mut [3.0, 1.0, 9.0], 4.0), 4.0);
        assert_eq!(level(&mut [5.0], 2.0), 7.0);
        assert_eq!(level(&mut [1.0, 5.0], 2.0), 3.0);
        assert_eq!(level(&mut [2.0, 2.0], 0.0), 2.0);
    }

    #[test]
    fn load_flows_through_a_chain_of_replicas() {
        // Expert 0 on ranks 0 and 1, expert 1 on ranks 1 and 2: only through rank 1 can rank 2 help.
        let shape = Shape {
            layers: 1,
            experts: 4,
            ranks: 4,
            slots: 2,
        };
        let placement = Placement::new(shape, vec![0, 2, 0, 1, 1, 1, 3, 3]).unwrap();
        let hosts = Hosts::of(&placement, 0, &[true; 4]);
        assert_eq!(hosts.places(1), [(1, 1), (2, 0)]);
        let fill = Fill::new(&[8.0, 8.0, 2.0, 0.0], &hosts, 4, 4);
        for rank in 0..3 {
            assert!((fill.ranks[rank] - 6.0).abs() < 1e-6, "{:?}", fill.ranks);
        }
        assert_eq!(fill.ranks[3], 0.0);
        assert!((fill.shares(&hosts, 1)[0] - 2.0).abs() < 1e-6);
    }
}
