//! RMSNorm.

use super::elementwise::{load, store};
use super::simd::{Isa, Kernel, LANES, Simd};

/// `x / sqrt(mean(x^2) + eps) * weight`, in place.
pub(super) fn rms_norm(isa: Isa, values: &mut [f32], weight: &[f32], eps: f32) {
    let len = values.len();
    let at = values.as_mut_ptr();
    // SAFETY: `at` holds `len` values, read before they are written.
    unsafe {
        isa.run(RmsNorm {
            from: at,
            to: at,
            len,
            weight,
            eps,
        })
    }
}

/// [`rms_norm`] of `x` into `out`.
pub(super) fn rms_norm_into(isa: Isa, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert_eq!(x.len(), out.len());
    // SAFETY: both hold `x.len()` values.
    unsafe {
        isa.run(RmsNorm {
            from: x.as_ptr(),
            to: out.as_mut_ptr(),
            len: x.len(),
            weight,
            eps,
        })
    }
}

/// `from` and `to` hold `len` values; they may be the same.
struct RmsNorm<'a> {
    from: *const f32,
    to: *mut f32,
    len: usize,
    weight: &'a [f32],
    eps: f32,
}

impl Kernel for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let RmsNorm {
            from,
            to,
            len,
            weight,
            eps,
        } = self;
        assert_eq!(weight.len(), len);
        // SAFETY: every access is to `count` values from `i` on, `i + count <= len`.
        unsafe {
            // Four sums take turns, so that additions overlap; their order depends on `len` alone.
            let mut sums = [S::zero(); 4];
            for (turn, i) in (0..len).step_by(LANES).enumerate() {
                let x = load::<S>(from.add(i), LANES.min(len - i));
                sums[turn % 4] = S::fma(x, x, sums[turn % 4]);
            }
            let squares = S::sum(S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3])));
            let scale = S::splat(1.0 / (squares / len as f32 + eps).sqrt());
            for i in (0..len).step_by(LANES) {
                let count = LANES.min(len - i);
                let x = S::mul(load::<S>(from.add(i), count), scale);
                store::<S>(
                    to.add(i),
                    S::mul(x, load::<S>(weight.as_ptr().add(i), count)),
                    count,
                );
            }
        }
    }
}
