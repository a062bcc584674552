//! One balancer over a row of windows, each planned from the placement before.

use std::time::{Duration, Instant};

use millrace_experts::eplb::{self, Hierarchy};
use millrace_experts::planner::{self, Limits, Situation};
use millrace_experts::{Balance, Loads, Placement, Shape};

#[derive(Clone, Copy)]
pub enum Balancer {
    /// The placement every group begins with, never changed.
    Unmoved,
    Global,
    Hierarchical(Hierarchy),
    Ours,
}

impl Balancer {
    pub fn name(self) -> &'static str {
        match self {
            Balancer::Unmoved => "initial placement",
            Balancer::Global => "EPLB global",
            Balancer::Hierarchical(_) => "EPLB hierarchical",
            Balancer::Ours => "millrace",
        }
    }

    /// The next placement.
    pub fn plan(self, current: &Placement, loads: &Loads) -> Placement {
        let shape = current.shape();
        match self {
            Balancer::Unmoved => current.clone(),
            Balancer::Global => eplb::place(loads, shape, Hierarchy::GLOBAL).expect("sizes agree"),
            Balancer::Hierarchical(hierarchy) => {
                eplb::place(loads, shape, hierarchy).expect("sizes agree")
            }
            Balancer::Ours => {
                let situation = Situation {
                    current,
                    loads,
                    live: &vec![true; shape.ranks],
                    domains: &planner::own_domains(shape.ranks),
                };
                let proposal = planner::plan(&situation, &Limits::default());
                proposal.expect("sizes agree").placement
            }
        }
    }
}

/// How a balancer did.
pub struct Score {
    /// Mean over windows of the overall balancedness under the loads that were planned for.
    pub planned: f64,
    /// That of each window.
    pub each: Vec<f64>,
    /// The same with every replica taking an even part of its expert's tokens, as EPLB assumes.
    pub even: f64,
    /// Under the loads of the window after, which is when a placement is in use.
    pub next: f64,
    /// Experts loaded for the first window's plan, which starts from the initial placement,
    pub first: usize,
    /// and for all later ones.
    pub moved: usize,
    /// Sorted.
    pub times: Vec<Duration>,
}

pub fn run(balancer: Balancer, shape: Shape, windows: &[Loads]) -> Score {
    let mut placement = Placement::initial(shape).expect("a shape that holds");
    let live = vec![true; shape.ranks];
    let mut score = Score {
        planned: 0.0,
        each: Vec::new(),
        even: 0.0,
        next: 0.0,
        first: 0,
        moved: 0,
        times: Vec::new(),
    };
    for (at, loads) in windows.iter().enumerate() {
        let begun = Instant::now();
        let next = balancer.plan(&placement, loads);
        score.times.push(begun.elapsed());
        let moved: usize = planner::loads_per_rank(&placement, &next).iter().sum();
        if at == 0 {
            score.first = moved;
        } else {
            score.moved += moved;
        }
        placement = next;
        let planned = Balance::predicted(loads, &placement, &live).overall();
        score.each.push(planned);
        score.planned += planned;
        score.even += evenly_split(loads, &placement);
        let after = windows.get(at + 1).unwrap_or(loads);
        score.next += Balance::predicted(after, &placement, &live).overall();
    }
    let count = windows.len() as f64;
    score.planned /= count;
    score.even /= count;
    score.next /= count;
    score.times.sort_unstable();
    score
}

fn evenly_split(loads: &Loads, placement: &Placement) -> f64 {
    let shape = placement.shape();
    let (mut mean, mut max) = (0.0, 0.0);
    for layer in 0..shape.layers {
        let mut replicas = vec![0.0; shape.experts];
        for &expert in placement.layer(layer) {
            replicas[expert as usize] += 1.0;
        }
        let counts = loads.layer(layer);
        let share = |&expert: &u32| counts[expert as usize] as f64 / replicas[expert as usize];
        let ranks =
            (0..shape.ranks).map(|rank| placement.slots(layer, rank).iter().map(share).sum());
        let ranks: Vec<f64> = ranks.collect();
        mean += ranks.iter().sum::<f64>() / shape.ranks as f64;
        max += ranks.into_iter().fold(0.0, f64::max);
    }
    mean / max
}
