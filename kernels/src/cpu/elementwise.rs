//! Ops on values one by one.

use super::math;
use super::simd::{Isa, Kernel, LANES, Simd};

/// `out = silu(gate) * up`, where `silu(x) = x / (1 + e^-x)`.
pub(super) fn silu_mul(isa: Isa, gate: &[f32], up: &[f32], out: &mut [f32]) {
    struct SiluMul<'a>(&'a [f32], &'a [f32], &'a mut [f32]);
    impl Kernel for SiluMul<'_> {
        type Output = ();
        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            let SiluMul(gate, up, out) = self;
            let len = out.len();
            assert!(gate.len() == len && up.len() == len);
            let mut i = 0;
            while i < len {
                let count = LANES.min(len - i);
                // SAFETY: `count` values are left from `i` on in all three.
                unsafe {
                    let x = load::<S>(gate.as_ptr().add(i), count);
                    let silu = S::div(
                        x,
                        S::add(S::splat(1.0), math::exp::<S>(S::sub(S::zero(), x))),
                    );
                    let y = S::mul(silu, load::<S>(up.as_ptr().add(i), count));
                    store::<S>(out.as_mut_ptr().add(i), y, count);
                }
                i += LANES;
            }
        }
    }
    // SAFETY: a backend's instruction set is one the processor has.
    unsafe { isa.run(SiluMul(gate, up, out)) }
}

/// `values = 1 / (1 + e^-values)`.
pub(super) fn sigmoid(isa: Isa, values: &mut [f32]) {
    struct Sigmoid<'a>(&'a mut [f32]);
    impl Kernel for Sigmoid<'_> {
        type Output = ();
        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            for chunk in self.0.chunks_mut(LANES) {
                let (at, count) = (chunk.as_mut_ptr(), chunk.len());
                // SAFETY: `count` values at `at`.
                unsafe { store::<S>(at, math::sigmoid::<S>(load::<S>(at, count)), count) }
            }
        }
    }
    // SAFETY: as above.
    unsafe { isa.run(Sigmoid(values)) }
}

/// `values = e^(values - max)` over their sum. Order of the sum: lanes first, then across lanes.
pub(super) fn softmax(isa: Isa, values: &mut [f32]) {
    struct Softmax<'a>(&'a mut [f32], f32);
    impl Kernel for Softmax<'_> {
        type Output = ();
        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            let Softmax(values, max) = self;
            // SAFETY: every chunk holds `chunk.len()` values; lanes beyond are not stored, and
            // zeroed before they are summed.
            unsafe {
                let mut sum = S::zero();
                for chunk in values.chunks_mut(LANES) {
                    let (at, count) = (chunk.as_mut_ptr(), chunk.len());
                    let e = math::exp::<S>(S::sub(load::<S>(at, count), S::splat(max)));
                    store::<S>(at, e, count);
                    sum = S::add(sum, load::<S>(at, count));
                }
                let scale = S::splat(1.0 / S::sum(sum));
                for chunk in values.chunks_mut(LANES) {
                    let (at, count) = (chunk.as_mut_ptr(), chunk.len());
                    store::<S>(at, S::mul(load::<S>(at, count), scale), count);
                }
            }
        }
    }
    let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // SAFETY: as above.
    unsafe { isa.run(Softmax(values, max)) }
}

/// `out += delta`.
pub(super) fn add(out: &mut [f32], delta: &[f32]) {
    assert_eq!(out.len(), delta.len());
    out.iter_mut()
        .zip(delta)
        .for_each(|(out, delta)| *out += delta);
}

/// `out += weight * x`.
pub(super) fn add_scaled(isa: Isa, out: &mut [f32], weight: f32, x: &[f32]) {
    struct AddScaled<'a>(&'a mut [f32], f32, &'a [f32]);
    impl Kernel for AddScaled<'_> {
        type Output = ();
        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            let AddScaled(out, weight, x) = self;
            for (out, x) in out.chunks_mut(LANES).zip(x.chunks(LANES)) {
                let (at, count) = (out.as_mut_ptr(), out.len());
                // SAFETY: both chunks hold `count` values (asserted below).
                unsafe {
                    let y = S::fma(
                        S::splat(weight),
                        load::<S>(x.as_ptr(), count),
                        load::<S>(at, count),
                    );
                    store::<S>(at, y, count);
                }
            }
        }
    }
    assert_eq!(out.len(), x.len());
    // SAFETY: as above.
    unsafe { isa.run(AddScaled(out, weight, x)) }
}

/// # Safety
/// As for [`Simd::load_part`].
#[inline(always)]
pub(super) unsafe fn load<S: Simd>(from: *const f32, count: usize) -> S::V {
    // SAFETY: the caller's.
    unsafe {
        if count == LANES {
            S::load(from)
        } else {
            S::load_part(from, count)
        }
    }
}

/// # Safety
/// As for [`Simd::store_part`].
#[inline(always)]
pub(super) unsafe fn store<S: Simd>(to: *mut f32, v: S::V, count: usize) {
    // SAFETY: the caller's.
    unsafe {
        if count == LANES {
            S::store(to, v)
        } else {
            S::store_part(to, v, count)
        }
    }
}
/// The largest value and its lowest index; NaN if one is NaN.
pub fn arg_max(values: &[f32]) -> (u32, f32) {
    let mut best = (0, f32::NEG_INFINITY);
    for (index, &value) in values.iter().enumerate() {
        if value.is_nan() {
            return (index as u32, value);
        }
        if value > best.1 {
            best = (index as u32, value);
        }
    }
    best
}
