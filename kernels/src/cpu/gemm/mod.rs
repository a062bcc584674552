//! `out = x W^T` over packed weights: the one matrix product under every projection.
//!
//! An output is one chain: for each block of inputs (128, or a scale block) a partial sum of fused
//! multiply-adds in input order, then `out += partial * scale`. Nothing else enters it, so it is the
//! same bits whichever kernel computes it, beside whichever other rows.
//!
//! Two kernels: [`stream`] for a few rows widens weights in registers as they come from memory;
//! [`tiles`] for many rows widens a block of weights once and packs the activations.

mod stream;
mod tiles;

use std::cell::RefCell;
use std::ops::Range;

use super::buffer::Floats;
use super::elementwise;
use super::pack::{Format, Packed};
use super::simd::{Isa, LANES, Simd};
use super::tensor::{Input, Output};

/// Rows from which packing activations pays.
const TILED_FROM: usize = 9;

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
    /// Packed activations.
    rows: Floats,
    /// One block of widened weights.
    weights: Floats,
    /// Products that are not stored as they are.
    products: Floats,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Rows `rows` and panels `panels` of `out = x W^T`, on this thread. `x` begins at its first column.
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
    SCRATCH.with_borrow_mut(|scratch| {
        if rows.len() < TILED_FROM {
            few_rows(isa, w, panels, x, rows, out, finish, scratch);
        } else {
            many_rows(isa, w, panels, x, rows, out, finish, scratch);
        }
    })
}

/// Weights of a group of panels stay in the second-level cache while rows pass over them.
const GROUP_BYTES: usize = 256 << 10;

#[allow(clippy::too_many_arguments)]
fn few_rows(
    isa: Isa,
    w: &Packed,
    panels: Range<usize>,
    x: &Input<'_>,
    rows: Range<usize>,
    out: &Output,
    finish: Finish<'_>,
    scratch: &mut Scratch,
) {
    let pieces = rows.len().div_ceil(stream::MAX_ROWS);
    let group = if pieces == 1 {
        w.panels()
    } else {
        (GROUP_BYTES / w.panel_bytes().max(1)).max(4) & !3
    };
    for group in chunks(panels, group) {
        for piece in even_chunks(rows.clone(), pieces) {
            // Whole panels can be written in place, the others by way of a buffer.
            let whole = match finish {
                Finish::Store { .. } => {
                    group.start..group.end.min(w.outputs / LANES).max(group.start)
                }
                Finish::SiluMul { .. } => group.start..group.start,
            };
            if !whole.is_empty() {
                let width = whole.len() * LANES;
                let to = out.ptr(piece.start, whole.start * LANES, width);
                out.ptr(piece.end - 1, whole.start * LANES, width);
                // SAFETY: rows and columns lie inside `out` (asked above) and are this task's own.
                unsafe { stream::run(isa, w, whole.clone(), x, piece.clone(), to, out.stride()) };
            }
            if whole.end < group.end {
                let rest = whole.end..group.end;
                let stride = rest.len() * LANES;
                let products = scratch.products.at_least(piece.len() * stride);
                // SAFETY: `products` holds `piece.len()` rows of `stride`.
                unsafe {
                    stream::run(
                        isa,
                        w,
                        rest.clone(),
                        x,
                        piece.clone(),
                        products.as_mut_ptr(),
                        stride,
                    )
                };
                copy_out(isa, w, rest, piece.clone(), products, stride, out, finish);
            }
            add_bias(whole, piece, out, finish);
        }
    }
}

/// Packed activations of a chunk stay in the second-level cache while weights pass over them.
const CHUNK_BYTES: usize = 512 << 10;

#[allow(clippy::too_many_arguments)]
fn many_rows(
    isa: Isa,
    w: &Packed,
    panels: Range<usize>,
    x: &Input<'_>,
    rows: Range<usize>,
    out: &Output,
    finish: Finish<'_>,
    scratch: &mut Scratch,
) {
    let shape = tiles::Shape::of(isa);
    let most = (CHUNK_BYTES / (w.inputs.max(1) * 4)).clamp(2 * shape.rows, 20 * shape.rows);
    let chunks_needed = rows.len().div_ceil(most);
    for chunk in even_chunks(rows, chunks_needed) {
        let plan = tiles::Plan::new(chunk.len(), shape.rows);
        tiles::pack_rows(x, chunk.clone(), &plan, w.inputs, &mut scratch.rows);
        for group in chunks(panels.clone(), 2) {
            let in_place = matches!(finish, Finish::Store { .. }) && group.end * LANES <= w.outputs;
            let width = group.len() * LANES;
            let (to, stride) = if in_place {
                out.ptr(chunk.end - 1, group.start * LANES, width);
                (
                    out.ptr(chunk.start, group.start * LANES, width),
                    out.stride(),
                )
            } else {
                (
                    scratch.products.at_least(chunk.len() * width).as_mut_ptr(),
                    width,
                )
            };
            // SAFETY: `to` holds the chunk's rows of `width` values, `stride` apart, this task's own.
            unsafe {
                tiles::run(
                    isa,
                    w,
                    group.clone(),
                    &plan,
                    &scratch.rows,
                    &mut scratch.weights,
                    to,
                    stride,
                )
            };
            if in_place {
                add_bias(group, chunk.clone(), out, finish);
            } else {
                let products = scratch.products.at_least(chunk.len() * width);
                copy_out(isa, w, group, chunk.clone(), products, stride, out, finish);
            }
        }
    }
}

/// Moves buffered products of `panels` (row-major, `stride` apart) to their place in `out`.
#[allow(clippy::too_many_arguments)]
fn copy_out(
    isa: Isa,
    w: &Packed,
    panels: Range<usize>,
    rows: Range<usize>,
    products: &[f32],
    stride: usize,
    out: &Output,
    finish: Finish<'_>,
) {
    for (row, product) in rows.zip(products.chunks_exact(stride)) {
        match finish {
            Finish::Store { bias } => {
                let first = panels.start * LANES;
                let width = (panels.end * LANES).min(w.outputs) - first;
                // SAFETY: these columns of this row are this task's own.
                let out = unsafe { out.slice(row, first, width) };
                out.copy_from_slice(&product[..width]);
                if let Some(bias) = bias {
                    add_to(out, &bias[first..]);
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
}

fn add_bias(panels: Range<usize>, rows: Range<usize>, out: &Output, finish: Finish<'_>) {
    let Finish::Store { bias: Some(bias) } = finish else {
        return;
    };
    for row in rows {
        // SAFETY: these columns of this row are the calling task's own.
        let out = unsafe { out.slice(row, panels.start * LANES, panels.len() * LANES) };
        add_to(out, &bias[panels.start * LANES..]);
    }
}

fn add_to(out: &mut [f32], delta: &[f32]) {
    out.iter_mut()
        .zip(delta)
        .for_each(|(out, delta)| *out += delta);
}

/// `range` in chunks of `size`, the last one shorter.
pub(super) fn chunks(range: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    range
        .clone()
        .step_by(size.max(1))
        .map(move |start| start..(start + size.max(1)).min(range.end))
}

/// `range` in `count` chunks whose sizes differ by one at most.
pub(super) fn even_chunks(range: Range<usize>, count: usize) -> impl Iterator<Item = Range<usize>> {
    let at = move |i: usize| range.start + range.len() * i / count;
    let at2 = at.clone();
    (0..count).map(move |i| at(i)..at2(i + 1))
}

/// How a kernel reads weights: two inputs at a time.
pub(super) trait Weights {
    /// Bytes of sixteen columns of two inputs.
    const PAIR_BYTES: usize;
    const SCALED: bool;

    /// Sixteen columns of two neighbouring inputs.
    ///
    /// # Safety
    /// As for [`Simd`]; `from` holds `PAIR_BYTES`.
    unsafe fn pair<S: Simd>(from: *const u8) -> (S::V, S::V);

    /// Sixteen columns of one input: the first of a pair, or any where inputs do not share words.
    ///
    /// # Safety
    /// As for [`pair`](Self::pair).
    unsafe fn single<S: Simd>(from: *const u8) -> S::V;
}

macro_rules! weights {
    ($name:ident, $pair_bytes:expr, $scaled:expr, |$from:ident| $pair:expr, $single:expr) => {
        pub(super) struct $name;
        impl Weights for $name {
            const PAIR_BYTES: usize = $pair_bytes;
            const SCALED: bool = $scaled;
            #[inline(always)]
            unsafe fn pair<S: Simd>($from: *const u8) -> (S::V, S::V) {
                // SAFETY: the caller's; a pair is all inside `PAIR_BYTES`.
                unsafe { $pair }
            }
            #[inline(always)]
            unsafe fn single<S: Simd>($from: *const u8) -> S::V {
                // SAFETY: the caller's.
                unsafe { $single }
            }
        }
    };
}

weights!(
    F32,
    128,
    false,
    |from| (S::load(from.cast()), S::load(from.add(64).cast())),
    S::load(from.cast())
);
weights!(
    F16,
    64,
    false,
    |from| (S::load_f16(from), S::load_f16(from.add(32))),
    S::load_f16(from)
);
weights!(
    Bf16,
    64,
    false,
    |from| S::load_bf16_pairs(from),
    S::load_bf16_pairs(from).0
);
weights!(
    Fp8,
    32,
    true,
    |from| (S::load_fp8_div_256(from), S::load_fp8_div_256(from.add(16))),
    S::load_fp8_div_256(from)
);

/// Calls `$call` with `$W` standing for the weights' format.
macro_rules! with_format {
    ($format:expr, $W:ident => $call:expr) => {
        match $format {
            Format::F32 => {
                type $W = super::F32;
                $call
            }
            Format::F16 => {
                type $W = super::F16;
                $call
            }
            Format::Bf16 => {
                type $W = super::Bf16;
                $call
            }
            Format::Fp8 => {
                type $W = super::Fp8;
                $call
            }
        }
    };
}
use with_format;
