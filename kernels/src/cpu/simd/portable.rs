//! Plain Rust over arrays of sixteen, written so that the compiler vectorises it.

use super::{LANES, Simd};

/// See the module.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

type V = [f32; LANES];

/// An e4m3 value times 2^-120.
#[inline(always)]
pub(crate) const fn fp8_exp_120(byte: u8) -> f32 {
    f32::from_bits((byte as u32 & 0x80) << 24 | (byte as u32 & 0x7f) << 20)
}

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> V {
    let mut out = [0.0; LANES];
    for (i, lane) in out.iter_mut().enumerate() {
        *lane = f(i);
    }
    out
}

/// Fused where the target always has the instruction; elsewhere a call to the maths library
/// would cost a hundred times the multiplication.
#[inline(always)]
fn mul_add(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
        a.mul_add(b, c)
    } else {
        a * b + c
    }
}

// SAFETY of every block below: pointers are valid for the sixteen (or `count`) values by the
// trait's contract, and are read and written unaligned.
impl Simd for Portable {
    type V = V;

    const ACCUMULATORS: usize = if cfg!(target_arch = "aarch64") { 6 } else { 3 };

    #[inline(always)]
    unsafe fn prefetch(_at: *const u8) {}
    #[inline(always)]
    unsafe fn zero() -> V {
        [0.0; LANES]
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> V {
        [value; LANES]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> V {
        // SAFETY: see above.
        unsafe { from.cast::<V>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_part(from: *const f32, count: usize) -> V {
        let mut out = [0.0; LANES];
        // SAFETY: see above.
        unsafe { std::ptr::copy_nonoverlapping(from, out.as_mut_ptr(), count.min(LANES)) };
        out
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: V) {
        // SAFETY: see above.
        unsafe { to.cast::<V>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn store_part(to: *mut f32, v: V, count: usize) {
        // SAFETY: see above.
        unsafe { std::ptr::copy_nonoverlapping(v.as_ptr(), to, count.min(LANES)) }
    }
    #[inline(always)]
    unsafe fn add(a: V, b: V) -> V {
        each(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: V, b: V) -> V {
        each(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: V, b: V) -> V {
        each(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn div(a: V, b: V) -> V {
        each(|i| a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn fma(a: V, b: V, c: V) -> V {
        each(|i| mul_add(a[i], b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn max(a: V, b: V) -> V {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn min(a: V, b: V) -> V {
        each(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn round(v: V) -> V {
        // Adding 1.5 * 2^23 leaves no room for a fraction; the addition itself rounds to even.
        const MAGIC: f32 = 12_582_912.0;
        each(|i| (v[i] + MAGIC) - MAGIC)
    }
    #[inline(always)]
    unsafe fn exp2_integral(v: V) -> V {
        // The sum's low bits are the integer: 1.5 * 2^23 has a unit of one.
        const MAGIC: f32 = 12_582_912.0;
        each(|i| {
            let integer = (v[i] + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits());
            f32::from_bits(integer.wrapping_add(127) << 23)
        })
    }
    #[inline(always)]
    unsafe fn zero_where_lt(x: V, limit: f32, a: V) -> V {
        each(|i| if x[i] < limit { 0.0 } else { a[i] })
    }
    #[inline(always)]
    unsafe fn sum(v: V) -> f32 {
        let mut v = v;
        let mut half = LANES / 2;
        while half > 0 {
            for i in 0..half {
                v[i] += v[i + half];
            }
            half /= 2;
        }
        v[0]
    }
    #[inline(always)]
    unsafe fn sums(v: &[V; 16]) -> V {
        // SAFETY: nothing is asked.
        each(|i| unsafe { Self::sum(v[i]) })
    }
    #[inline(always)]
    unsafe fn max_lane(v: V) -> f32 {
        v.into_iter()
            .fold(f32::NEG_INFINITY, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(from: *const u8) -> (V, V) {
        // SAFETY: see above.
        let pairs = unsafe { from.cast::<[[u16; 2]; LANES]>().read_unaligned() };
        (
            each(|i| f32::from_bits(u32::from(u16::from_le(pairs[i][0])) << 16)),
            each(|i| f32::from_bits(u32::from(u16::from_le(pairs[i][1])) << 16)),
        )
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> V {
        // SAFETY: see above.
        let values = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        each(|i| f32::from_bits(u32::from(u16::from_le(values[i])) << 16))
    }
    #[inline(always)]
    unsafe fn store_bf16(to: *mut u8, v: V) {
        let mut out = [0u16; LANES];
        for (out, value) in out.iter_mut().zip(v) {
            let bits = value.to_bits();
            *out = ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16;
        }
        // SAFETY: see above.
        unsafe {
            to.cast::<[u16; LANES]>()
                .write_unaligned(out.map(u16::to_le))
        }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> V {
        // SAFETY: see above.
        let values = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        each(|i| half::f16::from_bits(u16::from_le(values[i])).to_f32_const())
    }
    #[inline(always)]
    unsafe fn load_fp8_fours(from: *const u8) -> [V; 4] {
        // SAFETY: see above.
        let fours = unsafe { from.cast::<[u32; LANES]>().read_unaligned() };
        // A byte at the top of its word; the shift spreads the sign over five bits, of which the mask
        // keeps the highest.
        std::array::from_fn(|j| {
            each(|i| {
                let top = (u32::from_le(fours[i]) << (24 - 8 * j)) as i32;
                f32::from_bits((top >> 4) as u32 & 0x87f0_0000)
            })
        })
    }
}
