//! Sixteen float32 lanes, whatever the processor.
//!
//! A kernel is written once over [`Simd`] and compiled for each instruction set. Lane order and
//! the order of every reduction belong to the kernel, not to the instruction set, so AVX2 and
//! AVX-512 agree bit for bit; the portable form rounds products and sums separately on processors
//! without a fused multiply-add, and agrees with itself.
//!
//! Every method is `inline(always)`: it becomes part of the entry function that carries the
//! instruction set's `target_feature` (see [`Isa::run`]). A method that were a call of its own
//! would pass its vectors through memory.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

pub(crate) use portable::fp8_exp_120;

/// Lanes of a vector, columns of a weight panel.
pub(crate) const LANES: usize = 16;

/// An instruction set that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// AVX-512 F, BW, DQ, VL (with F16C and FMA): one register a vector, 32 registers.
    Avx512,
    /// AVX2, FMA and F16C: two registers a vector, 16 registers.
    Avx2,
    /// Plain Rust that the compiler vectorises; also every processor other than x86-64.
    Portable,
}

impl Isa {
    /// The fastest form this processor has.
    pub fn detect() -> Isa {
        [Isa::Avx512, Isa::Avx2]
            .into_iter()
            .find(|isa| isa.available())
            .unwrap_or(Isa::Portable)
    }

    /// Whether this processor can run it.
    pub fn available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                Isa::Avx2.available()
                    && std::arch::is_x86_feature_detected!("avx512f")
                    && std::arch::is_x86_feature_detected!("avx512bw")
                    && std::arch::is_x86_feature_detected!("avx512dq")
                    && std::arch::is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                std::arch::is_x86_feature_detected!("avx2")
                    && std::arch::is_x86_feature_detected!("fma")
                    && std::arch::is_x86_feature_detected!("f16c")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx512 | Isa::Avx2 => false,
            Isa::Portable => true,
        }
    }

    /// Runs a kernel compiled for this instruction set.
    ///
    /// # Safety
    /// The processor has it ([`available`](Self::available)), and what the kernel asks holds.
    #[inline]
    pub(crate) unsafe fn run<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: passed on to the caller.
        unsafe {
            match self {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => avx512::enter(kernel),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => avx2::enter(kernel),
                #[cfg(not(target_arch = "x86_64"))]
                Isa::Avx512 | Isa::Avx2 => kernel.run::<portable::Portable>(),
                Isa::Portable => kernel.run::<portable::Portable>(),
            }
        }
    }
}

/// Code over sixteen lanes: its fields are the arguments.
pub(crate) trait Kernel {
    type Output;

    /// Must be `inline(always)`, as must be everything it calls that takes or returns vectors.
    ///
    /// # Safety
    /// The processor has `S`; pointers among the fields are as the kernel's type says.
    unsafe fn run<S: Simd>(self) -> Self::Output;
}

/// Sixteen lanes of one instruction set.
///
/// All methods are unsafe for the same two reasons: the processor must have the instruction set,
/// and pointers must be valid for what is read or written (of any alignment).
#[allow(clippy::missing_safety_doc)]
pub(crate) trait Simd: Copy {
    type V: Copy;

    /// Accumulators (vectors) that fit in registers next to a kernel's other values.
    const ACCUMULATORS: usize;

    /// Begins to fetch the cache line of `at`, which may be any address.
    unsafe fn prefetch(at: *const u8);
    unsafe fn zero() -> Self::V;
    unsafe fn splat(value: f32) -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    /// Lanes from `count` on are zero; nothing is read there.
    unsafe fn load_part(from: *const f32, count: usize) -> Self::V;
    unsafe fn store(to: *mut f32, v: Self::V);
    unsafe fn store_part(to: *mut f32, v: Self::V, count: usize);

    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger, lane by lane; `b` where either is NaN.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// The smaller, lane by lane; `b` where either is NaN.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// To the nearest integer, ties to even. For |v| < 2^22.
    unsafe fn round(v: Self::V) -> Self::V;
    /// `2^v` for integral `v` in `-126..=127`.
    unsafe fn exp2_integral(v: Self::V) -> Self::V;
    /// Zero where `x < limit`, else `a` (also where `x` is NaN).
    unsafe fn zero_where_lt(x: Self::V, limit: f32, a: Self::V) -> Self::V;

    /// The sum of all lanes, by halves: `i` with `i + 8`, then `i + 4`, `i + 2`, `i + 1`.
    unsafe fn sum(v: Self::V) -> f32;
    /// Lane `i` is `sum(v[i])`.
    unsafe fn sums(v: &[Self::V; 16]) -> Self::V;
    unsafe fn max_lane(v: Self::V) -> f32;

    /// 32 bf16 values in pairs a lane, `[lane][2]`: the first of every pair, and the second.
    unsafe fn load_bf16_pairs(from: *const u8) -> (Self::V, Self::V);
    /// 16 consecutive bf16 values.
    unsafe fn load_bf16(from: *const u8) -> Self::V;
    /// Rounds to the nearest bf16, ties to even. Finite values only.
    unsafe fn store_bf16(to: *mut u8, v: Self::V);
    /// 16 consecutive f16 values.
    unsafe fn load_f16(from: *const u8) -> Self::V;
    /// 64 e4m3 values in fours a lane, `[lane][4]`, each times 2^-120: the first of every four, the
    /// second, third and fourth. Not for NaN: packing refuses it.
    ///
    /// A byte's exponent and fraction, put where a float32 has them, mean the same number but for the
    /// exponents' biases (7 and 127); subnormals become float32 subnormals. All exact.
    unsafe fn load_fp8_fours(from: *const u8) -> [Self::V; 4];
}

#[cfg(test)]
mod tests;
