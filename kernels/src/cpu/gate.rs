//! Which experts a row takes (DeepSeek-V2 report section 2.1.2 and 2.2; V3 report section 2.1.2).

use std::cell::RefCell;

use millrace_model::config::{GateConfig, Scoring, TopkMethod};

use super::elementwise;
use super::simd::Isa;

/// Experts and weights of every row, `per_token` a row, in order of choice.
pub struct Routing {
    pub(super) experts: Vec<u32>,
    pub(super) weights: Vec<f32>,
    pub(super) per_token: usize,
    pub(super) rows: usize,
}

impl Routing {
    pub(super) fn new(rows: usize, per_token: usize) -> Routing {
        let len = rows * per_token;
        Routing {
            experts: vec![0; len],
            weights: vec![0.0; len],
            per_token,
            rows: 0,
        }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn resize(&mut self, rows: usize, per_token: usize) {
        assert_eq!(self.per_token, per_token, "experts a token");
        assert!(
            rows * per_token <= self.experts.len(),
            "{rows} rows in a routing for fewer"
        );
        self.rows = rows;
    }

    pub(super) fn rows_mut(&mut self) -> impl Iterator<Item = (&mut [u32], &mut [f32])> {
        let experts = self.experts.chunks_exact_mut(self.per_token);
        experts
            .zip(self.weights.chunks_exact_mut(self.per_token))
            .take(self.rows)
    }

    /// Expert and weight, row by row in order of choice.
    pub fn choices(&self) -> impl ExactSizeIterator<Item = (u32, f32)> {
        let choices = self
            .experts
            .iter()
            .copied()
            .zip(self.weights.iter().copied());
        choices.take(self.rows * self.per_token)
    }
}

/// How often each expert was chosen, `[layers][experts]`.
pub struct Tally {
    counts: Vec<u64>,
    experts: usize,
}

impl Tally {
    pub(super) fn new(layers: usize, experts: usize) -> Tally {
        Tally {
            counts: vec![0; layers * experts],
            experts,
        }
    }

    pub(super) fn count(&mut self, layer: usize, routing: &Routing) {
        let counts = &mut self.counts[layer * self.experts..][..self.experts];
        for (expert, _) in routing.choices() {
            counts[expert as usize] += 1;
        }
    }

    pub(super) fn take(&mut self, sums: &mut [u64]) {
        assert_eq!(sums.len(), self.counts.len(), "one sum a layer and expert");
        for (sum, count) in sums.iter_mut().zip(&mut self.counts) {
            *sum += std::mem::take(count);
        }
    }
}

#[derive(Default)]
struct Scratch {
    /// Affinities: what weights are made of.
    scores: Vec<f32>,
    /// What the choice is made by: biased, and -inf where it is not allowed.
    choice: Vec<f32>,
    groups: Groups,
    /// Values of what is chosen so far.
    best: Vec<f32>,
}

#[derive(Default)]
struct Groups {
    scores: Vec<f32>,
    kept: Vec<u32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Chooses `experts.len()` experts of one row of router logits. Ties go to the lower index.
pub(super) fn route(
    isa: Isa,
    logits: &[f32],
    gate: &GateConfig,
    bias: Option<&[f32]>,
    experts: &mut [u32],
    weights: &mut [f32],
) {
    assert!(
        experts.len() <= logits.len(),
        "more experts a token than there are"
    );
    assert!(
        bias.is_none_or(|bias| bias.len() == logits.len()),
        "one bias an expert"
    );
    SCRATCH.with_borrow_mut(|scratch| {
        let Scratch {
            scores,
            choice,
            groups,
            best,
        } = scratch;
        scores.clear();
        scores.extend_from_slice(logits);
        match gate.scoring {
            Scoring::Softmax => elementwise::softmax(isa, scores),
            Scoring::Sigmoid => elementwise::sigmoid(isa, scores),
        }
        choice.clear();
        choice.extend_from_slice(scores);
        if let Some(bias) = bias {
            elementwise::add(choice, bias);
        }
        let group_score: Option<fn(&[f32]) -> f32> = match gate.topk_method {
            TopkMethod::Greedy => None,
            TopkMethod::GroupLimitedGreedy => Some(|group| top_two(group).0),
            TopkMethod::NoauxTc => Some(|group| {
                let (first, second) = top_two(group);
                if group.len() > 1 {
                    first + second
                } else {
                    first
                }
            }),
        };
        if let Some(group_score) = group_score.filter(|_| gate.topk_group < gate.n_group) {
            limit_groups(choice, gate, group_score, groups, best);
        }
        largest(choice, experts, best);
        let mut sum = 0.0;
        for (expert, weight) in experts.iter().zip(weights.iter_mut()) {
            *weight = scores[*expert as usize];
            sum += *weight;
        }
        let divisor = if gate.norm_topk_prob {
            sum + 1e-20
        } else {
            1.0
        };
        for weight in weights {
            *weight = *weight / divisor * gate.routed_scaling_factor;
        }
    })
}

/// Leaves only the `topk_group` groups with the largest score.
fn limit_groups(
    choice: &mut [f32],
    gate: &GateConfig,
    score: fn(&[f32]) -> f32,
    groups: &mut Groups,
    best: &mut Vec<f32>,
) {
    assert_eq!(
        choice.len() % gate.n_group,
        0,
        "experts do not divide into groups"
    );
    let size = choice.len() / gate.n_group;
    groups.scores.clear();
    groups.scores.extend(choice.chunks_exact(size).map(score));
    groups.kept.resize(gate.topk_group, 0);
    largest(&groups.scores, &mut groups.kept, best);
    for (group, members) in choice.chunks_exact_mut(size).enumerate() {
        if !groups.kept.contains(&(group as u32)) {
            members.fill(f32::NEG_INFINITY);
        }
    }
}

/// Indices of the largest values, falling; of equal values the lower index comes first. Values that
/// cannot be compared (NaN) are never chosen; where too few others are, index 0 fills up, and what
/// is computed from it is NaN as well.
fn largest(values: &[f32], chosen: &mut [u32], best: &mut Vec<f32>) {
    chosen.fill(0);
    best.clear();
    best.resize(chosen.len(), f32::NEG_INFINITY);
    let Some(last) = chosen.len().checked_sub(1) else {
        return;
    };
    for (i, &value) in values.iter().enumerate() {
        // Most values are no larger than the smallest one held.
        if value > best[last] {
            let mut place = last;
            while place > 0 && value > best[place - 1] {
                (best[place], chosen[place]) = (best[place - 1], chosen[place - 1]);
                place -= 1;
            }
            (best[place], chosen[place]) = (value, i as u32);
        }
    }
}

fn top_two(values: &[f32]) -> (f32, f32) {
    values.iter().fold(
        (f32::NEG_INFINITY, f32::NEG_INFINITY),
        |(first, second), &value| {
            if value > first {
                (value, first)
            } else {
                (first, second.max(value))
            }
        },
    )
}
