//! The innermost loops: a few rows times panels of weights.

// Tiles of registers read best as matrices: `sums[r][p]` from `x[r]` and `w[p]`.
#![allow(clippy::needless_range_loop)]

use std::marker::PhantomData;

use super::weights::{Weights, with_format};
use crate::cpu::pack::Format;
use crate::cpu::simd::{Isa, Kernel, LANES, Simd};

/// Rows that one call computes at most.
pub(super) const MAX_ROWS: usize = 4;

/// `to[r][p * 16 + lane] = scaled sums of x[r] times panel p`, over some blocks of inputs.
#[derive(Clone, Copy)]
pub(super) struct Product {
    pub format: Format,
    /// First value of the first panel, and bytes from one panel to the next.
    pub weights: *const u8,
    pub panel_bytes: usize,
    pub panels: usize,
    /// Inputs, in blocks of `block` (the last one may be short); a block's weights begin at a
    /// multiple of four inputs.
    pub inputs: usize,
    pub block: usize,
    /// Sixteen scales of the first panel's first block, the next block's, and so on; floats from one
    /// panel to the next. Null: none.
    pub scales: *const f32,
    pub panel_scales: usize,
    pub x: [*const f32; MAX_ROWS],
    pub rows: usize,
    /// The first block is added to what `to` holds, rather than to zero.
    pub resume: bool,
    pub to: *mut f32,
    pub stride: usize,
}

impl Product {
    /// # Safety
    /// The processor has `isa`; all pointers are valid for what the fields say.
    pub unsafe fn run(self, isa: Isa) {
        macro_rules! rows {
            ($w:ty, $($rows:literal)*) => {
                match self.rows {
                    // SAFETY: the caller's.
                    $($rows => unsafe { isa.run(Rows::<$w, $rows>(self, PhantomData)) },)*
                    other => unreachable!("{other} rows"),
                }
            };
        }
        with_format!(self.format, W => rows!(W, 1 2 3 4))
    }
}

struct Rows<W, const ROWS: usize>(Product, PhantomData<W>);

impl<W: Weights, const ROWS: usize> Kernel for Rows<W, ROWS> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // As many panels at once as registers allow: their chains hide one another's latency.
        // SAFETY: the caller's; panels `panel ..` exist.
        unsafe {
            let mut panel = 0;
            while ROWS == 1 && S::ACCUMULATORS >= 8 && panel + 8 <= self.0.panels {
                self.tile::<S, 8>(panel);
                panel += 8;
            }
            while S::ACCUMULATORS >= 4 * ROWS + W::TEMPORARIES && panel + 4 <= self.0.panels {
                self.tile::<S, 4>(panel);
                panel += 4;
            }
            while S::ACCUMULATORS >= 2 * ROWS && panel + 2 <= self.0.panels {
                self.tile::<S, 2>(panel);
                panel += 2;
            }
            while panel < self.0.panels {
                self.tile::<S, 1>(panel);
                panel += 1;
            }
        }
    }
}

impl<W: Weights, const ROWS: usize> Rows<W, ROWS> {
    /// # Safety
    /// As for [`Product::run`]; `PANELS` panels exist from `panel` on.
    #[inline(always)]
    unsafe fn tile<S: Simd, const PANELS: usize>(&self, panel: usize) {
        let product = &self.0;
        let panel_bytes = product.panel_bytes;
        // SAFETY: the caller's.
        unsafe {
            let mut weights = product.weights.add(panel * panel_bytes);
            let mut scales = product.scales.wrapping_add(panel * product.panel_scales);
            let to = product.to.add(panel * LANES);
            let mut resume = product.resume;
            // The same place of the next panels, if these are small enough not to drive each other out
            // of the cache; else a little further on.
            let ahead = if panel_bytes <= 16 << 10 {
                PANELS * panel_bytes
            } else {
                1024
            };
            let mut k = 0;
            while k < product.inputs {
                let end = (k + product.block).min(product.inputs);
                let mut sums = [[S::zero(); PANELS]; ROWS];
                // Constant indices, or the compiler keeps the sums in memory.
                macro_rules! inputs {
                    ($p:ident, $four:ident, $($j:literal)*) => {{
                        $(for r in 0..ROWS {
                            let x = S::splat(*product.x[r].add(k + $j));
                            sums[r][$p] = S::fma(x, $four[$j], sums[r][$p]);
                        })*
                    }};
                }
                while k + 4 <= end {
                    for p in 0..PANELS {
                        let four = W::four::<S>(weights.add(p * panel_bytes));
                        if W::FETCH && ROWS <= 2 {
                            S::prefetch(weights.wrapping_add(p * panel_bytes + ahead));
                        }
                        inputs!(p, four, 0 1 2 3);
                    }
                    weights = weights.add(W::BYTES);
                    k += 4;
                }
                if k < end {
                    for p in 0..PANELS {
                        let four = W::four::<S>(weights.add(p * panel_bytes));
                        match end - k {
                            1 => inputs!(p, four, 0),
                            2 => inputs!(p, four, 0 1),
                            _ => inputs!(p, four, 0 1 2),
                        }
                    }
                    weights = weights.add(W::BYTES);
                    k = end;
                }
                for p in 0..PANELS {
                    for r in 0..ROWS {
                        let to = to.add(r * product.stride + p * LANES);
                        let old = if resume { S::load(to) } else { S::zero() };
                        let new = if product.scales.is_null() {
                            S::add(old, sums[r][p])
                        } else {
                            let scale = S::load(scales.add(p * product.panel_scales));
                            S::fma(sums[r][p], scale, old)
                        };
                        S::store(to, new);
                    }
                }
                resume = true;
                scales = scales.wrapping_add(LANES);
            }
        }
    }
}

/// Widens `fours` times four inputs of one panel to float32, `[input][16]`.
///
/// # Safety
/// The processor has `isa`; `from` holds that many inputs of a panel.
pub(super) unsafe fn widen(
    isa: Isa,
    format: Format,
    from: *const u8,
    fours: usize,
    to: &mut [f32],
) {
    struct Widen<'a, W>(*const u8, usize, &'a mut [f32], PhantomData<W>);
    impl<W: Weights> Kernel for Widen<'_, W> {
        type Output = ();
        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            let Widen(from, fours, to, _) = self;
            let to = to[..fours * 4 * LANES].as_mut_ptr();
            // SAFETY: the caller's, and the slice above.
            unsafe {
                for i in 0..fours {
                    let four = W::four::<S>(from.add(i * W::BYTES));
                    for j in 0..4 {
                        S::store(to.add((i * 4 + j) * LANES), four[j]);
                    }
                }
            }
        }
    }
    // SAFETY: the caller's.
    with_format!(format, W => unsafe { isa.run(Widen::<W>(from, fours, to, PhantomData)) })
}
