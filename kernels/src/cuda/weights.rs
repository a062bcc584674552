//! Weights on the device: bf16, rows 16 bytes apart at least.

use std::ops::Range;
use std::sync::Arc;

use half::bf16;
use millrace_model::matrix::{Matrix, MatrixData};

use super::device::Device;
use super::fp8;
use super::memory::Memory;
use super::params;
use super::profile::Peak;
use super::uploads::{copied, upload};
use crate::{KernelError, Pace, Stacked};

const WHAT: &str = "weights";
/// Values that rows are padded to.
const ROW_VALUES: usize = 8;

/// `[outputs, inputs]` in bf16.
pub struct Weights {
    memory: Memory,
    pub outputs: usize,
    pub inputs: usize,
}

impl Weights {
    /// `parts`, stacked along their rows.
    pub(super) fn stacked(
        device: &Arc<Device>,
        parts: Stacked<'_>,
        pace: Pace,
    ) -> Result<Weights, KernelError> {
        let inputs = parts.first().map_or(0, |part| part.cols);
        let outputs = parts.iter().map(|part| part.rows).sum();
        let stride = inputs.next_multiple_of(ROW_VALUES);
        let row_bytes = stride * size_of::<bf16>();
        let memory = Memory::unset(device, outputs * row_bytes, WHAT)?;
        let mut row = 0;
        for part in parts {
            assert_eq!(part.cols, inputs, "stacked matrices have the same inputs");
            check_scales(part)?;
            let at = row * row_bytes;
            row += part.rows;
            upload(
                device,
                &memory,
                at,
                [part.rows, row_bytes],
                pace,
                &|rows, to| {
                    check_rows(part, rows.clone())?;
                    match part.data {
                        // As it is: rows are whole pieces of 16 bytes.
                        MatrixData::Bf16(bytes) if stride == inputs => {
                            to.copy_from_slice(
                                &bytes[rows.start * row_bytes..rows.end * row_bytes],
                            );
                        }
                        _ => {
                            let mut wide = vec![0.0f32; inputs];
                            for (row, to) in rows.zip(to.chunks_exact_mut(row_bytes)) {
                                part.row_f32(row, &mut wide);
                                // Buffers are aligned, and rows of them 16 bytes apart.
                                let to: &mut [bf16] = bytemuck::cast_slice_mut(to);
                                narrow(&wide, to);
                                to[inputs..].fill(bf16::ZERO);
                            }
                        }
                    }
                    Ok(())
                },
            )?;
        }
        Ok(Weights {
            memory,
            outputs,
            inputs,
        })
    }

    pub(super) fn matrix(&self) -> params::Matrix {
        params::Matrix {
            data: self.memory.address(),
            stride: self.inputs.next_multiple_of(ROW_VALUES) as u64,
        }
    }

    /// As they lie in memory, for another device.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.memory.bytes()];
        self.memory.download_beside(&mut bytes);
        bytes
    }

    pub(super) fn len_of(outputs: usize, inputs: usize) -> usize {
        outputs * inputs.next_multiple_of(ROW_VALUES) * size_of::<bf16>()
    }

    /// What [`Weights::bytes`] gave; of the right length.
    pub(super) fn from_bytes(
        device: &Arc<Device>,
        bytes: &[u8],
        outputs: usize,
        inputs: usize,
    ) -> Result<Weights, KernelError> {
        assert_eq!(bytes.len(), Weights::len_of(outputs, inputs));
        Ok(Weights {
            memory: copied(device, bytes, WHAT, Pace::Background)?,
            outputs,
            inputs,
        })
    }
}

/// Parameters of a norm or bias, in float32.
pub struct Vector {
    pub(super) memory: Memory,
    pub(super) len: usize,
}

impl Vector {
    pub(super) fn new(device: &Arc<Device>, values: &[f32]) -> Vector {
        Vector {
            memory: Memory::noted_copy_of(device, values, WHAT),
            len: values.len(),
        }
    }
}

/// A table `[vocab, hidden]`.
pub struct Embedding(pub(super) Weights);

/// `y = x W^T (+ bias)`.
pub struct Linear {
    pub(super) weights: Form,
    pub(super) bias: Option<Vector>,
}

/// Weights in the form that they are multiplied in.
pub enum Form {
    Bf16(Weights),
    Fp8(fp8::Weights),
}

impl Form {
    /// In 8 bits if they are stored so and can be multiplied so.
    pub(super) fn stacked(device: &Arc<Device>, parts: Stacked<'_>) -> Result<Form, KernelError> {
        Ok(match fp8::takes(parts) {
            true => Form::Fp8(fp8::Weights::stacked(device, parts, Pace::Full)?),
            false => Form::Bf16(Weights::stacked(device, parts, Pace::Full)?),
        })
    }

    pub fn outputs(&self) -> usize {
        match self {
            Form::Bf16(weights) => weights.outputs,
            Form::Fp8(weights) => weights.outputs,
        }
    }

    pub fn inputs(&self) -> usize {
        match self {
            Form::Bf16(weights) => weights.inputs,
            Form::Fp8(weights) => weights.inputs,
        }
    }

    /// In device memory.
    pub fn bytes(&self) -> usize {
        match self {
            Form::Bf16(weights) => Weights::len_of(weights.outputs, weights.inputs),
            Form::Fp8(weights) => fp8::Weights::len_of(weights.outputs, weights.inputs),
        }
    }

    pub fn peak(&self) -> Peak {
        match self {
            Form::Bf16(_) => Peak::Bf16,
            Form::Fp8(_) => Peak::Fp8,
        }
    }
}

/// One matrix a head, `[heads][outputs, inputs]`, all heads one after another.
pub struct HeadLinear {
    pub(super) weights: Weights,
    pub(super) heads: usize,
}

impl HeadLinear {
    pub fn outputs(&self) -> usize {
        self.weights.outputs / self.heads
    }

    /// Matrices of which `value(head, output, input)` is an element; `read` gives the rows of `kv_b`
    /// that belong to one head.
    fn collect(
        device: &Arc<Device>,
        heads: usize,
        outputs: usize,
        inputs: usize,
        mut fill: impl FnMut(usize, usize, &mut [bf16]),
    ) -> Result<HeadLinear, KernelError> {
        let stride = inputs.next_multiple_of(ROW_VALUES);
        let mut values = vec![bf16::ZERO; heads * outputs * stride];
        for (row, to) in values.chunks_exact_mut(stride).enumerate() {
            fill(row / outputs, row % outputs, &mut to[..inputs]);
        }
        Ok(HeadLinear {
            weights: Weights {
                memory: copied(device, bytemuck::cast_slice(&values), WHAT, Pace::Full)?,
                outputs: heads * outputs,
                inputs,
            },
            heads,
        })
    }

    /// See [`Backend::absorbed`](crate::Backend::absorbed).
    pub(super) fn absorbed(
        device: &Arc<Device>,
        kv_b: Matrix<'_>,
        heads: usize,
        nope: usize,
        v: usize,
    ) -> Result<(HeadLinear, HeadLinear), KernelError> {
        assert_eq!(kv_b.rows, heads * (nope + v));
        check(&kv_b)?;
        let latent = kv_b.cols;
        let mut values = vec![bf16::ZERO; kv_b.rows * latent];
        let mut wide = vec![0.0f32; latent];
        for (row, to) in values.chunks_exact_mut(latent).enumerate() {
            kv_b.row_f32(row, &mut wide);
            narrow(&wide, to);
        }
        let first = |head: usize| head * (nope + v);
        let keys = HeadLinear::collect(device, heads, latent, nope, |head, output, to| {
            for (input, to) in to.iter_mut().enumerate() {
                *to = values[(first(head) + input) * latent + output];
            }
        })?;
        let values = HeadLinear::collect(device, heads, v, latent, |head, output, to| {
            to.copy_from_slice(&values[(first(head) + nope + output) * latent..][..latent]);
        })?;
        Ok((keys, values))
    }
}

fn narrow(from: &[f32], to: &mut [bf16]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = bf16::from_f32(*from);
    }
}

/// Nothing that a trained model has.
fn check(matrix: &Matrix<'_>) -> Result<(), KernelError> {
    refused(matrix, matrix.first_non_finite())
}

/// The same of scales alone.
pub(super) fn check_scales(matrix: &Matrix<'_>) -> Result<(), KernelError> {
    refused(matrix, matrix.first_bad_scale())
}

/// The same of the values of some rows, where they are read anyway.
pub(super) fn check_rows(matrix: &Matrix<'_>, rows: Range<usize>) -> Result<(), KernelError> {
    refused(matrix, matrix.first_non_finite_of(rows))
}

fn refused(matrix: &Matrix<'_>, found: Option<(usize, usize)>) -> Result<(), KernelError> {
    match found {
        None => Ok(()),
        Some((row, col)) => Err(KernelError::NotFinite {
            row,
            col,
            rows: matrix.rows,
            cols: matrix.cols,
        }),
    }
}
