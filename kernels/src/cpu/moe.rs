//! Mixture of experts: rows grouped by expert, two grouped products, then the weighted sum.

use std::ops::Range;
use std::sync::Mutex;

use super::buffer::Floats;
use super::elementwise;
use super::gate::Routing;
use super::gemm::{self, Finish, chunks};
use super::linear;
use super::pack::Packed;
use super::simd::Isa;
use super::tensor::{Input, Output};
use super::threads::Threads;

/// All routed experts of a layer, or one dense SwiGLU seen as a single expert.
pub struct Experts {
    /// Gate and up projection, [interleaved](super::pack::interleaved).
    pub(super) gate_up: Vec<Packed>,
    pub(super) down: Vec<Packed>,
    pub(super) inter: usize,
    pub(super) hidden: usize,
}

/// Buffers of [`moe`]; they grow to the largest batch and stay.
#[derive(Default)]
pub(super) struct Scratch {
    plan: Plan,
    /// `[place][inter]` and `[place][hidden]`.
    inner: Floats,
    outer: Floats,
}

/// A place is a (row, choice) in the order of experts.
#[derive(Default)]
struct Plan {
    /// First place of every expert, and the end.
    starts: Vec<usize>,
    /// Row of every place.
    rows: Vec<u32>,
    /// Place of every (row, choice).
    places: Vec<u32>,
    tasks: Vec<Task>,
}

struct Task {
    expert: usize,
    places: Range<usize>,
    panels: Range<usize>,
}

impl Plan {
    fn group(&mut self, routing: &Routing, experts: usize) {
        let chosen = &routing.experts[..routing.rows * routing.per_token];
        self.starts.clear();
        self.starts.resize(experts + 1, 0);
        for expert in chosen {
            self.starts[*expert as usize + 1] += 1;
        }
        for expert in 0..experts {
            self.starts[expert + 1] += self.starts[expert];
        }
        self.rows.resize(chosen.len(), 0);
        self.places.resize(chosen.len(), 0);
        for (i, expert) in chosen.iter().enumerate() {
            let place = self.starts[*expert as usize];
            self.starts[*expert as usize] += 1;
            self.rows[place] = (i / routing.per_token) as u32;
            self.places[i] = place as u32;
        }
        // Every start has moved to the end of its expert, which is the next one's start.
        self.starts.rotate_right(1);
        self.starts[0] = 0;
    }

    /// Divides the products of all chosen experts into tasks of about equal work.
    fn divide(&mut self, weights: &[Packed], threads: usize) {
        /// Even, as gate and up panels belong together.
        const PANEL_STEP: usize = 4;
        self.tasks.clear();
        let rows_of = |expert: usize| self.starts[expert]..self.starts[expert + 1];
        let cost = |expert: usize| {
            let rows = rows_of(expert).len();
            if rows == 0 {
                0
            } else {
                linear::nanos(&weights[expert], rows, weights[expert].panels())
            }
        };
        let total: usize = (0..weights.len()).map(cost).sum();
        let each = (total / (4 * threads)).max(linear::TASK_NANOS);
        for expert in (0..weights.len()).filter(|expert| !rows_of(*expert).is_empty()) {
            let panels = weights[expert].panels();
            let parts = if threads == 1 {
                1
            } else {
                (cost(expert) / each).max(1)
            };
            for panels in chunks(
                0..panels,
                panels.div_ceil(parts).next_multiple_of(PANEL_STEP),
            ) {
                self.tasks.push(Task {
                    expert,
                    places: rows_of(expert),
                    panels,
                });
            }
        }
    }
}

/// `out[r]` = sum over the row's choices, in order, of weight * down(silu(gate x) * up x).
pub(super) fn moe(
    isa: Isa,
    threads: &Threads,
    x: &Input<'_>,
    routing: &Routing,
    experts: &Experts,
    scratch: &Mutex<Scratch>,
    out: &Output,
) {
    let mut scratch = scratch
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let Scratch { plan, inner, outer } = &mut *scratch;
    let (inter, hidden) = (experts.inter, experts.hidden);
    plan.group(routing, experts.gate_up.len());
    let places = plan.rows.len();

    plan.divide(&experts.gate_up, threads.count());
    let inner = inner.at_least(places * inter);
    let inner_out = Output::new(inner, 0, inter, places);
    let gathered = Input {
        index: Some(&plan.rows),
        rows: places,
        ..*x
    };
    threads.run(plan.tasks.len(), &|i| {
        let task = &plan.tasks[i];
        let w = &experts.gate_up[task.expert];
        let finish = Finish::SiluMul { inter };
        gemm::product(
            isa,
            w,
            task.panels.clone(),
            &gathered,
            task.places.clone(),
            &inner_out,
            finish,
        );
    });

    plan.divide(&experts.down, threads.count());
    let outer = outer.at_least(places * hidden);
    let outer_out = Output::new(outer, 0, hidden, places);
    let inner = Input {
        data: inner,
        first: 0,
        stride: inter,
        index: None,
        rows: places,
    };
    threads.run(plan.tasks.len(), &|i| {
        let task = &plan.tasks[i];
        let w = &experts.down[task.expert];
        let finish = Finish::Store { bias: None };
        gemm::product(
            isa,
            w,
            task.panels.clone(),
            &inner,
            task.places.clone(),
            &outer_out,
            finish,
        );
    });

    let outer: &[f32] = outer;
    threads.for_rows(routing.rows, hidden * routing.per_token, &|row| {
        let choices = row * routing.per_token..(row + 1) * routing.per_token;
        // SAFETY: each row is one call's own.
        let out = unsafe { out.slice(row, 0, hidden) };
        out.fill(0.0);
        for (place, weight) in plan.places[choices.clone()]
            .iter()
            .zip(&routing.weights[choices])
        {
            elementwise::add_scaled(
                isa,
                out,
                *weight,
                &outer[*place as usize * hidden..][..hidden],
            );
        }
    });
}
