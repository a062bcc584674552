//! A weight matrix as a checkpoint stores it: a borrowed view, never converted.

mod check;
mod dequant;

use crate::fp8::e8m0_to_f32;

/// `rows x cols` (outputs x inputs), row-major.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    pub rows: usize,
    pub cols: usize,
    pub data: MatrixData<'a>,
}

/// Little-endian stored values. `bytes.len()` is `rows * cols` times the element size.
#[derive(Debug, Clone, Copy)]
pub enum MatrixData<'a> {
    F32(&'a [u8]),
    F16(&'a [u8]),
    Bf16(&'a [u8]),
    /// `float8_e4m3fn` with one multiplicative scale a block (`weight_scale_inv`).
    Fp8 {
        bytes: &'a [u8],
        scales: BlockScales<'a>,
    },
}

/// Scales of blocks of `block_rows x block_cols`; the last row and column of blocks may be short.
/// Row-major `[ceil(rows / block_rows), ceil(cols / block_cols)]`.
#[derive(Debug, Clone, Copy)]
pub struct BlockScales<'a> {
    pub values: ScaleValues<'a>,
    pub block_rows: usize,
    pub block_cols: usize,
}

#[derive(Debug, Clone, Copy)]
pub enum ScaleValues<'a> {
    /// Little-endian float32.
    F32(&'a [u8]),
    /// `float8_e8m0fnu`: the biased exponent of a power of two.
    Ue8m0(&'a [u8]),
}

impl MatrixData<'_> {
    /// Bits of an element, scales apart.
    pub fn bits(&self) -> usize {
        match self {
            MatrixData::F32(_) => 32,
            MatrixData::F16(_) | MatrixData::Bf16(_) => 16,
            MatrixData::Fp8 { .. } => 8,
        }
    }
}

impl ScaleValues<'_> {
    /// The scale at `index` of the row-major array of blocks.
    ///
    /// Panics if there is no such block.
    pub fn get(&self, index: usize) -> f32 {
        match self {
            ScaleValues::F32(bytes) => {
                let at = index * 4;
                f32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
            }
            ScaleValues::Ue8m0(bytes) => e8m0_to_f32(bytes[index]),
        }
    }
}
