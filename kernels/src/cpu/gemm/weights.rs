//! How kernels read weights of each format: two neighbouring inputs at a time.

use crate::cpu::simd::Simd;

/// Values of a panel as vectors of sixteen columns.
pub(super) trait Weights {
    /// Bytes of sixteen columns of two inputs.
    const PAIR_BYTES: usize;

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
    ($name:ident, $pair_bytes:expr, |$from:ident| $pair:expr, $single:expr) => {
        pub(super) struct $name;
        impl Weights for $name {
            const PAIR_BYTES: usize = $pair_bytes;
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
    |from| (S::load(from.cast()), S::load(from.add(64).cast())),
    S::load(from.cast())
);
weights!(
    F16,
    64,
    |from| (S::load_f16(from), S::load_f16(from.add(32))),
    S::load_f16(from)
);
weights!(
    Bf16,
    64,
    |from| S::load_bf16_pairs(from),
    S::load_bf16_pairs(from).0
);
weights!(
    Fp8,
    32,
    |from| (S::load_fp8_div_256(from), S::load_fp8_div_256(from.add(16))),
    S::load_fp8_div_256(from)
);

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
