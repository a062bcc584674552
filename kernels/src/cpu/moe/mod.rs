//! Mixture of experts: rows grouped by slot, two grouped products, then the weighted sum.
//!
//! A rank on its own does all of it at once ([`moe`]). In a group the products ([`expert_rows`]) are
//! made where the experts are and the sum ([`combine`]) where the rows come from. Both ways run the
//! same code over the same weights, so a row is the same bit for bit.

mod expert;
mod plan;

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::buffer::Floats;
use super::elementwise;
use super::gate::Routing;
use super::gemm::{self, Finish};
use super::simd::Isa;
use super::tensor::{Input, Output};
use super::threads::Threads;
use crate::Work;
use plan::Plan;

pub use expert::{Expert, Experts};

/// What a product is computed with.
#[derive(Clone, Copy)]
pub(super) struct Device<'a> {
    pub isa: Isa,
    pub threads: &'a Threads,
    pub scratch: &'a Mutex<Scratch>,
}

/// Buffers of products; they grow to the largest batch and stay.
#[derive(Default)]
pub(super) struct Scratch {
    plan: Plan,
    /// `[place][inter]` and `[place][hidden]`.
    inner: Floats,
    outer: Floats,
}

/// `out[r]` = sum over the row's choices, in order, of weight * down(silu(gate x) * up x).
pub(super) fn moe(
    device: Device<'_>,
    x: &Input<'_>,
    routing: &Routing,
    experts: &Experts,
    out: &Output,
) {
    let chosen = &routing.experts[..routing.rows * routing.per_token];
    let work = chosen.iter().enumerate().map(|(i, expert)| Work {
        row: (i / routing.per_token) as u32,
        slot: *expert,
    });
    let scratch = products(device, x, work, experts);
    let Scratch { plan, outer, .. } = &*scratch;
    combine(device, outer, &plan.places, routing, experts.hidden, out);
}

/// `out[i]` = down(silu(gate x) * up x) of row and slot `work[i]`.
pub(super) fn expert_rows(
    device: Device<'_>,
    x: &Input<'_>,
    work: &[Work],
    experts: &Experts,
    out: &Output,
) {
    let scratch = products(device, x, work.iter().copied(), experts);
    let hidden = experts.hidden;
    let Scratch { plan, outer, .. } = &*scratch;
    device.threads.for_rows(work.len(), hidden, &|i| {
        // SAFETY: each row is one call's own.
        let out = unsafe { out.slice(i, 0, hidden) };
        out.copy_from_slice(&outer[plan.places[i] as usize * hidden..][..hidden]);
    });
}

/// `out[r]` = sum over the row's choices, in order, of weight * `products[place]` (rows of `hidden`).
pub(super) fn combine(
    device: Device<'_>,
    products: &[f32],
    places: &[u32],
    routing: &Routing,
    hidden: usize,
    out: &Output,
) {
    let per_token = routing.per_token;
    device
        .threads
        .for_rows(routing.rows, hidden * per_token, &|row| {
            let choices = row * per_token..(row + 1) * per_token;
            // SAFETY: each row is one call's own.
            let out = unsafe { out.slice(row, 0, hidden) };
            out.fill(0.0);
            for (place, weight) in places[choices.clone()]
                .iter()
                .zip(&routing.weights[choices])
            {
                let product = &products[*place as usize * hidden..][..hidden];
                elementwise::add_scaled(device.isa, out, *weight, product);
            }
        });
}

/// Computes all of `work`, in the order of places of the plan that it makes.
fn products<'a>(
    device: Device<'a>,
    x: &Input<'_>,
    work: impl ExactSizeIterator<Item = Work> + Clone,
    experts: &Experts,
) -> MutexGuard<'a, Scratch> {
    let mut guard = device
        .scratch
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let Scratch { plan, inner, outer } = &mut *guard;
    let Device { isa, threads, .. } = device;
    let (inter, hidden) = (experts.inter, experts.hidden);
    plan.group(work, experts.slots.len());
    let places = plan.rows.len();

    plan.divide(|slot| &experts.slots[slot].gate_up, threads.count());
    let inner = inner.at_least(places * inter);
    let inner_out = Output::new(inner, 0, inter, places);
    let gathered = Input {
        index: Some(&plan.rows),
        rows: places,
        ..*x
    };
    threads.run(plan.tasks.len(), &|i| {
        let task = &plan.tasks[i];
        gemm::product(
            isa,
            &experts.slots[task.slot].gate_up,
            task.panels.clone(),
            &gathered,
            task.places.clone(),
            &inner_out,
            Finish::SiluMul { inter },
        );
    });

    plan.divide(|slot| &experts.slots[slot].down, threads.count());
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
        gemm::product(
            isa,
            &experts.slots[task.slot].down,
            task.panels.clone(),
            &inner,
            task.places.clone(),
            &outer_out,
            Finish::Store { bias: None },
        );
    });
    guard
}
