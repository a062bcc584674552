//! Many rows: activations are packed a tile of rows at a time, weights widened once a block.

// Tiles of registers read best as matrices: `sums[r][p]` from `x[r]` and `w[p]`.
#![allow(clippy::needless_range_loop)]

use std::marker::PhantomData;
use std::ops::Range;

use super::{Format, Weights, even_chunks, with_format};
use crate::cpu::buffer::Floats;
use crate::cpu::pack::Packed;
use crate::cpu::simd::{Isa, Kernel, LANES, Simd};
use crate::cpu::tensor::Input;

/// The largest tile of this instruction set.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub rows: usize,
}

impl Shape {
    pub fn of(isa: Isa) -> Shape {
        struct Ask;
        impl Kernel for Ask {
            type Output = Shape;
            #[inline(always)]
            unsafe fn run<S: Simd>(self) -> Shape {
                Shape { rows: S::TILE_ROWS }
            }
        }
        // SAFETY: a backend's instruction set is one the processor has.
        unsafe { isa.run(Ask) }
    }
}

/// A chunk of rows as tiles of nearly equal height.
pub(super) struct Plan {
    rows: usize,
    tiles: usize,
    /// Distance of packed inputs: `[tile][input][tile_rows]`.
    tile_rows: usize,
}

impl Plan {
    pub fn new(rows: usize, tile_rows: usize) -> Plan {
        Plan {
            rows,
            tiles: rows.div_ceil(tile_rows),
            tile_rows,
        }
    }
}

/// Packs `rows` of `x` as `[tile][input][tile_rows]`.
pub(super) fn pack_rows(
    x: &Input<'_>,
    rows: Range<usize>,
    plan: &Plan,
    inputs: usize,
    out: &mut Floats,
) {
    let tile_len = inputs * plan.tile_rows;
    let out = out.at_least(plan.tiles * tile_len);
    for (tile, rows) in even_chunks(rows, plan.tiles).enumerate() {
        let out = &mut out[tile * tile_len..][..tile_len];
        for (r, row) in rows.enumerate() {
            let values = &x.row(row)[..inputs];
            for (out, value) in out[r..].iter_mut().step_by(plan.tile_rows).zip(values) {
                *out = *value;
            }
        }
    }
}

/// `to[r][..]` for all rows of the plan and the columns of `panels`.
///
/// # Safety
/// The processor has `isa`; `rows` is [`pack_rows`]'s; `to` holds the plan's rows of
/// `panels.len() * 16` values, `stride` apart, which nobody else touches.
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn run(
    isa: Isa,
    w: &Packed,
    panels: Range<usize>,
    plan: &Plan,
    rows: &[f32],
    widened: &mut Floats,
    to: *mut f32,
    stride: usize,
) {
    for block in 0..w.k_blocks() {
        let start = block * w.k_block;
        let len = w.k_block.min(w.inputs - start);
        let panel_len = len.next_multiple_of(2) * LANES;
        let widened = widened.at_least(panels.len() * panel_len);
        for (panel, widened) in panels.clone().zip(widened.chunks_exact_mut(panel_len)) {
            with_format!(w.format, W => {
                let skip = start / 2 * W::PAIR_BYTES + start % 2 * (W::PAIR_BYTES / 2);
                let from = &w.panel(panel)[skip..];
                // SAFETY: the panel holds `len` more inputs from `skip` on; room for them was made.
                unsafe { isa.run(Widen::<W> { from, len, to: widened, format: PhantomData }) }
            });
        }
        let scales = w.panel_scales(panels.start).map(|scales| {
            // Neighbouring panels' scales lie `k_blocks * 16` apart.
            scales[block * LANES..].as_ptr()
        });
        // SAFETY: as the caller promises.
        unsafe {
            isa.run(Tiles {
                plan,
                rows: rows.as_ptr(),
                inputs: w.inputs,
                start,
                len,
                weights: widened.as_ptr(),
                panel_len,
                panels: panels.len(),
                scales,
                scale_stride: w.k_blocks() * LANES,
                to,
                stride,
            });
        }
    }
}

/// Widens `len` inputs of one panel to `[input][16]`.
struct Widen<'a, W> {
    from: &'a [u8],
    len: usize,
    to: &'a mut [f32],
    format: PhantomData<W>,
}

impl<W: Weights> Kernel for Widen<'_, W> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        assert!(self.to.len() >= self.len.next_multiple_of(2) * LANES);
        assert!(
            self.from.len()
                >= self.len.div_ceil(2) * W::PAIR_BYTES - self.len % 2 * (W::PAIR_BYTES / 2)
        );
        let (from, to) = (self.from.as_ptr(), self.to.as_mut_ptr());
        // SAFETY: checked above.
        unsafe {
            for pair in 0..self.len / 2 {
                let (even, odd) = W::pair::<S>(from.add(pair * W::PAIR_BYTES));
                S::store(to.add(pair * 2 * LANES), even);
                S::store(to.add((pair * 2 + 1) * LANES), odd);
            }
            if self.len % 2 == 1 {
                let last = W::single::<S>(from.add(self.len / 2 * W::PAIR_BYTES));
                S::store(to.add((self.len - 1) * LANES), last);
            }
        }
    }
}

/// One block of inputs of all tiles.
struct Tiles<'a> {
    plan: &'a Plan,
    rows: *const f32,
    inputs: usize,
    start: usize,
    len: usize,
    /// `[panel][input][16]`, panels `panel_len` apart.
    weights: *const f32,
    panel_len: usize,
    panels: usize,
    /// 16 of this block, panels `scale_stride` apart.
    scales: Option<*const f32>,
    scale_stride: usize,
    to: *mut f32,
    stride: usize,
}

impl Kernel for Tiles<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let tile_len = self.inputs * self.plan.tile_rows;
        for (tile, rows) in even_chunks(0..self.plan.rows, self.plan.tiles).enumerate() {
            // SAFETY: the caller's: packed rows hold this tile, `to` its rows.
            unsafe {
                let x = self
                    .rows
                    .add(tile * tile_len + self.start * self.plan.tile_rows);
                let to = self.to.add(rows.start * self.stride);
                macro_rules! rows {
                    ($($count:literal)*) => {
                        match rows.len() {
                            $($count if $count <= S::TILE_ROWS => self.columns::<S, $count>(x, to),)*
                            other => unreachable!("a tile of {other} rows"),
                        }
                    };
                }
                rows!(1 2 3 4 5 6 7 8 9 10 11 12);
            }
        }
    }
}

impl Tiles<'_> {
    /// # Safety
    /// `x` and `to` are valid for `ROWS` rows.
    #[inline(always)]
    unsafe fn columns<S: Simd, const ROWS: usize>(&self, x: *const f32, to: *mut f32) {
        // SAFETY: the caller's.
        unsafe {
            if S::TILE_PANELS == 2 && self.panels == 2 {
                self.tile::<S, ROWS, 2>(x, to, 0);
            } else {
                for panel in 0..self.panels {
                    self.tile::<S, ROWS, 1>(x, to, panel);
                }
            }
        }
    }

    /// # Safety
    /// As for [`columns`](Self::columns).
    #[inline(always)]
    unsafe fn tile<S: Simd, const ROWS: usize, const PANELS: usize>(
        &self,
        x: *const f32,
        to: *mut f32,
        first: usize,
    ) {
        // SAFETY: the caller's.
        unsafe {
            let mut sums = [[S::zero(); PANELS]; ROWS];
            let mut x = x;
            let mut w = self.weights.add(first * self.panel_len);
            for _ in 0..self.len {
                let mut columns = [S::zero(); PANELS];
                for (p, column) in columns.iter_mut().enumerate() {
                    *column = S::load(w.add(p * self.panel_len));
                }
                for r in 0..ROWS {
                    let value = S::splat(*x.add(r));
                    for p in 0..PANELS {
                        sums[r][p] = S::fma(value, columns[p], sums[r][p]);
                    }
                }
                x = x.add(self.plan.tile_rows);
                w = w.add(LANES);
            }
            for r in 0..ROWS {
                for p in 0..PANELS {
                    let to = to.add(r * self.stride + (first + p) * LANES);
                    let old = if self.start == 0 {
                        S::zero()
                    } else {
                        S::load(to)
                    };
                    let new = match self.scales {
                        Some(scales) => S::fma(
                            sums[r][p],
                            S::load(scales.add((first + p) * self.scale_stride)),
                            old,
                        ),
                        None => S::add(old, sums[r][p]),
                    };
                    S::store(to, new);
                }
            }
        }
    }
}
