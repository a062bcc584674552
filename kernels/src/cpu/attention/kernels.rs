//! The arithmetic of attention over one page: scores, softmax, weighted sum.
//!
//! Orders, fixed by dimensions alone. A score: sixteen chains over the dimensions, lane by lane,
//! then [`Simd::sum`]. The denominator: [`Simd::sum`] of four vectors of weights, slot by slot.
//! An output value: for each page one chain over its tokens, then `old * correction + chain`.

// Tiles of registers read best as matrices: `sums[r][p]` from `x[r]` and `w[p]`.
#![allow(clippy::needless_range_loop)]

use std::marker::PhantomData;

use crate::PAGE_TOKENS;
use crate::cpu::math;
use crate::cpu::simd::{Kernel, LANES, Simd};

/// How keys and values are read.
pub(super) trait Stored {
    const BYTES: usize;

    /// Sixteen neighbouring values.
    ///
    /// # Safety
    /// As for [`Simd::load`].
    unsafe fn load<S: Simd>(from: *const u8) -> S::V;
}

pub(super) struct F32;
pub(super) struct Bf16;

impl Stored for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const u8) -> S::V {
        // SAFETY: the caller's.
        unsafe { S::load(from.cast()) }
    }
}

impl Stored for Bf16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const u8) -> S::V {
        // SAFETY: the caller's.
        unsafe { S::load_bf16(from) }
    }
}

/// `scores[r][t] = q[r] . k[t]` for `tokens` tokens of a page. Rows of `scores` are a page apart.
pub(super) struct Scores<D> {
    pub q: *const f32,
    pub q_stride: usize,
    pub rows: usize,
    pub k: *const u8,
    /// In bytes.
    pub k_stride: usize,
    pub tokens: usize,
    /// A multiple of 16.
    pub dims: usize,
    pub scores: *mut f32,
    pub stored: PhantomData<D>,
}

impl<D: Stored> Kernel for Scores<D> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller's; every tile lies inside `rows` x `tokens`.
        unsafe {
            if S::ACCUMULATORS >= 16 {
                self.all::<S, 4, 4>();
            } else {
                self.all::<S, 2, 2>();
            }
        }
    }
}

impl<D: Stored> Scores<D> {
    #[inline(always)]
    unsafe fn all<S: Simd, const R: usize, const T: usize>(&self) {
        // Tokens outside: their keys stay in the first-level cache while all rows pass.
        // SAFETY: the caller's.
        unsafe {
            for t in (0..self.tokens).step_by(T) {
                for r in (0..self.rows).step_by(R) {
                    if r + R <= self.rows && t + T <= self.tokens {
                        self.tile::<S, R, T>(r, t);
                    } else if r + R <= self.rows {
                        (t..self.tokens).for_each(|t| self.tile::<S, R, 1>(r, t));
                    } else {
                        let tokens = t..(t + T).min(self.tokens);
                        for r in r..self.rows {
                            if tokens.len() == T {
                                self.tile::<S, 1, T>(r, t);
                            } else {
                                tokens.clone().for_each(|t| self.tile::<S, 1, 1>(r, t));
                            }
                        }
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn tile<S: Simd, const R: usize, const T: usize>(&self, row: usize, token: usize) {
        // SAFETY: the caller's.
        unsafe {
            let q = self.q.add(row * self.q_stride);
            let k = self.k.add(token * self.k_stride);
            let mut sums = [[S::zero(); T]; R];
            for d in (0..self.dims).step_by(LANES) {
                let mut keys = [S::zero(); T];
                for (t, key) in keys.iter_mut().enumerate() {
                    *key = D::load::<S>(k.add(t * self.k_stride + d * D::BYTES));
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let query = S::load(q.add(r * self.q_stride + d));
                    for t in 0..T {
                        sums[t] = S::fma(query, keys[t], sums[t]);
                    }
                }
            }
            let to = self.scores.add(row * PAGE_TOKENS + token);
            if R * T == 16 {
                let mut flat = [S::zero(); 16];
                for i in 0..R * T {
                    flat[i] = sums[i / T][i % T];
                }
                let mut lanes = [0.0; 16];
                S::store(lanes.as_mut_ptr(), S::sums(&flat));
                for (i, lane) in lanes.into_iter().enumerate() {
                    *to.add(i / T * PAGE_TOKENS + i % T) = lane;
                }
            } else {
                for (r, sums) in sums.iter().enumerate() {
                    for (t, sum) in sums.iter().enumerate() {
                        *to.add(r * PAGE_TOKENS + t) = S::sum(*sum);
                    }
                }
            }
        }
    }
}

/// Running softmax of one query row.
#[derive(Clone, Copy)]
pub(super) struct Running {
    pub max: f32,
    /// Sum of all weights so far, relative to `max`.
    pub sum: f32,
    /// What earlier sums are to be multiplied with since the last page.
    pub correction: f32,
}

impl Running {
    pub const START: Running = Running {
        max: f32::NEG_INFINITY,
        sum: 0.0,
        correction: 0.0,
    };
}

/// Turns a page of scores into weights `e^(scale * score - max)`; those from `tokens` on become 0.
pub(super) struct Softmax<'a> {
    /// One page a row.
    pub scores: &'a mut [f32],
    pub running: &'a mut [Running],
    pub tokens: usize,
    pub scale: f32,
}

impl Kernel for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        const VECTORS: usize = PAGE_TOKENS / LANES;
        let scale = self.scale;
        for (row, running) in self.scores.chunks_exact_mut(PAGE_TOKENS).zip(self.running) {
            row[self.tokens..].fill(f32::NEG_INFINITY);
            // SAFETY: a row is a page of values.
            unsafe {
                let at = row.as_mut_ptr();
                let mut s = [S::zero(); VECTORS];
                for (i, s) in s.iter_mut().enumerate() {
                    *s = S::mul(S::load(at.add(i * LANES)), S::splat(scale));
                }
                let highest = S::max_lane(S::max(S::max(s[0], s[1]), S::max(s[2], s[3])));
                let max = if highest > running.max {
                    highest
                } else {
                    running.max
                };
                let mut weights = [S::zero(); VECTORS];
                for (i, weight) in weights.iter_mut().enumerate() {
                    *weight = math::exp::<S>(S::sub(s[i], S::splat(max)));
                    S::store(at.add(i * LANES), *weight);
                }
                let sum = S::sum(S::add(
                    S::add(weights[0], weights[1]),
                    S::add(weights[2], weights[3]),
                ));
                let mut correction = [0.0; LANES];
                S::store(
                    correction.as_mut_ptr(),
                    math::exp::<S>(S::splat(running.max - max)),
                );
                *running = Running {
                    max,
                    sum: running.sum * correction[0] + sum,
                    correction: correction[0],
                };
            }
        }
    }
}

/// `out[r] = out[r] * correction[r] + sum over tokens of weights[r][t] * v[t]`.
pub(super) struct Weighted<'a, D> {
    pub weights: *const f32,
    pub running: &'a [Running],
    pub v: *const u8,
    /// In bytes.
    pub v_stride: usize,
    /// The same of the next page, to be fetched in the meantime; any address will do.
    pub next_v: *const u8,
    pub tokens: usize,
    /// A multiple of 16.
    pub dims: usize,
    pub out: *mut f32,
    pub out_stride: usize,
    pub stored: PhantomData<D>,
}

impl<D: Stored> Kernel for Weighted<'_, D> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller's.
        unsafe {
            if S::ACCUMULATORS >= 16 {
                self.all::<S, 4, 4>();
            } else {
                self.all::<S, 2, 2>();
            }
        }
    }
}

impl<D: Stored> Weighted<'_, D> {
    #[inline(always)]
    unsafe fn all<S: Simd, const R: usize, const C: usize>(&self) {
        let rows = self.running.len();
        // SAFETY: the caller's; every tile lies inside `rows` x `dims`.
        unsafe {
            let mut d = 0;
            while d < self.dims {
                let wide = d + C * LANES <= self.dims;
                let mut r = 0;
                while r < rows {
                    match (r + R <= rows, wide) {
                        (true, true) => self.tile::<S, R, C>(r, d),
                        (true, false) => self.tile::<S, R, 1>(r, d),
                        (false, true) => self.tile::<S, 1, C>(r, d),
                        (false, false) => self.tile::<S, 1, 1>(r, d),
                    }
                    r += if r + R <= rows { R } else { 1 };
                }
                d += if wide { C * LANES } else { LANES };
            }
        }
    }

    #[inline(always)]
    unsafe fn tile<S: Simd, const R: usize, const C: usize>(&self, row: usize, dim: usize) {
        // SAFETY: the caller's.
        unsafe {
            let weights = self.weights.add(row * PAGE_TOKENS);
            let mut v = self.v.add(dim * D::BYTES);
            let mut next = self.next_v.wrapping_add(dim * D::BYTES);
            let mut sums = [[S::zero(); C]; R];
            for t in 0..self.tokens {
                if row == 0 {
                    for byte in (0..C * LANES * D::BYTES).step_by(64) {
                        S::prefetch(next.wrapping_add(byte));
                    }
                    next = next.wrapping_add(self.v_stride);
                }
                let mut values = [S::zero(); C];
                for (c, value) in values.iter_mut().enumerate() {
                    *value = D::load::<S>(v.add(c * LANES * D::BYTES));
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let weight = S::splat(*weights.add(r * PAGE_TOKENS + t));
                    for c in 0..C {
                        sums[c] = S::fma(weight, values[c], sums[c]);
                    }
                }
                v = v.add(self.v_stride);
            }
            for r in 0..R {
                let correction = S::splat(self.running[row + r].correction);
                for c in 0..C {
                    let out = self.out.add((row + r) * self.out_stride + dim + c * LANES);
                    S::store(out, S::fma(S::load(out), correction, sums[r][c]));
                }
            }
        }
    }
}
