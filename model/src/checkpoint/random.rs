//! Weights that nobody trained.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::OnceLock;

use super::Dtype;
use crate::config::Fp8Config;

/// Tensors begin anywhere in one buffer a type, which repeats what it holds as often as it has to.
#[derive(Debug)]
pub(super) struct Random {
    fp8: Option<Fp8Config>,
    narrow: Buffer,
    wide: Buffer,
    norms: Buffer,
    scales: Buffer,
}

/// Bytes of a type, as many as were ever needed. It grows by new memory and never moves: tensors borrow it.
#[derive(Debug, Default)]
struct Buffer([OnceLock<Vec<u8>>; SIZES]);

/// Sizes of buffers are powers of two from 16 MiB on.
const SIZES: usize = 16;
const SMALLEST: usize = 16 << 20;
/// Until numbers repeat.
const PERIOD: usize = 16 << 20;

impl Random {
    pub fn new(fp8: Option<Fp8Config>) -> Random {
        Random {
            fp8,
            narrow: Buffer::default(),
            wide: Buffer::default(),
            norms: Buffer::default(),
            scales: Buffer::default(),
        }
    }

    /// All but what a checkpoint may share with another tensor.
    pub fn has(&self, tensor: &str) -> bool {
        !tensor.ends_with("shared_head.head.weight")
    }

    pub fn tensor(&self, name: &str, shape: &[usize]) -> (Dtype, &[u8]) {
        let count: usize = shape.iter().product();
        if name.ends_with("_scale_inv") {
            // Of codes up to 1, weights of a few hundredths.
            let value = |bits: u32| (0.02 + bits as f32 / u32::MAX as f32 * 0.04).to_le_bytes();
            let words = |words: &mut dyn Iterator<Item = u32>| words.flat_map(value).collect();
            return (Dtype::F32, self.scales.slice(name, 4 * count, &words));
        }
        // Whatever is neither a norm, a router nor the head.
        let projection = name.contains("_proj") && !name.contains("eh_proj");
        if self.fp8.is_some() && projection && shape.len() == 2 {
            // Sign and three mantissa bits at random, and an exponent that keeps it within 1.
            let value = |bits: u32| (bits as u8 & 0x87) | ((1 + (bits >> 8) % 6) << 3) as u8;
            let words = |words: &mut dyn Iterator<Item = u32>| words.map(value).collect();
            return (Dtype::F8_E4M3, self.narrow.slice(name, count, &words));
        }
        let (buffer, middle, width) = match name.contains("norm") {
            true => (&self.norms, 1.0, 0.5),
            false => (&self.wide, 0.0, 0.08),
        };
        let value = |bits: u32| {
            let value = middle + (bits as f32 / u32::MAX as f32 - 0.5) * width;
            half::bf16::from_f32(value).to_le_bytes()
        };
        let words = |words: &mut dyn Iterator<Item = u32>| words.flat_map(value).collect();
        (Dtype::BF16, buffer.slice(name, 2 * count, &words))
    }
}

impl Buffer {
    fn slice(
        &self,
        name: &str,
        bytes: usize,
        fill: &dyn Fn(&mut dyn Iterator<Item = u32>) -> Vec<u8>,
    ) -> &[u8] {
        let number = (0..SIZES)
            .find(|&number| bytes <= SMALLEST << number)
            .expect("no tensor is larger than that");
        let buffer = self.0[number].get_or_init(|| {
            let mut state = 0x9E37_79B9_7F4A_7C15u64;
            let mut words = (0..PERIOD / 4).map(|_| {
                // A linear congruential generator's upper half is random enough for weights.
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (state >> 32) as u32
            });
            let mut once = fill(&mut words);
            // Room to begin anywhere within a period.
            let wanted = (SMALLEST << number) + PERIOD;
            once.truncate(PERIOD);
            let mut all = Vec::with_capacity(wanted + once.len());
            while all.len() < wanted {
                all.extend_from_slice(&once);
            }
            all
        });
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        let begin = (hasher.finish() as usize % PERIOD) & !63;
        &buffer[begin..begin + bytes]
    }
}

#[cfg(test)]
mod tests {
    use super::super::Checkpoint;
    use crate::matrix::MatrixData;

    const CONFIG: &str = include_str!("../../../models/tiny-r1/config.json");

    #[test]
    fn whatever_is_asked_for_is_there_and_finite() {
        let checkpoint = Checkpoint::random(CONFIG.as_bytes()).unwrap();
        let fp8 = checkpoint.config().common.quantization.is_some();
        for (name, narrow) in [
            ("model.layers.0.self_attn.o_proj", true),
            ("model.layers.3.mlp.experts.255.down_proj", true),
            ("model.layers.3.mlp.gate", false),
            ("lm_head", false),
        ] {
            let matrix = checkpoint.matrix(name, 300, 5000).unwrap();
            assert_eq!(matrix.first_non_finite(), None, "{name}");
            assert_eq!(matches!(matrix.data, MatrixData::Fp8 { .. }), fp8 && narrow);
            // As large as those of trained models.
            let values = matrix.to_f32();
            let squares: f64 = values.iter().map(|v| f64::from(*v).powi(2)).sum();
            let size = (squares / values.len() as f64).sqrt();
            assert!((0.002..0.05).contains(&size), "{name}: {size}");
        }
        let norm = checkpoint.vector("model.norm.weight", 64).unwrap();
        assert!(norm.iter().all(|value| (0.7..1.3).contains(value)));
        assert!(!checkpoint.has("model.layers.61.shared_head.head.weight"));
    }
}
