//! One layer, from where it is to where it should be.

use super::layer::Layer;
use super::search::{self, Changes, Rules};
use super::{Limits, matching, repair, replicas, spread};
use crate::choice::fill::{Fill, Hosts};
use crate::eplb::{self, Hierarchy};

/// What a layer's plan starts from. Live ranks only.
pub(super) struct Task<'a> {
    /// `[experts]`.
    pub(super) weights: &'a [f64],
    /// `[ranks]`.
    pub(super) domains: &'a [usize],
    /// `[rank][slot]`.
    pub(super) home: &'a [u32],
    pub(super) slots: usize,
    pub(super) rules: Rules<'a>,
}

/// A place on the way, to come back to.
struct Stop {
    table: Vec<u32>,
    peak: f64,
    loads: usize,
    /// The peak is what [`Task::peak`] says.
    weighed: bool,
}

/// How far a walk is to go.
#[derive(Clone, Copy)]
struct Aim {
    /// As good as EPLB.
    enough: f64,
    /// Nothing left to find.
    goal: f64,
    /// Between the two, what a load must take off the peak.
    gain: f64,
}

/// So near the lower bound, a search has nothing left to find.
const CLOSE: f64 = 1e-3;

/// So near it, loads are even for all anyone could measure: EPLB's being nearer still is no reason to
/// move anything.
const PERFECT: f64 = 1e-4;

/// Loads that are equal but for rounding.
const SAME: f64 = 1.0 + 1e-12;

/// Steps of one search at most, for each slot. None needs as many.
const STEPS: usize = 4;

/// The layer's next `[rank][slot]`; what stays on a rank stays in its slot.
pub(super) fn layer(task: &Task<'_>, limits: &Limits) -> Vec<u32> {
    let &Task {
        weights,
        domains,
        home,
        slots,
        ref rules,
    } = task;
    let mean = weights.iter().sum::<f64>() / domains.len() as f64;
    let plain = eplb::place_layer(weights, domains.len(), slots, Hierarchy::GLOBAL);
    let target = replicas::counts(&plain, weights.len());
    let bound = mean.max(replicas::heaviest(weights, &target));
    let yardstick = task.peak(&plain) * SAME;
    let enough = yardstick.max(bound * (1.0 + PERFECT));
    let aim = Aim {
        enough,
        goal: enough.min(bound * (1.0 + CLOSE)),
        gain: mean * limits.min_gain,
    };

    let begin = || {
        let mut layer = Layer::new(weights, domains, slots, home, home.to_vec());
        repair::house(&mut layer);
        if rules.two_domains {
            spread::enforce(&mut layer);
        }
        layer
    };
    let mut way = Vec::new();
    let mut from = begin();
    if slots == 1 {
        // Only the numbers of replicas count, and how many each must have at least is known.
        replicas::adopt(&mut from, rules, &replicas::fewest(weights, yardstick));
    }
    walk(&mut from, rules, aim, &mut way);
    if !arrived(&way, aim) {
        from = begin();
        replicas::adopt(&mut from, rules, &target);
        pack(&mut from, rules, aim, &mut way);
        walk(&mut from, rules, aim, &mut way);
    }
    let mut chosen = task.choose(&mut way, aim);
    if chosen.peak > enough && !rules.two_domains {
        let table = matching::onto_ranks(&plain, home, slots, weights.len());
        let mut eplb = Layer::new(weights, domains, slots, home, table);
        if (eplb.fetched().iter().zip(rules.room)).all(|(loads, room)| loads <= room) {
            way.push(Stop {
                peak: yardstick,
                weighed: true,
                ..Stop::of(&eplb)
            });
            walk(&mut eplb, rules, aim, &mut way);
            chosen = task.choose(&mut way, aim);
        }
    }
    matching::in_place(&chosen.table, home, slots)
}

impl Task<'_> {
    /// The hottest rank's load as [`Balance`](crate::Balance) predicts it.
    fn peak(&self, table: &[u32]) -> f64 {
        let ranks = self.domains.len();
        let hosts = Hosts::new(
            self.weights.len(),
            table.chunks_exact(self.slots).enumerate(),
        );
        let fill = Fill::new(self.weights, &hosts, ranks, ranks);
        fill.ranks.into_iter().fold(0.0, f64::max)
    }

    /// The stop to go to. What brought the walk there knows its peak no better than to the last few
    /// pours, so those that would be chosen are weighed once more.
    fn choose<'w>(&self, way: &'w mut [Stop], aim: Aim) -> &'w Stop {
        loop {
            let at = choose(way, aim);
            if way[at].weighed {
                return &way[at];
            }
            way[at].weighed = true;
            way[at].peak = self.peak(&way[at].table);
        }
    }
}

fn arrived(way: &[Stop], aim: Aim) -> bool {
    way.iter().any(|stop| stop.peak <= aim.enough)
}

/// Swaps with every replica at an even part of its expert's load, as EPLB sees it. Shares that adjust
/// to each swap soon leave none that helps by itself, though two together would; fixed ones do not.
fn pack(layer: &mut Layer<'_>, rules: &Rules<'_>, aim: Aim, way: &mut Vec<Stop>) {
    layer.split_evenly();
    for _ in 0..STEPS * layer.table().len() {
        if layer.hottest().1 <= aim.enough {
            break;
        }
        if !search::step(layer, rules, Changes::Swaps, aim.goal, 0.0) {
            break;
        }
    }
    way.push(Stop::of(layer));
}

/// Steps until nothing more is worth its loads, leaving a stop after each that counts.
fn walk(layer: &mut Layer<'_>, rules: &Rules<'_>, aim: Aim, way: &mut Vec<Stop>) {
    let fine = aim.goal * 1e-6;
    layer.settle(16, fine);
    let mut settled = true;
    let mut steps = 0;
    loop {
        let peak = layer.hottest().1;
        if settled || peak <= aim.enough {
            way.push(Stop::of(layer));
        }
        if peak <= aim.goal || steps == STEPS * layer.table().len() {
            break;
        }
        let least = if peak <= aim.enough { aim.gain } else { 0.0 };
        if search::step(layer, rules, Changes::All, aim.goal, least) {
            layer.settle(1, fine);
            settled = false;
            steps += 1;
        } else if settled {
            break;
        } else {
            // Water that has not found its level yet may be all that was in the way.
            layer.settle(16, fine);
            settled = true;
        }
    }
}

impl Stop {
    fn of(layer: &Layer<'_>) -> Stop {
        Stop {
            table: layer.table().to_vec(),
            peak: layer.hottest().1,
            loads: layer.fetched().iter().sum(),
            weighed: false,
        }
    }
}

/// Of the stops that are good enough, or the lowest ones if none is, the one with the lowest peak and
/// the fewest loads, a load counted as what it must gain.
fn choose(way: &[Stop], aim: Aim) -> usize {
    let lowest = way
        .iter()
        .map(|stop| stop.peak)
        .fold(f64::INFINITY, f64::min);
    let most = lowest.max(aim.enough);
    let cost = |stop: &Stop| stop.peak + stop.loads as f64 * aim.gain;
    let worth = (0..way.len()).filter(|&at| way[at].peak <= most);
    worth
        .min_by(|&a, &b| cost(&way[a]).total_cmp(&cost(&way[b])))
        .expect("a way has a first stop")
}
