//! A few rows: weights are read once, widened in registers and used for every row.

// Tiles of registers read best as matrices: `sums[r][p]` from `x[r]` and `w[p]`.
#![allow(clippy::needless_range_loop)]

use std::marker::PhantomData;
use std::ops::Range;

use super::{Format, Weights, with_format};
use crate::cpu::pack::Packed;
use crate::cpu::simd::{Isa, Kernel, LANES, Simd};
use crate::cpu::tensor::Input;

/// Rows that one call computes.
pub(super) const MAX_ROWS: usize = 4;

/// `to[r][panel * 16 + lane]` for `rows` (at most [`MAX_ROWS`]) and `panels`, counted from their first.
///
/// # Safety
/// The processor has `isa`; `to` holds `rows.len()` rows of `panels.len() * 16` values, `stride` apart,
/// which nobody else touches.
pub(super) unsafe fn run(
    isa: Isa,
    w: &Packed,
    panels: Range<usize>,
    x: &Input<'_>,
    rows: Range<usize>,
    to: *mut f32,
    stride: usize,
) {
    let mut inputs = [std::ptr::null(); MAX_ROWS];
    for (input, row) in inputs.iter_mut().zip(rows.clone()) {
        *input = x.row(row)[..w.inputs].as_ptr();
    }
    macro_rules! kernel {
        ($w:ty, $rows:literal) => {
            // SAFETY: `inputs` are rows of `w.inputs` values; the rest is the caller's.
            unsafe {
                isa.run(Stream::<$w, $rows> {
                    w,
                    panels,
                    inputs,
                    to,
                    stride,
                    format: PhantomData,
                })
            }
        };
    }
    with_format!(w.format, W => match rows.len() {
        1 => kernel!(W, 1),
        2 => kernel!(W, 2),
        3 => kernel!(W, 3),
        4 => kernel!(W, 4),
        other => unreachable!("{other} rows"),
    })
}

struct Stream<'a, W, const ROWS: usize> {
    w: &'a Packed,
    panels: Range<usize>,
    inputs: [*const f32; MAX_ROWS],
    to: *mut f32,
    stride: usize,
    format: PhantomData<W>,
}

impl<W: Weights, const ROWS: usize> Kernel for Stream<'_, W, ROWS> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // As many panels at once as registers allow: their chains hide one another's latency.
        // SAFETY: the caller's.
        unsafe {
            let mut panel = self.panels.start;
            while S::ACCUMULATORS >= 4 * ROWS && panel + 4 <= self.panels.end {
                self.panels_at::<S, 4>(panel);
                panel += 4;
            }
            while S::ACCUMULATORS >= 2 * ROWS && panel + 2 <= self.panels.end {
                self.panels_at::<S, 2>(panel);
                panel += 2;
            }
            while panel < self.panels.end {
                self.panels_at::<S, 1>(panel);
                panel += 1;
            }
        }
    }
}

impl<W: Weights, const ROWS: usize> Stream<'_, W, ROWS> {
    /// # Safety
    /// As for [`run`].
    #[inline(always)]
    unsafe fn panels_at<S: Simd, const PANELS: usize>(&self, panel: usize) {
        let (inputs, k_block, blocks) = (self.w.inputs, self.w.k_block, self.w.k_blocks());
        let panel_bytes = self.w.panel_bytes();
        let weights = self.w.panel(panel).as_ptr();
        let scales = self
            .w
            .panel_scales(panel)
            .map_or(std::ptr::null(), <[f32]>::as_ptr);
        // SAFETY: `panel + PANELS` panels exist, each of `panel_bytes`, with `blocks` scales of 16;
        // rows hold `inputs` values; `to` has room.
        unsafe {
            let to = self.to.add((panel - self.panels.start) * LANES);
            for block in 0..blocks {
                let start = block * k_block;
                let len = k_block.min(inputs - start);
                let mut sums = [[S::zero(); PANELS]; ROWS];
                let mut at =
                    weights.add(start / 2 * W::PAIR_BYTES + start % 2 * (W::PAIR_BYTES / 2));
                let mut k = start;
                while k + 2 <= start + len {
                    for p in 0..PANELS {
                        let (even, odd) = W::pair::<S>(at.add(p * panel_bytes));
                        for r in 0..ROWS {
                            let x = self.inputs[r].add(k);
                            sums[r][p] = S::fma(S::splat(*x), even, sums[r][p]);
                            sums[r][p] = S::fma(S::splat(*x.add(1)), odd, sums[r][p]);
                        }
                    }
                    at = at.add(W::PAIR_BYTES);
                    k += 2;
                }
                if k < start + len {
                    for p in 0..PANELS {
                        let last = W::single::<S>(at.add(p * panel_bytes));
                        for r in 0..ROWS {
                            sums[r][p] = S::fma(S::splat(*self.inputs[r].add(k)), last, sums[r][p]);
                        }
                    }
                }
                for p in 0..PANELS {
                    for r in 0..ROWS {
                        let to = to.add(r * self.stride + p * LANES);
                        let old = if block == 0 { S::zero() } else { S::load(to) };
                        let new = if W::SCALED {
                            S::fma(
                                sums[r][p],
                                S::load(scales.add((p * blocks + block) * LANES)),
                                old,
                            )
                        } else {
                            S::add(old, sums[r][p])
                        };
                        S::store(to, new);
                    }
                }
            }
        }
    }
}
