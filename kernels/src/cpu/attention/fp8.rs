//! Latent rows in eight bits: how they are written, and read as float32.
//!
//! A row is its latent values as e4m3, then a float32 scale for every [`BLOCK`] of them, then the
//! rotated values in bf16: 512 + 16 + 128 = 656 bytes for DeepSeek-V3. Rotated values are kept as they
//! are because attention is sensitive to position.

use millrace_model::fp8::E4M3_MAX as LARGEST;

use crate::FP8_BLOCK as BLOCK;
use crate::cpu::simd::{Kernel, Simd, fp8_exp_120};

/// An e4m3's exponent and fraction, put where a float32 has them, are the number times 2^-120: the
/// biases are 7 and 127. Subnormals become float32 subnormals.
const BIAS: f32 = f32::from_bits((127 - 120) << 23);
const UNBIAS: f32 = f32::from_bits((127 + 120) << 23);

/// Writes a row.
pub(super) struct Encode<'a> {
    pub values: &'a [f32],
    pub latent: usize,
    /// The row, of as many bytes as the layout says.
    pub to: &'a mut [u8],
}

impl Kernel for Encode<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (latent, rotated) = self.values.split_at(self.latent);
        let (codes, rest) = self.to.split_at_mut(self.latent);
        let (scales, last) = rest.split_at_mut(4 * latent.len().div_ceil(BLOCK));
        let blocks = latent.chunks(BLOCK).zip(codes.chunks_mut(BLOCK));
        for ((values, codes), to) in blocks.zip(scales.as_chunks_mut().0) {
            let largest = values
                .iter()
                .fold(0.0f32, |max, value| max.max(value.abs()));
            // A block of zeros has any scale.
            let scale = if largest > 0.0 {
                largest / LARGEST
            } else {
                1.0
            };
            *to = scale.to_le_bytes();
            for (code, value) in codes.iter_mut().zip(values) {
                *code = encode(value / scale);
            }
        }
        for (to, value) in last.as_chunks_mut().0.iter_mut().zip(rotated) {
            *to = half::bf16::from_f32(*value).to_le_bytes();
        }
    }
}

/// To the nearest e4m3, ties to even; what is larger than the largest becomes that.
#[inline(always)]
fn encode(value: f32) -> u8 {
    let bits = (value.abs().min(LARGEST) * BIAS).to_bits();
    let rounded = (bits + 0x7_ffff + (bits >> 20 & 1)) >> 20;
    rounded as u8 | (value.to_bits() >> 31 << 7) as u8
}

/// Reads the first `to.len()` values of a row.
pub(super) struct Decode<'a> {
    pub from: &'a [u8],
    pub latent: usize,
    pub to: &'a mut [f32],
}

impl Kernel for Decode<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (codes, rest) = self.from.split_at(self.latent);
        let (scales, last) = rest.split_at(4 * self.latent.div_ceil(BLOCK));
        let (latent, rotated) = self.to.split_at_mut(self.latent.min(self.to.len()));
        let blocks = latent.chunks_mut(BLOCK).zip(codes.chunks(BLOCK));
        for ((values, codes), scale) in blocks.zip(scales.as_chunks().0) {
            let scale = f32::from_le_bytes(*scale);
            for (value, code) in values.iter_mut().zip(codes) {
                *value = decode(*code) * scale;
            }
        }
        for (value, from) in rotated.iter_mut().zip(last.as_chunks().0) {
            *value = half::bf16::from_le_bytes(*from).to_f32();
        }
    }
}

#[inline(always)]
fn decode(code: u8) -> f32 {
    fp8_exp_120(code) * UNBIAS
}

#[cfg(test)]
mod tests {
    use millrace_model::fp8::{E4M3, e4m3_is_nan};

    use super::*;

    #[test]
    fn every_number_decodes_to_itself_and_back() {
        for code in (0..=255u8).filter(|code| !e4m3_is_nan(*code)) {
            let value = E4M3[usize::from(code)];
            assert_eq!(decode(code).to_bits(), value.to_bits(), "{code:#04x}");
            assert_eq!(encode(value), code);
        }
    }

    #[test]
    fn values_in_between_go_to_the_nearest() {
        let finite: Vec<f32> = E4M3.iter().copied().filter(|v| v.is_finite()).collect();
        for i in 0..200_000u32 {
            // From far below the smallest to above the largest, of both signs.
            let value =
                f32::from_bits(0x3500_0000 + i * 0x0000_0fb7) * if i % 2 == 0 { 1.0 } else { -1.0 };
            let got = decode(encode(value));
            let nearest = finite
                .iter()
                .map(|v| (v - value).abs())
                .fold(f32::MAX, f32::min);
            assert_eq!((got - value).abs(), nearest, "{value}");
        }
        assert_eq!(decode(encode(1e9)), LARGEST);
        assert_eq!(decode(encode(-1e9)), -LARGEST);
    }
}
