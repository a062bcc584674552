//! Every op against a plain float64 reference, on every instruction set this processor has, and
//! batch invariance: a row alone, in one thread, gives the same bits as in a batch.

mod attention;
mod dense;
mod experts;
mod products;

use millrace_model::matrix::{BlockScales, Matrix, MatrixData, ScaleValues};
use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::{CpuBackend, Isa, Tensor};
use crate::Backend;

fn rng(seed: u64) -> SmallRng {
    SmallRng::seed_from_u64(seed)
}

/// Uniform in -1..1.
fn values(rng: &mut SmallRng, count: usize) -> Vec<f32> {
    (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
}

fn isas() -> impl Iterator<Item = Isa> {
    [Isa::Avx512, Isa::Avx2, Isa::Portable]
        .into_iter()
        .filter(|isa| isa.available())
}

/// One backend an instruction set, with `threads` threads.
fn backends(threads: usize) -> Vec<CpuBackend> {
    isas()
        .map(|isa| CpuBackend::with_isa(threads, isa))
        .collect()
}

fn tensor(backend: &CpuBackend, values: &[f32], cols: usize) -> Tensor {
    let rows = values.len() / cols;
    let mut tensor = backend.tensor(rows.max(1), cols);
    tensor.resize(rows, cols);
    tensor.values_mut().copy_from_slice(values);
    tensor
}

/// Fails unless `got` is `want` within `tolerance(i)`.
#[track_caller]
fn assert_close(what: &str, got: &[f32], want: &[f64], tolerance: impl Fn(usize) -> f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(*got) - want).abs();
        assert!(
            error <= tolerance(i),
            "{what}: value {i} is {got}, expected {want}"
        );
    }
}

#[track_caller]
fn assert_same_bits(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!(
            got.to_bits() == want.to_bits(),
            "{what}: value {i} is {got:e}, was {want:e}"
        );
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    F32,
    F16,
    Bf16,
    Fp8 {
        rows: usize,
        cols: usize,
        ue8m0: bool,
    },
}

const FP8: Kind = Kind::Fp8 {
    rows: 128,
    cols: 128,
    ue8m0: false,
};

/// A matrix as a checkpoint stores it, and the values that means.
struct Stored {
    rows: usize,
    cols: usize,
    kind: Kind,
    bytes: Vec<u8>,
    scales: Vec<u8>,
    dense: Vec<f64>,
}

impl Stored {
    fn random(rng: &mut SmallRng, kind: Kind, rows: usize, cols: usize) -> Stored {
        let mut stored = Stored {
            rows,
            cols,
            kind,
            bytes: Vec::new(),
            scales: Vec::new(),
            dense: Vec::new(),
        };
        let Kind::Fp8 {
            rows: block_rows,
            cols: block_cols,
            ue8m0,
        } = kind
        else {
            for value in values(rng, rows * cols) {
                let (bytes, dense) = match kind {
                    Kind::F32 => (value.to_le_bytes().to_vec(), f64::from(value)),
                    Kind::F16 => {
                        let value = half::f16::from_f32(value);
                        (value.to_le_bytes().to_vec(), value.to_f64())
                    }
                    _ => {
                        let value = half::bf16::from_f32(value);
                        (value.to_le_bytes().to_vec(), value.to_f64())
                    }
                };
                stored.bytes.extend(bytes);
                stored.dense.push(dense);
            }
            return stored;
        };
        let blocks = cols.div_ceil(block_cols);
        let scales: Vec<f64> = (0..rows.div_ceil(block_rows) * blocks)
            .map(|_| {
                if ue8m0 {
                    let exponent = rng.random_range(110..130u8);
                    stored.scales.push(exponent);
                    2f64.powi(i32::from(exponent) - 127)
                } else {
                    let scale: f32 = rng.random_range(0.001..0.1);
                    stored.scales.extend(scale.to_le_bytes());
                    f64::from(scale)
                }
            })
            .collect();
        for row in 0..rows {
            for col in 0..cols {
                let byte = loop {
                    let byte: u8 = rng.random();
                    if byte & 0x7f != 0x7f {
                        break byte;
                    }
                };
                stored.bytes.push(byte);
                stored
                    .dense
                    .push(e4m3(byte) * scales[row / block_rows * blocks + col / block_cols]);
            }
        }
        stored
    }

    fn matrix(&self) -> Matrix<'_> {
        let bytes = &self.bytes[..];
        let data = match self.kind {
            Kind::F32 => MatrixData::F32(bytes),
            Kind::F16 => MatrixData::F16(bytes),
            Kind::Bf16 => MatrixData::Bf16(bytes),
            Kind::Fp8 { rows, cols, ue8m0 } => {
                let scales = &self.scales[..];
                let values = if ue8m0 {
                    ScaleValues::Ue8m0(scales)
                } else {
                    ScaleValues::F32(scales)
                };
                MatrixData::Fp8 {
                    bytes,
                    scales: BlockScales {
                        values,
                        block_rows: rows,
                        block_cols: cols,
                    },
                }
            }
        };
        Matrix {
            rows: self.rows,
            cols: self.cols,
            data,
        }
    }

    fn at(&self, row: usize, col: usize) -> f64 {
        self.dense[row * self.cols + col]
    }

    /// `w x` for rows `rows` of the matrix, and for each the sum of absolute products.
    fn product(&self, rows: std::ops::Range<usize>, x: &[f64]) -> Vec<(f64, f64)> {
        rows.map(|row| {
            (0..self.cols).fold((0.0, 0.0), |(sum, size), col| {
                let product = self.at(row, col) * x[col];
                (sum + product, size + product.abs())
            })
        })
        .collect()
    }
}

/// The value of an e4m3 byte by its definition.
fn e4m3(byte: u8) -> f64 {
    let (exponent, fraction) = (i32::from(byte >> 3 & 15), f64::from(byte & 7) / 8.0);
    let magnitude = if exponent == 0 {
        fraction * 2f64.powi(-6)
    } else {
        (1.0 + fraction) * 2f64.powi(exponent - 7)
    };
    if byte & 0x80 == 0 {
        magnitude
    } else {
        -magnitude
    }
}

fn doubles(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}
