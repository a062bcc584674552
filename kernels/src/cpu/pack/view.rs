//! A stored matrix as a projection sees it.

use std::ops::Range;

use millrace_model::matrix::{Matrix, MatrixData};

use super::{Format, K_BLOCK, exp2};
use crate::KernelError;
use crate::cpu::simd::fp8_exp_120;

/// Rows of a stored matrix as outputs; or, transposed, its columns as outputs and `rows` as inputs.
#[derive(Clone)]
pub struct View<'a> {
    matrix: Matrix<'a>,
    rows: Range<usize>,
    transposed: bool,
}

impl<'a> View<'a> {
    pub fn whole(matrix: Matrix<'a>) -> View<'a> {
        View::rows(matrix, 0..matrix.rows)
    }

    pub fn rows(matrix: Matrix<'a>, rows: Range<usize>) -> View<'a> {
        assert!(rows.end <= matrix.rows);
        View {
            matrix,
            rows,
            transposed: false,
        }
    }

    pub fn transposed(matrix: Matrix<'a>, rows: Range<usize>) -> View<'a> {
        View {
            transposed: true,
            ..View::rows(matrix, rows)
        }
    }

    pub fn outputs(&self) -> usize {
        if self.transposed {
            self.matrix.cols
        } else {
            self.rows.len()
        }
    }

    pub fn inputs(&self) -> usize {
        if self.transposed {
            self.rows.len()
        } else {
            self.matrix.cols
        }
    }

    pub fn data(&self) -> MatrixData<'a> {
        self.matrix.data
    }

    /// One dequantised weight.
    pub fn value(&self, output: usize, input: usize) -> f32 {
        let (row, col) = self.at(output, input);
        element(&self.matrix, row, col)
    }

    /// Row and column of the stored matrix.
    fn at(&self, output: usize, input: usize) -> (usize, usize) {
        if self.transposed {
            (self.rows.start + input, output)
        } else {
            (self.rows.start + output, input)
        }
    }

    /// How it can be packed: values with one scale a block of inputs, or as plain float32 where
    /// the scales' blocks do not line up with this view's inputs.
    pub fn layout(&self) -> (Format, usize) {
        match self.matrix.data {
            MatrixData::F32(_) => (Format::F32, K_BLOCK),
            MatrixData::F16(_) => (Format::F16, K_BLOCK),
            MatrixData::Bf16(_) => (Format::Bf16, K_BLOCK),
            MatrixData::Fp8 { scales, .. } if !self.transposed => (Format::Fp8, scales.block_cols),
            MatrixData::Fp8 { scales, .. } => {
                let first = self.rows.start / scales.block_rows;
                let last = self.rows.end.saturating_sub(1) / scales.block_rows;
                if first == last {
                    (Format::Fp8, self.rows.len().max(1))
                } else if self.rows.start.is_multiple_of(scales.block_rows) {
                    (Format::Fp8, scales.block_rows)
                } else {
                    (Format::F32, K_BLOCK)
                }
            }
        }
    }

    pub fn scale(&self, output: usize, input: usize) -> f32 {
        let MatrixData::Fp8 { scales, .. } = self.matrix.data else {
            return 1.0;
        };
        let (row, col) = self.at(output, input);
        let blocks = self.matrix.cols.div_ceil(scales.block_cols);
        scales
            .values
            .get(row / scales.block_rows * blocks + col / scales.block_cols)
    }

    pub fn not_finite(&self, output: usize, input: usize) -> KernelError {
        let (row, col) = self.at(output, input);
        KernelError::NotFinite {
            row,
            col,
            rows: self.matrix.rows,
            cols: self.matrix.cols,
        }
    }

    /// Where an output's weights are stored: the first one, and the distance of neighbours.
    pub fn elements(&self, output: usize) -> (usize, usize) {
        let (row, col) = self.at(output, 0);
        (
            row * self.matrix.cols + col,
            if self.transposed { self.matrix.cols } else { 1 },
        )
    }
}

/// One dequantised element.
pub fn element(matrix: &Matrix<'_>, row: usize, col: usize) -> f32 {
    let at = row * matrix.cols + col;
    let two = |bytes: &[u8]| u16::from_le_bytes([bytes[at * 2], bytes[at * 2 + 1]]);
    match matrix.data {
        MatrixData::F32(bytes) => f32::from_le_bytes(bytes.as_chunks::<4>().0[at]),
        MatrixData::F16(bytes) => half::f16::from_bits(two(bytes)).to_f32(),
        MatrixData::Bf16(bytes) => half::bf16::from_bits(two(bytes)).to_f32(),
        MatrixData::Fp8 { bytes, .. } => {
            let scale = View::whole(*matrix).scale(row, col);
            let nan = bytes[at] & 0x7f == 0x7f;
            if nan {
                f32::NAN
            } else {
                fp8_exp_120(bytes[at]) * exp2(120) * scale
            }
        }
    }
}
