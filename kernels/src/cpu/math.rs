//! The exponential function on sixteen lanes.

use super::simd::Simd;

/// `e^x` within 2 units in the last place (tested: 2 over the normal range); denormal results,
/// 0, infinity and NaN come out as they should.
///
/// `x = n ln 2 + r`; a polynomial of degree 7 gives `e^r` on |r| <= ln 2 / 2 (coefficients of the
/// Cephes library's `expf`).
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub(super) unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    const COEFFICIENTS: [f32; 6] = [
        1.987_569_1e-4,
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ];
    // ln 2 in two parts: the first has few bits, so that its product with n is exact.
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // SAFETY: the caller's.
    unsafe {
        // Beyond these the result is infinity or zero anyway. NaN passes (second argument).
        let clamped = S::max(S::splat(-105.0), S::min(S::splat(89.0), x));
        let n = S::round(S::mul(clamped, S::splat(std::f32::consts::LOG2_E)));
        let r = S::fma(n, S::splat(-LN2_HIGH), clamped);
        let r = S::fma(n, S::splat(-LN2_LOW), r);
        let mut p = S::splat(COEFFICIENTS[0]);
        for c in &COEFFICIENTS[1..] {
            p = S::fma(p, r, S::splat(*c));
        }
        let p = S::add(S::fma(p, S::mul(r, r), r), S::splat(1.0));
        // 2^n in two factors: n alone may lie outside the exponents of normal numbers.
        let half = S::round(S::mul(n, S::splat(0.5)));
        let result = S::mul(
            S::mul(p, S::exp2_integral(half)),
            S::exp2_integral(S::sub(n, half)),
        );
        S::zero_where_lt(x, -104.0, result)
    }
}

/// `1 / (1 + e^-x)`.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub(super) unsafe fn sigmoid<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller's.
    unsafe {
        let one = S::splat(1.0);
        S::div(one, S::add(one, exp::<S>(S::sub(S::zero(), x))))
    }
}
