//! `out = x W^T` over packed weights: the one matrix product under every projection.
//!
//! An output is one chain: for each block of inputs (128, or a scale block) a partial sum of fused
//! multiply-adds in input order, then `out += partial * scale`. Nothing else enters it, so it is the
//! same bits beside whichever other rows, and however the loops around it are cut.
//!
//! Activations are read where they are. Weights come from memory once a chunk of rows and then stay
//! in the second-level cache while the chunk's rows pass over them, [`MAX_ROWS`] at a time.

mod kernel;
mod weights;

use std::cell::RefCell;
use std::ops::Range;

use super::buffer::Floats;
use super::elementwise;
use super::pack::{FP8_INPUT, Format, Packed};
use super::simd::{Isa, LANES};
use super::tensor::{Input, Output};
use kernel::{MAX_ROWS, Product};

/// What becomes of the products of a row.
#[derive(Clone, Copy)]
pub(super) enum Finish<'a> {
    /// `out[n] = product[n]`, plus a bias.
    Store { bias: Option<&'a [f32]> },
    /// Of [`interleaved`](super::pack::interleaved) panels: `out[i] = silu(gate[i]) * up[i]` for
    /// `i < inter`.
    SiluMul { inter: usize },
}

/// Buffers of one thread; they grow to what the largest product needs and stay.
#[derive(Default)]
struct Scratch {
    buffers: Buffers,
    /// Products that are not stored as they are.
    products: Floats,
}

#[derive(Default)]
struct Buffers {
    /// Widened weights.
    weights: Floats,
    /// Scaled activations.
    inputs: Floats,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Rows that pass over weights in the cache before the next weights come.
const CHUNK_ROWS: usize = 24 * MAX_ROWS;
/// Weights that stay in the second-level cache, and panels of them at most.
const GROUP_BYTES: usize = 256 << 10;
const GROUP_PANELS: usize = 16;
/// FP8 takes long to widen: passes from which it pays to do it once, into a buffer.
const WIDEN_FROM: usize = 3;

/// Rows `rows` and panels `panels` of `out = x W^T`, on this thread.
///
/// With [`Finish::SiluMul`] the range of panels begins at an even one.
pub(super) fn product(
    isa: Isa,
    w: &Packed,
    panels: Range<usize>,
    x: &Input<'_>,
    rows: Range<usize>,
    out: &Output,
    finish: Finish<'_>,
) {
    assert!(panels.end <= w.panels() && rows.end <= x.rows);
    if rows.is_empty() || panels.is_empty() {
        return;
    }
    // Whole panels can be written in place, the others by way of a buffer.
    let whole = match finish {
        Finish::Store { .. } => (w.outputs / LANES).clamp(panels.start, panels.end),
        Finish::SiluMul { .. } => panels.start,
    };
    SCRATCH.with_borrow_mut(|scratch| {
        let chunk_count = rows.len().div_ceil(CHUNK_ROWS);
        for chunk in even_chunks(rows, chunk_count) {
            let plan = Plan::new(w, chunk.len());
            for group in chunks(panels.start..whole, plan.panels) {
                let (first, width) = (group.start * LANES, group.len() * LANES);
                let to = out.ptr(chunk.start, first, width);
                // The last row lies inside as well.
                out.ptr(chunk.end - 1, first, width);
                // SAFETY: `to` has the chunk's rows of `width` values, which are this task's own.
                unsafe {
                    plan.run(
                        isa,
                        w,
                        &group,
                        x,
                        &chunk,
                        &mut scratch.buffers,
                        to,
                        out.stride(),
                    )
                };
                if let Finish::Store { bias: Some(bias) } = finish {
                    for row in chunk.clone() {
                        // SAFETY: as above.
                        let out = unsafe { out.slice(row, first, width) };
                        elementwise::add(out, &bias[first..][..width]);
                    }
                }
            }
            for group in chunks(whole..panels.end, plan.panels) {
                let stride = group.len() * LANES;
                let products = scratch.products.at_least(chunk.len() * stride);
                let to = products.as_mut_ptr();
                // SAFETY: the buffer has the chunk's rows of `stride` values.
                unsafe { plan.run(isa, w, &group, x, &chunk, &mut scratch.buffers, to, stride) };
                for (row, product) in chunk.clone().zip(products.chunks_exact(stride)) {
                    store(isa, w, &group, row, product, out, finish);
                }
            }
        }
    })
}

/// How a chunk of rows is computed.
struct Plan {
    /// Passes over the weights, each of [`MAX_ROWS`] rows at most.
    passes: usize,
    /// Panels and blocks of inputs of a group.
    panels: usize,
    blocks: usize,
    /// Format that the innermost loops read.
    format: Format,
}

impl Plan {
    fn new(w: &Packed, rows: usize) -> Plan {
        let passes = rows.div_ceil(MAX_ROWS);
        if passes == 1 {
            return Plan {
                passes,
                panels: usize::MAX,
                blocks: w.k_blocks(),
                format: w.format,
            };
        }
        let widen = w.format == Format::Fp8 && passes >= WIDEN_FROM;
        let format = if widen { Format::F32 } else { w.format };
        // Few panels of all inputs, or if these are many, fewer inputs of at least four panels.
        let panel_bytes = w.inputs * LANES * format.bytes();
        let panels = (GROUP_BYTES / panel_bytes).clamp(4, GROUP_PANELS) & !1;
        let block_bytes = w.k_block * LANES * format.bytes() * panels;
        Plan {
            passes,
            panels,
            blocks: (GROUP_BYTES / block_bytes).max(1),
            format,
        }
    }

    /// Products of all rows of `chunk` and the panels of `group`.
    ///
    /// # Safety
    /// `to` has the chunk's rows of the group's columns, `stride` apart, which nobody else touches.
    #[allow(clippy::too_many_arguments)]
    unsafe fn run(
        &self,
        isa: Isa,
        w: &Packed,
        group: &Range<usize>,
        x: &Input<'_>,
        chunk: &Range<usize>,
        scratch: &mut Buffers,
        to: *mut f32,
        stride: usize,
    ) {
        for blocks in chunks(0..w.k_blocks(), self.blocks) {
            let inputs = blocks.start * w.k_block..(blocks.end * w.k_block).min(w.inputs);
            let (weights, panel_bytes) = self.weights(isa, w, group, &inputs, &mut scratch.weights);
            let scales = w.panel_scales(group.start);
            for rows in even_chunks(chunk.clone(), self.passes) {
                let product = Product {
                    format: self.format,
                    weights,
                    panel_bytes,
                    panels: group.len(),
                    inputs: inputs.len(),
                    block: w.k_block,
                    scales: scales.map_or(std::ptr::null(), |s| s[blocks.start * LANES..].as_ptr()),
                    panel_scales: w.k_blocks() * LANES,
                    x: activations(w, x, &rows, &inputs, &mut scratch.inputs),
                    rows: rows.len(),
                    resume: blocks.start > 0,
                    // SAFETY: inside what the caller gave.
                    to: unsafe { to.add((rows.start - chunk.start) * stride) },
                    stride,
                };
                // SAFETY: weights, scales and rows are sliced above; `to` is the caller's.
                unsafe { product.run(isa) };
            }
        }
    }

    /// First weight of a group's inputs `inputs`, and bytes from one panel to the next.
    fn weights(
        &self,
        isa: Isa,
        w: &Packed,
        group: &Range<usize>,
        inputs: &Range<usize>,
        widened: &mut Floats,
    ) -> (*const u8, usize) {
        let (first, end) = (w.place(inputs.start), w.place(inputs.end));
        let stored = |panel: usize| &w.panel(panel)[first * LANES * w.format.bytes()..];
        if self.format == w.format {
            return (stored(group.start).as_ptr(), w.panel_bytes());
        }
        let len = (end - first) * LANES;
        let widened = widened.at_least(group.len() * len);
        for (panel, to) in group.clone().zip(widened.chunks_exact_mut(len)) {
            // SAFETY: the panel holds these inputs, a multiple of four with their padding.
            unsafe { kernel::widen(isa, w.format, stored(panel).as_ptr(), (end - first) / 4, to) };
        }
        (widened.as_ptr().cast(), len * size_of::<f32>())
    }
}

/// Inputs `inputs` of some rows, scaled for fp8 weights.
fn activations(
    w: &Packed,
    x: &Input<'_>,
    rows: &Range<usize>,
    inputs: &Range<usize>,
    scaled: &mut Floats,
) -> [*const f32; MAX_ROWS] {
    let mut pointers = [std::ptr::null(); MAX_ROWS];
    let len = inputs.len();
    let scaled = scaled.at_least(if w.format == Format::Fp8 {
        rows.len() * len
    } else {
        0
    });
    for (i, row) in rows.clone().enumerate() {
        let mut values = &x.row(row)[inputs.clone()];
        if w.format == Format::Fp8 {
            let scaled = &mut scaled[i * len..][..len];
            scaled
                .iter_mut()
                .zip(values)
                .for_each(|(to, x)| *to = x * FP8_INPUT);
            values = scaled;
        }
        pointers[i] = values.as_ptr();
    }
    pointers
}

/// Puts one row of buffered products of `panels` where it belongs.
fn store(
    isa: Isa,
    w: &Packed,
    panels: &Range<usize>,
    row: usize,
    product: &[f32],
    out: &Output,
    finish: Finish<'_>,
) {
    match finish {
        Finish::Store { bias } => {
            let first = panels.start * LANES;
            let width = (panels.end * LANES).min(w.outputs) - first;
            // SAFETY: these columns of this row are the calling task's own.
            let out = unsafe { out.slice(row, first, width) };
            out.copy_from_slice(&product[..width]);
            if let Some(bias) = bias {
                elementwise::add(out, &bias[first..][..width]);
            }
        }
        Finish::SiluMul { inter } => {
            for (pair, product) in product.chunks_exact(2 * LANES).enumerate() {
                let first = (panels.start / 2 + pair) * LANES;
                let width = LANES.min(inter - first);
                // SAFETY: as above.
                let out = unsafe { out.slice(row, first, width) };
                elementwise::silu_mul(isa, &product[..width], &product[LANES..][..width], out);
            }
        }
    }
}

/// `range` in chunks of `size`, the last one shorter.
pub(super) fn chunks(range: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range
        .step_by(size.max(1))
        .map(move |start| start..start.saturating_add(size.max(1)).min(end))
}

/// `range` in `count` chunks whose sizes differ by one at most.
pub(super) fn even_chunks(range: Range<usize>, count: usize) -> impl Iterator<Item = Range<usize>> {
    (0..count).map(move |i| {
        let at = |i: usize| range.start + range.len() * i / count;
        at(i)..at(i + 1)
    })
}
