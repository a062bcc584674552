use super::*;
use crate::cpu::math;

/// Calls a closure-like kernel on every instruction set of this processor.
fn each_isa<K: Kernel>(kernel: impl Fn() -> K) -> Vec<(Isa, K::Output)> {
    [Isa::Avx512, Isa::Avx2, Isa::Portable]
        .into_iter()
        .filter(|isa| isa.available())
        // SAFETY: available; the kernels below use arrays of sixteen.
        .map(|isa| (isa, unsafe { isa.run(kernel()) }))
        .collect()
}

/// `e^x` of sixteen values.
struct Exp([f32; LANES]);

impl Kernel for Exp {
    type Output = [f32; LANES];
    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        // SAFETY: sixteen values.
        unsafe { S::store(out.as_mut_ptr(), math::exp::<S>(S::load(self.0.as_ptr()))) };
        out
    }
}

#[test]
fn exp_is_within_two_units_in_the_last_place() {
    let check = |x: f32| {
        for (isa, out) in each_isa(|| Exp([x; LANES])) {
            let want = f64::from(x).exp();
            let nearest = want as f32;
            let unit = f64::from(nearest.next_up() - nearest);
            let error = (f64::from(out[3]) - want).abs();
            let fine = if nearest.is_infinite() {
                out[3].is_infinite()
            } else {
                error <= 2.0 * unit
            };
            assert!(fine, "{isa:?}: exp({x}) = {}, expected {want:e}", out[3]);
        }
    };
    let mut x = -110.0f32;
    while x < 95.0 {
        check(x);
        x += 0.000_731;
    }
    [
        0.0, -0.0, 1e-30, 88.722_83, 88.723, -87.336_54, -103.97, -104.1, 1e30, -1e30,
    ]
    .into_iter()
    .for_each(check);
    for (isa, out) in each_isa(|| Exp([f32::NAN; LANES])) {
        assert!(out[0].is_nan(), "{isa:?}");
    }
    for (isa, out) in each_isa(|| Exp([f32::NEG_INFINITY; LANES])) {
        assert_eq!(out[0].to_bits(), 0, "{isa:?}");
    }
}

/// All bytes and half-words through the widening loads.
#[test]
fn widening_is_exact() {
    struct Widen<'a>(&'a [u8]);
    impl Kernel for Widen<'_> {
        /// As f16, bf16, bf16 pairs and fours of fp8.
        type Output = [Vec<f32>; 4];
        #[inline(always)]
        unsafe fn run<S: Simd>(self) -> [Vec<f32>; 4] {
            let mut out = [(); 4].map(|()| Vec::new());
            let mut push = |i: usize, v: S::V| {
                let mut lanes = [0.0; LANES];
                // SAFETY: sixteen values.
                unsafe { S::store(lanes.as_mut_ptr(), v) };
                out[i].extend(lanes);
            };
            // SAFETY: each load stays inside its chunk.
            unsafe {
                for bytes in self.0.chunks_exact(32) {
                    push(0, S::load_f16(bytes.as_ptr()));
                    push(1, S::load_bf16(bytes.as_ptr()));
                }
                for bytes in self.0.chunks_exact(64) {
                    let (first, second) = S::load_bf16_pairs(bytes.as_ptr());
                    push(2, first);
                    push(2, second);
                    S::load_fp8_fours(bytes.as_ptr())
                        .into_iter()
                        .for_each(|v| push(3, v));
                }
            }
            out
        }
    }
    let words: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
    for (isa, [f16, bf16, pairs, fours]) in each_isa(|| Widen(&words)) {
        for word in 0..=u16::MAX {
            let i = usize::from(word);
            assert!(
                same(f16[i], half::f16::from_bits(word).to_f32()),
                "{isa:?}: f16 {word:#x}"
            );
            assert!(
                same(bf16[i], half::bf16::from_bits(word).to_f32()),
                "{isa:?}: bf16 {word:#x}"
            );
            let pair = i / 32 * 32 + i % 32 / 2 + i % 2 * 16;
            assert!(same(pairs[pair], bf16[i]), "{isa:?}: pair {word:#x}");
        }
        for (i, byte) in words.iter().enumerate() {
            let four = i / 64 * 64 + i % 64 / 4 + i % 4 * 16;
            assert!(
                same(fours[four], fp8_exp_120(*byte)),
                "{isa:?}: fp8 {byte:#x}"
            );
        }
    }
}

#[test]
fn fp8_is_e4m3() {
    let one = 2f32.powi(-120);
    for (byte, value) in [
        (0x00, 0.0),
        (0x38, 1.0),
        (0x01, 2f32.powi(-9)),
        (0x07, 7.0 / 512.0),
        (0x7e, 448.0),
        (0xfe, -448.0),
    ] {
        assert_eq!(fp8_exp_120(byte), value * one);
    }
}

#[test]
fn bf16_rounds_to_nearest_even() {
    struct Narrow([f32; LANES]);
    impl Kernel for Narrow {
        type Output = [u16; LANES];
        #[inline(always)]
        unsafe fn run<S: Simd>(self) -> [u16; LANES] {
            let mut out = [0u16; LANES];
            // SAFETY: sixteen values.
            unsafe { S::store_bf16(out.as_mut_ptr().cast(), S::load(self.0.as_ptr())) };
            out
        }
    }
    for seed in 0..4000u32 {
        let x: [f32; LANES] = std::array::from_fn(|i| {
            let bits = (seed * 16 + i as u32).wrapping_mul(2_654_435_761);
            // Every fourth one lies exactly between two bf16 values.
            let bits = if i % 4 == 0 {
                bits & 0xffff_0000 | 0x8000
            } else {
                bits
            };
            let value = f32::from_bits(bits);
            if value.is_finite() && value.abs() < 3e38 {
                value
            } else {
                1.0
            }
        });
        for (isa, out) in each_isa(|| Narrow(x)) {
            for (x, out) in x.iter().zip(out) {
                assert_eq!(out, half::bf16::from_f32(*x).to_bits(), "{isa:?}: {x:e}");
            }
        }
    }
}

#[test]
fn sums_have_one_order() {
    struct Sums([[f32; LANES]; 16]);
    impl Kernel for Sums {
        type Output = ([f32; LANES], [f32; LANES]);
        #[inline(always)]
        unsafe fn run<S: Simd>(self) -> ([f32; LANES], [f32; LANES]) {
            let mut together = [0.0; LANES];
            // SAFETY: sixteen values.
            unsafe {
                let mut v = [S::zero(); 16];
                for (v, values) in v.iter_mut().zip(&self.0) {
                    *v = S::load(values.as_ptr());
                }
                S::store(together.as_mut_ptr(), S::sums(&v));
                (together, v.map(|v| S::sum(v)))
            }
        }
    }
    let values = std::array::from_fn(|i| {
        std::array::from_fn(|j| ((i * 16 + j) as f32 * 0.7391).sin() * 1e3)
    });
    let all = each_isa(|| Sums(values));
    for (isa, (together, alone)) in &all {
        assert_eq!(together, alone, "{isa:?}");
        assert_eq!(together, &all[0].1.0, "{isa:?} and {:?}", all[0].0);
    }
}

#[test]
fn parts_touch_nothing_beyond() {
    struct Part<'a>(&'a [f32], &'a mut [f32]);
    impl Kernel for Part<'_> {
        type Output = ();
        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            // SAFETY: `0.len()` values.
            unsafe {
                S::store_part(
                    self.1.as_mut_ptr(),
                    S::load_part(self.0.as_ptr(), self.0.len()),
                    self.0.len(),
                )
            }
        }
    }
    for isa in [Isa::Avx512, Isa::Avx2, Isa::Portable]
        .into_iter()
        .filter(|isa| isa.available())
    {
        for count in 0..=16 {
            let from: Vec<f32> = (0..count).map(|i| i as f32 + 1.0).collect();
            let mut to = [-1.0; 20];
            // SAFETY: available.
            unsafe { isa.run(Part(&from, &mut to)) };
            assert_eq!(to[..count], from);
            assert!(to[count..].iter().all(|v| *v == -1.0));
        }
    }
}
