//! Our balancer: from the placement that is there to a better one, in as few loads as it takes.
//!
//! EPLB makes each placement from nothing, so that a small drift of loads moves nearly every expert.
//! Here each layer is searched from where it is: the hottest rank gets rid of load, by one more
//! replica of one of its experts in the slot of a redundant one, or by an exchange with a cooler
//! rank, whichever takes most off it for each expert that must be loaded ([`search`]). What it is
//! weighed by is what tokens will do: local first, then [`Choice`](crate::Choice)'s parts. EPLB's own
//! placement of the layer is the yardstick: the search goes on until it is as good. Where it gets
//! stuck before, it starts again, first with as many replicas of each expert as EPLB has, then with
//! EPLB's bins, given to the ranks that have most of them already. Beyond EPLB's balance, a load must
//! be worth it.

mod cost;
mod layer;
mod matching;
mod refine;
mod repair;
mod replicas;
mod search;
mod spread;
#[cfg(test)]
mod tests;

pub use cost::{CostModel, Verdict, worthwhile};

use crate::load::Balance;
use crate::{Loads, Placement, choice::fill::weights};
use layer::Layer;
use refine::Task;
use search::Rules;

/// What a plan starts from.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    pub current: &'a Placement,
    /// What to plan for: a window's counts, or better a [`History`](crate::load::History)'s.
    pub loads: &'a Loads,
    /// `[ranks]`: whose slots count. The others' are left as they are.
    pub live: &'a [bool],
    /// `[ranks]`: the failure domain of each (a host, a rack); those that fail together have the same
    /// number. [`own_domains`] if every rank fails by itself.
    pub domains: &'a [usize],
}

/// Each rank a failure domain of its own.
pub fn own_domains(ranks: usize) -> Vec<usize> {
    (0..ranks).collect()
}

/// How far a plan may go.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Experts that one rank may have to load, over all layers. What brings back experts that are
    /// lost, or puts one in a second failure domain, goes beyond it if it must.
    pub loads_per_rank: usize,
    /// Beyond EPLB's balance, a load must take at least this part of a rank's mean load off the
    /// layer's hottest rank.
    pub min_gain: f64,
    /// Put every expert in two failure domains where there are slots for it, also where other
    /// replicas would balance better.
    pub two_domains: bool,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            loads_per_rank: usize::MAX,
            min_gain: 0.004,
            two_domains: true,
        }
    }
}

/// A placement that could be next.
#[derive(Debug, Clone, PartialEq)]
pub struct Proposal {
    pub placement: Placement,
    pub before: Balance,
    pub after: Balance,
    /// `[ranks]`: experts that each rank must load, over all layers: those it does not have in that
    /// layer now, in whichever slot.
    pub loads_per_rank: Vec<usize>,
}

impl Proposal {
    /// Experts to load, over all ranks and layers.
    pub fn moved(&self) -> usize {
        self.loads_per_rank.iter().sum()
    }

    fn new(situation: &Situation<'_>, placement: Placement) -> Proposal {
        let Situation {
            current,
            loads,
            live,
            ..
        } = *situation;
        Proposal {
            before: Balance::predicted(loads, current, live),
            after: Balance::predicted(loads, &placement, live),
            loads_per_rank: loads_per_rank(current, &placement),
            placement,
        }
    }
}

/// `[ranks]`: experts of `next` that each rank does not have in the same layer of `current`.
///
/// # Panics
/// They are of different shapes.
pub fn loads_per_rank(current: &Placement, next: &Placement) -> Vec<usize> {
    let shape = next.shape();
    assert_eq!(current.shape(), shape, "placements of different groups");
    let mut loads = vec![0; shape.ranks];
    for layer in 0..shape.layers {
        for (rank, loads) in loads.iter_mut().enumerate() {
            *loads += layer::fetched(current.layer(layer), next.layer(layer), shape.slots, rank);
        }
    }
    loads
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("{what} are for {got}, but the placement for {expected}; give one of each")]
    Size {
        what: &'static str,
        got: usize,
        expected: usize,
    },
    #[error(
        "{live} live ranks of {slots} slots cannot hold {experts} experts; wait for a rank to return, or \
         start the group with more redundant experts"
    )]
    TooFewLive {
        live: usize,
        slots: usize,
        experts: usize,
    },
}

/// The placement to go to from `situation`: a live replica of every expert first, two failure
/// domains next, then balance. The same input gives the same plan.
///
/// # Errors
/// Sizes differ, or the live ranks are too few.
pub fn plan(situation: &Situation<'_>, limits: &Limits) -> Result<Proposal, PlanError> {
    situation.check()?;
    let shape = situation.current.shape();
    let ranks = situation.live_ranks();
    let domains: Vec<usize> = ranks.iter().map(|&r| situation.domains[r]).collect();
    let two_domains = limits.two_domains && spread::possible(&domains, shape.slots, shape.experts);
    let mut room = vec![limits.loads_per_rank; ranks.len()];
    let mut layers: Vec<Option<Vec<u32>>> = vec![None; shape.layers];
    for layer in situation.worst_first(limits) {
        let weights = weights(situation.loads.layer(layer));
        let home = situation.gather(layer, &ranks);
        let task = Task {
            weights: &weights,
            domains: &domains,
            home: &home,
            slots: shape.slots,
            rules: Rules {
                two_domains,
                room: &room,
            },
        };
        let table = refine::layer(&task, limits);
        for (rank, room) in room.iter_mut().enumerate() {
            *room = room.saturating_sub(layer::fetched(&home, &table, shape.slots, rank));
        }
        layers[layer] = Some(table);
    }
    Ok(situation.propose(&ranks, layers))
}

/// The placement with the fewest loads in which every expert has a live replica again: one load for
/// each that is lost, in the slot of a redundant replica whose loss unbalances least.
///
/// # Errors
/// Sizes differ, or the live ranks are too few.
pub fn repair(situation: &Situation<'_>) -> Result<Proposal, PlanError> {
    situation.check()?;
    let shape = situation.current.shape();
    let ranks = situation.live_ranks();
    let domains: Vec<usize> = ranks.iter().map(|&r| situation.domains[r]).collect();
    let mut layers: Vec<Option<Vec<u32>>> = vec![None; shape.layers];
    for (layer, _) in situation.current.missing(situation.live) {
        if layers[layer].is_none() {
            let weights = weights(situation.loads.layer(layer));
            let home = situation.gather(layer, &ranks);
            let mut changed = Layer::new(&weights, &domains, shape.slots, &home, home.clone());
            repair::house(&mut changed);
            layers[layer] = Some(changed.table().to_vec());
        }
    }
    Ok(situation.propose(&ranks, layers))
}

impl Situation<'_> {
    fn check(&self) -> Result<(), PlanError> {
        let shape = self.current.shape();
        for (what, got, expected) in [
            ("layers of loads", self.loads.layers(), shape.layers),
            ("experts of loads", self.loads.experts, shape.experts),
            ("live marks", self.live.len(), shape.ranks),
            ("failure domains", self.domains.len(), shape.ranks),
        ] {
            if got != expected {
                return Err(PlanError::Size {
                    what,
                    got,
                    expected,
                });
            }
        }
        let live = self.live_ranks().len();
        if live * shape.slots < shape.experts {
            return Err(PlanError::TooFewLive {
                live,
                slots: shape.slots,
                experts: shape.experts,
            });
        }
        Ok(())
    }

    fn live_ranks(&self) -> Vec<usize> {
        (0..self.live.len())
            .filter(|&rank| self.live[rank])
            .collect()
    }

    /// The slots of live ranks in a layer.
    fn gather(&self, layer: usize, ranks: &[usize]) -> Vec<u32> {
        let slots = |&rank: &usize| self.current.slots(layer, rank);
        ranks.iter().flat_map(slots).copied().collect()
    }

    /// Layers in the order in which they are planned. Only where loads are short does it matter.
    fn worst_first(&self, limits: &Limits) -> Vec<usize> {
        let mut layers: Vec<usize> = (0..self.current.shape().layers).collect();
        if limits.loads_per_rank < usize::MAX {
            let balance = Balance::predicted(self.loads, self.current, self.live);
            layers.sort_by(|&a, &b| balance.layer(a).total_cmp(&balance.layer(b)));
        }
        layers
    }

    /// With what became of the live ranks' slots in each layer that changed.
    fn propose(&self, ranks: &[usize], layers: Vec<Option<Vec<u32>>>) -> Proposal {
        let shape = self.current.shape();
        let mut table = Vec::with_capacity(shape.layers * shape.layer_slots());
        for (layer, changed) in layers.into_iter().enumerate() {
            let from = table.len();
            table.extend_from_slice(self.current.layer(layer));
            let slots = changed
                .iter()
                .flat_map(|table| table.chunks_exact(shape.slots));
            for (&rank, slots) in ranks.iter().zip(slots) {
                table[from + rank * shape.slots..][..shape.slots].copy_from_slice(slots);
            }
        }
        let placement = Placement::new(shape, table).expect("every expert is on a live rank");
        Proposal::new(self, placement)
    }
}
