//! Balancedness: mean over max load of the ranks.

use crate::choice::fill::{Fill, Hosts, weights};
use crate::{Loads, Placement};

/// How evenly a group's live ranks are loaded, by layer. 1 is perfect, 1 / ranks the worst.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Balance {
    layers: Vec<Layer>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Layer {
    mean: f64,
    max: f64,
}

impl Balance {
    /// From the rows each member computed: `[member][layer]`.
    pub fn measured(computed: &[&[u64]]) -> Balance {
        let layers = computed.iter().map(|rank| rank.len()).min().unwrap_or(0);
        let layer = |layer| Layer::of(computed.iter().map(|rank| rank[layer] as f64));
        Balance {
            layers: (0..layers).map(layer).collect(),
        }
    }

    /// What [`Choice`](crate::Choice) would make of `loads` over the ranks that are `live`
    /// (`[ranks]`), if every rank has its even part of the requests. Experts without a live replica
    /// are left out.
    pub fn predicted(loads: &Loads, placement: &Placement, live: &[bool]) -> Balance {
        let shape = placement.shape();
        let members = live.iter().filter(|&&live| live).count();
        let layer = |layer| {
            let hosts = Hosts::of(placement, layer, live);
            let weights = weights(loads.layer(layer));
            let fill = Fill::new(&weights, &hosts, shape.ranks, members);
            let of_live = fill.ranks.iter().zip(live).filter(|(_, live)| **live);
            Layer::of(of_live.map(|(load, _)| *load))
        };
        Balance {
            layers: (0..shape.layers).map(layer).collect(),
        }
    }

    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Of one layer. One that computed nothing counts as even.
    pub fn layer(&self, layer: usize) -> f64 {
        let Layer { mean, max } = self.layers[layer];
        if max > 0.0 { mean / max } else { 1.0 }
    }

    /// Sum of the layers' means over the sum of their maxima. Ranks wait for the slowest in every
    /// layer, so a step's time goes with the sum of maxima, and this is the part of it in which
    /// ranks are busy. (The mean of [`layer`](Self::layer) would count a layer that is bad in a small
    /// thing as much as one that is bad in a large one; loads summed over layers first would hide
    /// that the slowest rank is another one in each.)
    pub fn overall(&self) -> f64 {
        let mean: f64 = self.layers.iter().map(|layer| layer.mean).sum();
        let max: f64 = self.layers.iter().map(|layer| layer.max).sum();
        if max > 0.0 { mean / max } else { 1.0 }
    }
}

impl Layer {
    fn of(loads: impl Iterator<Item = f64>) -> Layer {
        let (mut sum, mut ranks, mut max) = (0.0, 0, 0.0f64);
        for load in loads {
            sum += load;
            ranks += 1;
            max = max.max(load);
        }
        Layer {
            mean: sum / f64::from(ranks.max(1)),
            max,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Shape;

    #[test]
    fn a_layers_time_is_its_slowest_ranks() {
        let balance = Balance::measured(&[&[4, 0, 10], &[8, 0, 30]]);
        assert_eq!(balance.layer(0), 0.75);
        assert_eq!(balance.layer(1), 1.0);
        assert_eq!(balance.overall(), 26.0 / 38.0);
        assert_eq!(Balance::measured(&[]).overall(), 1.0);
    }

    #[test]
    fn predicted_as_tokens_will_choose() {
        // Two of four ranks share the hot expert.
        let shape = Shape {
            layers: 1,
            experts: 3,
            ranks: 4,
            slots: 1,
        };
        let placement = Placement::new(shape, vec![0, 1, 0, 2]).unwrap();
        let loads = Loads {
            experts: 3,
            counts: vec![80, 30, 30],
        };
        let all = Balance::predicted(&loads, &placement, &[true; 4]);
        assert!((all.layer(0) - 35.0 / 40.0).abs() < 1e-9);
        let fewer = Balance::predicted(&loads, &placement, &[false, true, true, true]);
        assert!((fewer.overall() - 140.0 / 3.0 / 80.0).abs() < 1e-9);
    }
}
