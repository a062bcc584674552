//! Finding values that no trained model has: NaN, infinities, and scales that are not positive.

use std::ops::Range;

use super::{Matrix, MatrixData};
use crate::fp8::{E4M3_MAX, e4m3_is_nan};

impl Matrix<'_> {
    /// Where the first value stands that is NaN or infinite, or (FP8) whose block's scale is not a
    /// positive number small enough for every product to be finite.
    ///
    /// Reads every byte once, at about the speed of memory: meant to be called while a loader
    /// reads the matrix anyway.
    pub fn first_non_finite(&self) -> Option<(usize, usize)> {
        self.first_bad_scale()
            .or_else(|| self.first_non_finite_of(0..self.rows))
    }

    /// The same of some rows, scales apart.
    pub fn first_non_finite_of(&self, rows: Range<usize>) -> Option<(usize, usize)> {
        let bytes_of = |bytes, size| part(bytes, self.cols * size, &rows);
        let index = match self.data {
            // A float is NaN or infinite if its exponent bits are all ones.
            MatrixData::F32(bytes) => first(bytes_of(bytes, 4), |b: [u8; 4]| {
                u32::from_le_bytes(b) & 0x7f80_0000 == 0x7f80_0000
            }),
            MatrixData::F16(bytes) => first(bytes_of(bytes, 2), |b: [u8; 2]| {
                u16::from_le_bytes(b) & 0x7c00 == 0x7c00
            }),
            MatrixData::Bf16(bytes) => first(bytes_of(bytes, 2), |b: [u8; 2]| {
                u16::from_le_bytes(b) & 0x7f80 == 0x7f80
            }),
            MatrixData::Fp8 { bytes, .. } => {
                first(bytes_of(bytes, 1), |[code]: [u8; 1]| e4m3_is_nan(code))
            }
        };
        index.map(|i| self.position(rows.start * self.cols + i))
    }

    /// The first value of the first block (FP8) with a bad scale.
    pub fn first_bad_scale(&self) -> Option<(usize, usize)> {
        let MatrixData::Fp8 { scales, .. } = &self.data else {
            return None;
        };
        let (down, across) = (
            self.rows.div_ceil(scales.block_rows),
            self.cols.div_ceil(scales.block_cols),
        );
        let bad = |&index: &usize| {
            let scale = scales.values.get(index);
            !(scale > 0.0 && (scale * E4M3_MAX).is_finite())
        };
        let index = (0..down * across).find(bad)?;
        Some((
            index / across * scales.block_rows,
            index % across * scales.block_cols,
        ))
    }

    fn position(&self, index: usize) -> (usize, usize) {
        (index / self.cols, index % self.cols)
    }
}

fn part<'a>(bytes: &'a [u8], row_bytes: usize, rows: &Range<usize>) -> &'a [u8] {
    &bytes[rows.start * row_bytes..rows.end * row_bytes]
}

/// Elements looked at between two decisions: enough for the compiler to vectorise the inner loop.
const CHUNK: usize = 4096;

/// Index of the first `N`-byte element for which `bad` holds.
fn first<const N: usize>(bytes: &[u8], bad: impl Fn([u8; N]) -> bool) -> Option<usize> {
    let (elements, _) = bytes.as_chunks::<N>();
    for (chunk, elements) in elements.chunks(CHUNK).enumerate() {
        // No early exit: a branch an element would keep this from being vectorised.
        if elements.iter().fold(false, |found, &e| found | bad(e)) {
            return elements
                .iter()
                .position(|&e| bad(e))
                .map(|i| chunk * CHUNK + i);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::{BlockScales, ScaleValues};
    use super::*;
    use half::{bf16, f16};

    #[test]
    fn finds_the_first_bad_value_of_each_type() {
        let (rows, cols, at) = (70, 100, 6_543);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = vec![1.0f32; rows * cols];
            values[at] = bad;
            values[at + 5] = bad;
            let f32s: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            let f16s: Vec<u8> = values
                .iter()
                .flat_map(|&v| f16::from_f32(v).to_le_bytes())
                .collect();
            let bf16s: Vec<u8> = values
                .iter()
                .flat_map(|&v| bf16::from_f32(v).to_le_bytes())
                .collect();
            for data in [
                MatrixData::F32(&f32s),
                MatrixData::F16(&f16s),
                MatrixData::Bf16(&bf16s),
            ] {
                assert_eq!(
                    Matrix { rows, cols, data }.first_non_finite(),
                    Some((65, 43))
                );
            }
        }
    }

    #[test]
    fn largest_values_are_finite() {
        let values = [f32::MAX, f32::MIN, f32::MIN_POSITIVE, 0.0];
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(
            Matrix {
                rows: 2,
                cols: 2,
                data: MatrixData::F32(&bytes)
            }
            .first_non_finite(),
            None
        );
    }

    fn fp8(bytes: &[u8], scales: [f32; 4]) -> Option<(usize, usize)> {
        let scales: Vec<u8> = scales.iter().flat_map(|v| v.to_le_bytes()).collect();
        let scales = BlockScales {
            values: ScaleValues::F32(&scales),
            block_rows: 2,
            block_cols: 4,
        };
        Matrix {
            rows: 3,
            cols: 5,
            data: MatrixData::Fp8 { bytes, scales },
        }
        .first_non_finite()
    }

    #[test]
    fn fp8_codes_and_scales_are_checked() {
        let good = [0x7eu8; 15];
        assert_eq!(fp8(&good, [1.0; 4]), None);
        for nan in [0x7f, 0xff] {
            let mut bytes = good;
            bytes[7] = nan;
            assert_eq!(fp8(&bytes, [1.0; 4]), Some((1, 2)));
        }
        for bad in [0.0, -1.0, f32::NAN, f32::INFINITY, 1e38] {
            assert_eq!(
                fp8(&good, [1.0, 1.0, 1.0, bad]),
                Some((2, 4)),
                "scale {bad}"
            );
        }
    }

    #[test]
    fn ue8m0_nan_is_found() {
        let scales = BlockScales {
            values: ScaleValues::Ue8m0(&[127, 255]),
            block_rows: 1,
            block_cols: 1,
        };
        let matrix = Matrix {
            rows: 1,
            cols: 2,
            data: MatrixData::Fp8 {
                bytes: &[0, 0],
                scales,
            },
        };
        assert_eq!(matrix.first_non_finite(), Some((0, 1)));
    }
}
