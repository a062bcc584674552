//! Two 256-bit registers a vector.

use std::arch::x86_64::*;

use super::{Kernel, LANES, Simd};

/// See the module.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

/// Lanes 0..8 and 8..16.
#[derive(Clone, Copy)]
pub(crate) struct Pair(__m256, __m256);

/// The function that carries the instruction set.
///
/// # Safety
/// As for [`super::Isa::run`].
#[target_feature(enable = "avx2,fma,f16c")]
#[inline(never)]
pub(super) unsafe fn enter<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: passed on to the caller.
    unsafe { kernel.run::<Avx2>() }
}

/// `i` with `i + 4`, then `i + 2`, `i + 1`.
///
/// # Safety
/// The processor has AVX.
#[inline(always)]
pub(super) unsafe fn sum8(v: __m256) -> f32 {
    // SAFETY: the caller's.
    unsafe {
        let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }
}

// SAFETY of every block below: the processor has AVX2, FMA and F16C and pointers are valid, by the
// trait's contract; every access is unaligned.
impl Simd for Avx2 {
    type V = Pair;

    const ACCUMULATORS: usize = 6;

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: see above; a hint reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
    #[inline(always)]
    unsafe fn zero() -> Pair {
        // SAFETY: see above.
        unsafe { Pair(_mm256_setzero_ps(), _mm256_setzero_ps()) }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Pair {
        // SAFETY: see above.
        unsafe {
            let v = _mm256_set1_ps(value);
            Pair(v, v)
        }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Pair {
        // SAFETY: see above.
        unsafe { Pair(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
    }
    #[inline(always)]
    unsafe fn load_part(from: *const f32, count: usize) -> Pair {
        let mut lanes = [0.0; LANES];
        // SAFETY: see above; `lanes` has sixteen.
        unsafe {
            std::ptr::copy_nonoverlapping(from, lanes.as_mut_ptr(), count.min(LANES));
            Self::load(lanes.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Pair) {
        // SAFETY: see above.
        unsafe {
            _mm256_storeu_ps(to, v.0);
            _mm256_storeu_ps(to.add(8), v.1);
        }
    }
    #[inline(always)]
    unsafe fn store_part(to: *mut f32, v: Pair, count: usize) {
        let mut lanes = [0.0; LANES];
        // SAFETY: see above; `lanes` has sixteen.
        unsafe {
            Self::store(lanes.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), to, count.min(LANES));
        }
    }
    #[inline(always)]
    unsafe fn add(a: Pair, b: Pair) -> Pair {
        // SAFETY: see above.
        unsafe { Pair(_mm256_add_ps(a.0, b.0), _mm256_add_ps(a.1, b.1)) }
    }
    #[inline(always)]
    unsafe fn sub(a: Pair, b: Pair) -> Pair {
        // SAFETY: see above.
        unsafe { Pair(_mm256_sub_ps(a.0, b.0), _mm256_sub_ps(a.1, b.1)) }
    }
    #[inline(always)]
    unsafe fn mul(a: Pair, b: Pair) -> Pair {
        // SAFETY: see above.
        unsafe { Pair(_mm256_mul_ps(a.0, b.0), _mm256_mul_ps(a.1, b.1)) }
    }
    #[inline(always)]
    unsafe fn div(a: Pair, b: Pair) -> Pair {
        // SAFETY: see above.
        unsafe { Pair(_mm256_div_ps(a.0, b.0), _mm256_div_ps(a.1, b.1)) }
    }
    #[inline(always)]
    unsafe fn fma(a: Pair, b: Pair, c: Pair) -> Pair {
        // SAFETY: see above.
        unsafe {
            Pair(
                _mm256_fmadd_ps(a.0, b.0, c.0),
                _mm256_fmadd_ps(a.1, b.1, c.1),
            )
        }
    }
    #[inline(always)]
    unsafe fn max(a: Pair, b: Pair) -> Pair {
        // SAFETY: see above.
        unsafe { Pair(_mm256_max_ps(a.0, b.0), _mm256_max_ps(a.1, b.1)) }
    }
    #[inline(always)]
    unsafe fn min(a: Pair, b: Pair) -> Pair {
        // SAFETY: see above.
        unsafe { Pair(_mm256_min_ps(a.0, b.0), _mm256_min_ps(a.1, b.1)) }
    }
    #[inline(always)]
    unsafe fn round(v: Pair) -> Pair {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        // SAFETY: see above.
        unsafe {
            Pair(
                _mm256_round_ps::<NEAREST>(v.0),
                _mm256_round_ps::<NEAREST>(v.1),
            )
        }
    }
    #[inline(always)]
    unsafe fn exp2_integral(v: Pair) -> Pair {
        #[inline(always)]
        unsafe fn half(v: __m256) -> __m256 {
            // SAFETY: see above.
            unsafe {
                let biased = _mm256_add_epi32(_mm256_cvtps_epi32(v), _mm256_set1_epi32(127));
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
            }
        }
        // SAFETY: see above.
        unsafe { Pair(half(v.0), half(v.1)) }
    }
    #[inline(always)]
    unsafe fn zero_where_lt(x: Pair, limit: f32, a: Pair) -> Pair {
        // SAFETY: see above.
        unsafe {
            let limit = _mm256_set1_ps(limit);
            Pair(
                _mm256_andnot_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(x.0, limit), a.0),
                _mm256_andnot_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(x.1, limit), a.1),
            )
        }
    }
    #[inline(always)]
    unsafe fn sum(v: Pair) -> f32 {
        // SAFETY: see above.
        unsafe { sum8(_mm256_add_ps(v.0, v.1)) }
    }
    #[inline(always)]
    unsafe fn sums(v: &[Pair; 16]) -> Pair {
        let mut lanes = [0.0; LANES];
        // SAFETY: see above.
        unsafe {
            for (lane, v) in lanes.iter_mut().zip(v) {
                *lane = Self::sum(*v);
            }
            Self::load(lanes.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn max_lane(v: Pair) -> f32 {
        // SAFETY: see above.
        unsafe {
            let v = _mm256_max_ps(v.0, v.1);
            let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_shuffle_ps::<1>(v, v)))
        }
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(from: *const u8) -> (Pair, Pair) {
        // SAFETY: see above.
        unsafe {
            let (a, b) = (
                _mm256_loadu_si256(from.cast()),
                _mm256_loadu_si256(from.add(32).cast()),
            );
            let high = _mm256_set1_epi32(0xffff_0000_u32 as i32);
            (
                Pair(
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(a)),
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(b)),
                ),
                Pair(
                    _mm256_castsi256_ps(_mm256_and_si256(a, high)),
                    _mm256_castsi256_ps(_mm256_and_si256(b, high)),
                ),
            )
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Pair {
        #[inline(always)]
        unsafe fn half(from: *const u8) -> __m256 {
            // SAFETY: see above.
            unsafe {
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
            }
        }
        // SAFETY: see above.
        unsafe { Pair(half(from), half(from.add(16))) }
    }
    #[inline(always)]
    unsafe fn store_bf16(to: *mut u8, v: Pair) {
        #[inline(always)]
        unsafe fn rounded(v: __m256) -> __m256i {
            // SAFETY: see above.
            unsafe {
                let bits = _mm256_castps_si256(v);
                let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
                let sum = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
                _mm256_srli_epi32::<16>(sum)
            }
        }
        // SAFETY: see above. packus works within 128-bit halves; the permutation undoes that.
        unsafe {
            let packed = _mm256_packus_epi32(rounded(v.0), rounded(v.1));
            _mm256_storeu_si256(to.cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(packed));
        }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Pair {
        // SAFETY: see above.
        unsafe {
            Pair(
                _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(from.add(16).cast())),
            )
        }
    }
    #[inline(always)]
    unsafe fn load_fp8_fours(from: *const u8) -> [Pair; 4] {
        #[inline(always)]
        unsafe fn half(from: *const u8) -> [__m256; 4] {
            // SAFETY: see above. As in the AVX-512 form.
            unsafe {
                let bytes = _mm256_loadu_si256(from.cast());
                let keep = _mm256_set1_epi16(0x87f0_u16 as i16);
                let high = _mm256_set1_epi32(0xffff_0000_u32 as i32);
                let even = _mm256_srai_epi16::<4>(_mm256_slli_epi16::<8>(bytes));
                let even = _mm256_and_si256(even, keep);
                let odd = _mm256_and_si256(_mm256_srai_epi16::<4>(bytes), keep);
                [
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(even)),
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(odd)),
                    _mm256_castsi256_ps(_mm256_and_si256(even, high)),
                    _mm256_castsi256_ps(_mm256_and_si256(odd, high)),
                ]
            }
        }
        // SAFETY: see above.
        unsafe {
            let (a, b) = (half(from), half(from.add(32)));
            [
                Pair(a[0], b[0]),
                Pair(a[1], b[1]),
                Pair(a[2], b[2]),
                Pair(a[3], b[3]),
            ]
        }
    }
}
