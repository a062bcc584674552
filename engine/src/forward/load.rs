//! From checkpoint tensors to device weights, by name.

use millrace_kernels::{Backend, RopeTable};
use millrace_model::{checkpoint::Checkpoint, config::RopeConfig, matrix::Matrix};

use crate::{EngineError, config::LoadProgress};

/// Reads tensors and counts what it has read.
pub struct Loader<'a, B: Backend> {
    pub backend: &'a B,
    checkpoint: &'a Checkpoint,
    progress: &'a mut dyn FnMut(LoadProgress),
    done: u64,
}

impl<'a, B: Backend> Loader<'a, B> {
    pub fn new(
        backend: &'a B,
        checkpoint: &'a Checkpoint,
        progress: &'a mut dyn FnMut(LoadProgress),
    ) -> Loader<'a, B> {
        Loader {
            backend,
            checkpoint,
            progress,
            done: 0,
        }
    }

    pub fn has(&self, tensor: &str) -> bool {
        self.checkpoint.has(tensor)
    }

    /// Projections `(name, outputs)` with the same inputs, stacked. `bias` names the tensors to be
    /// stacked as its bias.
    pub fn linear(
        &mut self,
        parts: &[(&str, usize)],
        inputs: usize,
        bias: Option<&[(&str, usize)]>,
    ) -> Result<B::Linear, EngineError> {
        let matrices = parts
            .iter()
            .map(|&(name, outputs)| self.matrix(name, outputs, inputs))
            .collect::<Result<Vec<_>, _>>()?;
        let bias = bias
            .map(|bias| -> Result<Vec<f32>, EngineError> {
                let mut values = Vec::new();
                for &(name, len) in bias {
                    values.extend(self.checkpoint.vector(name, len)?);
                }
                Ok(values)
            })
            .transpose()?;
        self.backend
            .linear(&matrices, bias.as_deref())
            .map_err(|source| EngineError::Weights {
                tensor: parts[0].0.to_owned(),
                source,
            })
    }

    pub fn embedding(
        &mut self,
        name: &str,
        vocab: usize,
        hidden: usize,
    ) -> Result<B::Embedding, EngineError> {
        let table = self.matrix(name, vocab, hidden)?;
        self.backend
            .embedding(table)
            .map_err(|source| EngineError::Weights {
                tensor: name.to_owned(),
                source,
            })
    }

    pub fn vector(&mut self, name: &str, len: usize) -> Result<B::Vector, EngineError> {
        Ok(self.backend.vector(&self.checkpoint.vector(name, len)?))
    }

    /// A matrix as stored; counts as read.
    pub fn matrix(
        &mut self,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<Matrix<'a>, EngineError> {
        let matrix = self.checkpoint.matrix(name, rows, cols)?;
        self.done += (rows * cols * matrix.data.bits() / 8) as u64;
        (self.progress)(LoadProgress {
            bytes_done: self.done.min(self.checkpoint.total_bytes()),
            bytes_total: self.checkpoint.total_bytes(),
        });
        Ok(matrix)
    }
}

/// cos and sin of every position up to `positions`.
pub fn rope_table(rope: &RopeConfig, positions: usize) -> RopeTable {
    let factor = rope.cos_sin_factor();
    let frequencies = rope.inv_freq();
    let mut table = RopeTable {
        cos: Vec::with_capacity(positions * frequencies.len()),
        sin: Vec::with_capacity(positions * frequencies.len()),
        dim: rope.dim,
        interleaved: rope.interleaved,
    };
    for position in 0..positions {
        for &frequency in &frequencies {
            // The angle is rounded to float32, as every float32 implementation has it.
            let (sin, cos) = (position as f32 * frequency).sin_cos();
            table.cos.push(cos * factor);
            table.sin.push(sin * factor);
        }
    }
    table
}
