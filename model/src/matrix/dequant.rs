//! Stored values as float32: for reference computations, tests and conversion at load.

use half::{bf16, f16};

use super::{BlockScales, Matrix, MatrixData};
use crate::fp8::E4M3;

impl Matrix<'_> {
    /// Row `row` dequantised into `out` (`cols` values).
    ///
    /// Panics if `row` is out of range or `out` has another length.
    pub fn row_f32(&self, row: usize, out: &mut [f32]) {
        assert!(
            row < self.rows,
            "row {row} of a matrix of {} rows",
            self.rows
        );
        assert_eq!(
            out.len(),
            self.cols,
            "a row has as many values as the matrix has columns"
        );
        let width = self.cols * self.data.bits() / 8;
        let span = row * width..(row + 1) * width;
        match self.data {
            MatrixData::F32(bytes) => f32_row(&bytes[span], out),
            MatrixData::F16(bytes) => f16_row(&bytes[span], out),
            MatrixData::Bf16(bytes) => bf16_row(&bytes[span], out),
            MatrixData::Fp8 { bytes, scales } => fp8_row(&bytes[span], row, &scales, out),
        }
    }

    /// All values, row-major. Takes `4 * rows * cols` bytes.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.rows * self.cols];
        if self.cols > 0 {
            for (row, out) in values.chunks_exact_mut(self.cols).enumerate() {
                self.row_f32(row, out);
            }
        }
        values
    }
}

/// Little-endian float32 to `out`; the lengths agree.
pub(crate) fn f32_row(bytes: &[u8], out: &mut [f32]) {
    for (slot, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
        *slot = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    }
}

pub(crate) fn f16_row(bytes: &[u8], out: &mut [f32]) {
    for (slot, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
        *slot = f16::from_le_bytes([b[0], b[1]]).to_f32();
    }
}

pub(crate) fn bf16_row(bytes: &[u8], out: &mut [f32]) {
    for (slot, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
        *slot = bf16::from_le_bytes([b[0], b[1]]).to_f32();
    }
}

fn fp8_row(bytes: &[u8], row: usize, scales: &BlockScales, out: &mut [f32]) {
    let first = row / scales.block_rows * bytes.len().div_ceil(scales.block_cols);
    let blocks = out
        .chunks_mut(scales.block_cols)
        .zip(bytes.chunks(scales.block_cols));
    for (block, (out, bytes)) in blocks.enumerate() {
        let scale = scales.values.get(first + block);
        for (slot, &code) in out.iter_mut().zip(bytes) {
            *slot = E4M3[code as usize] * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ScaleValues;
    use super::*;

    fn le(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    #[test]
    fn short_blocks_have_their_own_scales() {
        // 3 x 5 in blocks of 2 x 2: scales are 2 x 3, the last row and column of blocks short.
        let bytes = [0x38u8; 15]; // all 1.0
        let scales = le(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let scales = BlockScales {
            values: ScaleValues::F32(&scales),
            block_rows: 2,
            block_cols: 2,
        };
        let matrix = Matrix {
            rows: 3,
            cols: 5,
            data: MatrixData::Fp8 {
                bytes: &bytes,
                scales,
            },
        };
        assert_eq!(
            matrix.to_f32(),
            [
                1.0, 1.0, 2.0, 2.0, 3.0, 1.0, 1.0, 2.0, 2.0, 3.0, 4.0, 4.0, 5.0, 5.0, 6.0
            ]
        );
    }

    #[test]
    fn ue8m0_scales_multiply_too() {
        let codes = [127u8, 128, 126];
        let scales = BlockScales {
            values: ScaleValues::Ue8m0(&codes),
            block_rows: 128,
            block_cols: 1,
        };
        let matrix = Matrix {
            rows: 1,
            cols: 3,
            data: MatrixData::Fp8 {
                bytes: &[0x38, 0x3c, 0xb8],
                scales,
            },
        };
        assert_eq!(matrix.to_f32(), [1.0, 3.0, -0.5]);
    }

    #[test]
    fn plain_types_convert_exactly() {
        let values = [0.5f32, -1.25, 3.0, 0.0];
        let f16s: Vec<u8> = values
            .iter()
            .flat_map(|&v| f16::from_f32(v).to_le_bytes())
            .collect();
        let bf16s: Vec<u8> = values
            .iter()
            .flat_map(|&v| bf16::from_f32(v).to_le_bytes())
            .collect();
        for data in [
            MatrixData::F32(&le(&values)),
            MatrixData::F16(&f16s),
            MatrixData::Bf16(&bf16s),
        ] {
            assert_eq!(
                Matrix {
                    rows: 2,
                    cols: 2,
                    data
                }
                .to_f32(),
                values
            );
        }
    }
}
