//! A weight matrix as a checkpoint stores it: a borrowed view, never converted.

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
    Fp8 { bytes: &'a [u8], scales: BlockScales<'a> },
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
