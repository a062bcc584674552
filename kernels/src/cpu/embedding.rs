//! A table read by row.

use millrace_model::matrix::{Matrix, MatrixData};

use super::arena::{Arena, Bytes};
use super::pack::element;
use crate::KernelError;

/// `[tokens, hidden]` in the checkpoint's precision (FP8 tables as float32).
pub struct Embedding {
    rows: usize,
    cols: usize,
    table: Table,
}

enum Table {
    F32(Bytes),
    F16(Bytes),
    Bf16(Bytes),
}

impl Embedding {
    pub(super) fn new(arena: &Arena, matrix: Matrix<'_>) -> Result<Embedding, KernelError> {
        let (rows, cols) = (matrix.rows, matrix.cols);
        let table = match matrix.data {
            MatrixData::F16(bytes) => Table::F16(arena.copy(bytes)?),
            MatrixData::Bf16(bytes) => Table::Bf16(arena.copy(bytes)?),
            MatrixData::F32(_) | MatrixData::Fp8 { .. } => {
                let mut table = arena.bytes(rows * cols * size_of::<f32>())?;
                let values: &mut [f32] = bytemuck::cast_slice_mut(&mut table);
                for (i, value) in values.iter_mut().enumerate() {
                    *value = element(&matrix, i / cols, i % cols);
                }
                Table::F32(table)
            }
        };
        let embedding = Embedding { rows, cols, table };
        let mut values = vec![0.0; cols];
        for row in 0..rows {
            embedding.read(row, &mut values);
            if let Some(col) = values.iter().position(|value| !value.is_finite()) {
                return Err(KernelError::NotFinite {
                    row,
                    col,
                    rows,
                    cols,
                });
            }
        }
        Ok(embedding)
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Copies one row. Panics when there is no such row.
    pub(super) fn read(&self, row: usize, out: &mut [f32]) {
        assert!(
            row < self.rows,
            "token {row} of a vocabulary of {}",
            self.rows
        );
        let values = row * self.cols..(row + 1) * self.cols;
        match &self.table {
            Table::F32(table) => out.copy_from_slice(&bytemuck::cast_slice(table)[values]),
            Table::F16(table) => widen(table, values.start, out, |v| {
                half::f16::from_bits(v).to_f32()
            }),
            Table::Bf16(table) => widen(table, values.start, out, |v| {
                f32::from_bits(u32::from(v) << 16)
            }),
        }
    }
}

fn widen(table: &[u8], first: usize, out: &mut [f32], widen: impl Fn(u16) -> f32) {
    let (table, _) = table.as_chunks::<2>();
    for (out, value) in out.iter_mut().zip(&table[first..]) {
        *out = widen(u16::from_le_bytes(*value));
    }
}
