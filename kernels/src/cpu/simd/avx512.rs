//! One 512-bit register a vector.

use std::arch::x86_64::*;

use super::{Kernel, Simd};

/// See the module.
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

/// The function that carries the instruction set.
///
/// # Safety
/// As for [`super::Isa::run`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
#[inline(never)]
pub(super) unsafe fn enter<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: passed on to the caller.
    unsafe { kernel.run::<Avx512>() }
}

// SAFETY of every block below: the processor has AVX-512 and pointers are valid, by the trait's
// contract; every access is unaligned.
impl Simd for Avx512 {
    type V = __m512;

    const ACCUMULATORS: usize = 24;

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: see above; a hint reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
    #[inline(always)]
    unsafe fn zero() -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn load_part(from: *const f32, count: usize) -> __m512 {
        // SAFETY: see above; lanes outside the mask are not read.
        unsafe { _mm512_maskz_loadu_ps(mask(count), from) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: __m512) {
        // SAFETY: see above.
        unsafe { _mm512_storeu_ps(to, v) }
    }
    #[inline(always)]
    unsafe fn store_part(to: *mut f32, v: __m512, count: usize) {
        // SAFETY: see above; lanes outside the mask are not written.
        unsafe { _mm512_mask_storeu_ps(to, mask(count), v) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn round(v: __m512) -> __m512 {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        // SAFETY: see above.
        unsafe { _mm512_roundscale_ps::<NEAREST>(v) }
    }
    #[inline(always)]
    unsafe fn exp2_integral(v: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe {
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(v), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
        }
    }
    #[inline(always)]
    unsafe fn zero_where_lt(x: __m512, limit: f32, a: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe {
            let below = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(x, _mm512_set1_ps(limit));
            _mm512_maskz_mov_ps(!below, a)
        }
    }
    #[inline(always)]
    unsafe fn sum(v: __m512) -> f32 {
        // SAFETY: see above.
        unsafe {
            let eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            super::avx2::sum8(eight)
        }
    }
    #[inline(always)]
    unsafe fn sums(v: &[__m512; 16]) -> __m512 {
        // SAFETY: see above. Each step folds two vectors into one and keeps `sum`'s order.
        unsafe {
            // Lane i with i + 8: [a 0..8 | b 0..8].
            let mut eight = [_mm512_setzero_ps(); 8];
            for (i, out) in eight.iter_mut().enumerate() {
                let (a, b) = (v[2 * i], v[2 * i + 1]);
                *out = _mm512_add_ps(
                    _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b),
                    _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b),
                );
            }
            // i with i + 4: blocks of four lanes are [a, b, c, d] in the order of the vectors.
            let mut four = [_mm512_setzero_ps(); 4];
            for (i, out) in four.iter_mut().enumerate() {
                let (a, b) = (eight[2 * i], eight[2 * i + 1]);
                *out = _mm512_add_ps(
                    _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b),
                    _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b),
                );
            }
            // i with i + 2, inside blocks: [a0 a1 b0 b1] where b is four vectors later.
            let mut two = [_mm512_setzero_ps(); 2];
            for (i, out) in two.iter_mut().enumerate() {
                let (a, b) = (four[2 * i], four[2 * i + 1]);
                *out = _mm512_add_ps(
                    _mm512_shuffle_ps::<0b01_00_01_00>(a, b),
                    _mm512_shuffle_ps::<0b11_10_11_10>(a, b),
                );
            }
            let one = _mm512_add_ps(
                _mm512_shuffle_ps::<0b10_00_10_00>(two[0], two[1]),
                _mm512_shuffle_ps::<0b11_01_11_01>(two[0], two[1]),
            );
            // Lane 4 * block + i now holds vector block + 4 * i.
            let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            _mm512_permutexvar_ps(order, one)
        }
    }
    #[inline(always)]
    unsafe fn max_lane(v: __m512) -> f32 {
        // SAFETY: see above.
        unsafe { _mm512_reduce_max_ps(v) }
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(from: *const u8) -> (__m512, __m512) {
        // SAFETY: see above.
        unsafe {
            let pairs = _mm512_loadu_si512(from.cast());
            let second = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32 as i32));
            (
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)),
                _mm512_castsi512_ps(second),
            )
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> __m512 {
        // SAFETY: see above.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(to: *mut u8, v: __m512) {
        // SAFETY: see above.
        unsafe {
            let bits = _mm512_castps_si512(v);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            _mm256_storeu_si256(
                to.cast(),
                _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded)),
            );
        }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_fp8_fours(from: *const u8) -> [__m512; 4] {
        // SAFETY: see above. Half-words first: the shift spreads the sign over five bits, of which
        // the mask keeps the highest.
        unsafe {
            let bytes = _mm512_loadu_si512(from.cast());
            let keep = _mm512_set1_epi16(0x87f0_u16 as i16);
            let high = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            let even = _mm512_srai_epi16::<4>(_mm512_slli_epi16::<8>(bytes));
            let even = _mm512_and_si512(even, keep);
            let odd = _mm512_and_si512(_mm512_srai_epi16::<4>(bytes), keep);
            [
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(even)),
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(odd)),
                _mm512_castsi512_ps(_mm512_and_si512(even, high)),
                _mm512_castsi512_ps(_mm512_and_si512(odd, high)),
            ]
        }
    }
}

/// The lowest `count` lanes.
#[inline(always)]
fn mask(count: usize) -> __mmask16 {
    if count >= 16 { !0 } else { (1 << count) - 1 }
}
