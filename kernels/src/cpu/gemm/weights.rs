//! How kernels read weights of each format: four neighbouring inputs at a time.

use crate::cpu::simd::{LANES, Simd};

/// Values of a panel as vectors of sixteen columns.
pub(super) trait Weights {
    /// Bytes of sixteen columns of four inputs.
    const BYTES: usize;
    /// Accumulators to leave free for widening when four panels are in work (found by measuring:
    /// beyond, the compiler spills).
    const TEMPORARIES: usize;
    /// Whether so much is computed a byte that the processor does not look far enough ahead for
    /// memory to keep up; four inputs are one cache line then.
    const FETCH: bool = Self::BYTES == 64;

    /// Sixteen columns of each of four neighbouring inputs.
    ///
    /// # Safety
    /// As for [`Simd`]; `from` holds `BYTES`.
    unsafe fn four<S: Simd>(from: *const u8) -> [S::V; 4];
}

macro_rules! weights {
    ($name:ident, $bytes:expr, $temporaries:expr, |$from:ident| $load:expr) => {
        pub(super) struct $name;
        impl Weights for $name {
            const BYTES: usize = 4 * LANES * $bytes;
            const TEMPORARIES: usize = $temporaries;
            #[inline(always)]
            unsafe fn four<S: Simd>($from: *const u8) -> [S::V; 4] {
                // SAFETY: the caller's; all inside `BYTES`.
                unsafe { $load }
            }
        }
    };
}

weights!(F32, 4, 0, |from| {
    let from = from.cast::<f32>();
    [
        S::load(from),
        S::load(from.add(16)),
        S::load(from.add(32)),
        S::load(from.add(48)),
    ]
});
weights!(F16, 2, 0, |from| {
    [
        S::load_f16(from),
        S::load_f16(from.add(32)),
        S::load_f16(from.add(64)),
        S::load_f16(from.add(96)),
    ]
});
weights!(Bf16, 2, 0, |from| {
    let (a, b) = S::load_bf16_pairs(from);
    let (c, d) = S::load_bf16_pairs(from.add(64));
    [a, b, c, d]
});
weights!(Fp8, 1, 12, |from| S::load_fp8_fours(from));

/// Evaluates `$call` with `$W` standing for a format's [`Weights`].
macro_rules! with_format {
    ($format:expr, $W:ident => $call:expr) => {
        match $format {
            Format::F32 => {
                type $W = crate::cpu::gemm::weights::F32;
                $call
            }
            Format::F16 => {
                type $W = crate::cpu::gemm::weights::F16;
                $call
            }
            Format::Bf16 => {
                type $W = crate::cpu::gemm::weights::Bf16;
                $call
            }
            Format::Fp8 => {
                type $W = crate::cpu::gemm::weights::Fp8;
                $call
            }
        }
    };
}
pub(super) use with_format;
