//! From checkpoint tensors to device weights, by name.

use std::sync::Arc;

use millrace_experts::Shape;
use millrace_kernels::{Backend, Pace, RopeTable};
use millrace_model::{
    checkpoint::{Checkpoint, Dtype},
    config::RopeConfig,
    matrix::Matrix,
};

use crate::{EngineError, ExpertShelf, GroupRank, config::LoadProgress, experts::ExpertSource};

/// Which experts to load.
pub enum Slots<'a, B: Backend> {
    /// All, in order.
    All,
    /// Those of a rank's slots, for good: its device exchanges rows with the others'.
    Fixed(&'a GroupRank),
    /// Those of a rank's slots, by way of its shelf.
    OfRank(&'a ExpertShelf<B>, &'a GroupRank),
}

impl<B: Backend> Slots<'_, B> {
    /// Ranks of the group; 1 for a rank on its own.
    pub fn ranks(&self) -> usize {
        match self {
            Slots::All => 1,
            Slots::Fixed(rank) | Slots::OfRank(_, rank) => rank.placement.shape().ranks,
        }
    }
}

/// Reads tensors and counts what it has read.
pub struct Loader<'a, B: Backend> {
    pub backend: &'a B,
    checkpoint: &'a Checkpoint,
    slots: Slots<'a, B>,
    progress: &'a mut dyn FnMut(LoadProgress),
    done: u64,
}

impl<'a, B: Backend> Loader<'a, B> {
    pub fn new(
        backend: &'a B,
        checkpoint: &'a Checkpoint,
        slots: Slots<'a, B>,
        progress: &'a mut dyn FnMut(LoadProgress),
    ) -> Loader<'a, B> {
        Loader {
            backend,
            checkpoint,
            slots,
            progress,
            done: 0,
        }
    }

    /// The shape of the group whose rows go by way of the host.
    pub fn group(&self) -> Option<Shape> {
        match self.slots {
            Slots::All | Slots::Fixed(_) => None,
            Slots::OfRank(_, group) => Some(group.placement.shape()),
        }
    }

    /// Whether a device has room for the weights beside what it holds already, and for everything before them.
    /// `mtp`: with the MTP layer.
    pub fn check_room(&self, mtp: bool) -> Result<(), EngineError> {
        self.backend.had_room()?;
        let Some(memory) = self.backend.memory() else {
            return Ok(());
        };
        let weights = self.weights(mtp);
        if weights > memory.free {
            return Err(EngineError::DeviceRoom { weights, memory });
        }
        Ok(())
    }

    /// Bytes of the weights that are to be loaded, about: as they are stored, but for those in float32, of which
    /// devices keep half.
    fn weights(&self, mtp: bool) -> usize {
        let layers = self.checkpoint.config().common.num_layers;
        let (mut all, mut experts) = (0, 0);
        for name in self.checkpoint.names() {
            let layer = name.strip_prefix("model.layers.");
            let layer = layer.and_then(|rest| rest.split('.').next()?.parse().ok());
            // The MTP layer stands behind the main ones.
            if !mtp && layer.is_some_and(|layer: usize| layer >= layers) {
                continue;
            }
            let bytes = self.checkpoint.info(name).map_or(0, |info| {
                let bytes = info.end - info.start;
                match info.dtype {
                    Dtype::F32 => bytes / 2,
                    _ => bytes,
                }
            });
            all += bytes;
            if name.contains(".mlp.experts.") {
                experts += bytes;
            }
        }
        match &self.slots {
            Slots::All => all,
            Slots::Fixed(rank) | Slots::OfRank(_, rank) => {
                let shape = rank.placement.shape();
                all - experts + experts / shape.experts * shape.slots
            }
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

    /// The experts of an MoE layer's slots, layers counted over MoE layers alone.
    pub fn experts(&mut self, layer: usize) -> Result<B::Experts, EngineError> {
        let Loader {
            backend,
            checkpoint,
            slots,
            progress,
            done,
        } = self;
        let mut read = |bytes: usize| count(checkpoint, progress, done, bytes);
        let slots = match slots {
            Slots::All | Slots::Fixed(_) => {
                // Numbers of main layers are the same with or without an MTP layer behind them.
                let source = ExpertSource::new(checkpoint.config(), true)?;
                let all: Vec<u32> = (0..source.experts as u32).collect();
                let experts = match slots {
                    Slots::Fixed(group) => group.placement.slots(layer, group.rank),
                    _ => &all,
                };
                let load = |&expert: &u32| {
                    let place = (layer, expert as usize);
                    let loaded = source.load(*backend, checkpoint, place, Pace::Full, &mut read);
                    loaded.map(Arc::new)
                };
                experts.iter().map(load).collect::<Result<_, _>>()?
            }
            Slots::OfRank(shelf, group) => {
                let experts = group.placement.slots(layer, group.rank);
                for &expert in experts {
                    shelf.load(layer, expert as usize, Pace::Full, &mut read)?;
                }
                shelf.slots(layer, experts)?
            }
        };
        Ok(backend.experts(slots))
    }

    /// A matrix as stored; counts as read.
    pub fn matrix(
        &mut self,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<Matrix<'a>, EngineError> {
        let matrix = self.checkpoint.matrix(name, rows, cols)?;
        let bytes = rows * cols * matrix.data.bits() / 8;
        count(self.checkpoint, self.progress, &mut self.done, bytes);
        Ok(matrix)
    }
}

fn count(
    checkpoint: &Checkpoint,
    progress: &mut dyn FnMut(LoadProgress),
    done: &mut u64,
    bytes: usize,
) {
    *done += bytes as u64;
    let bytes_total = checkpoint.total_bytes();
    progress(LoadProgress {
        bytes_done: (*done).min(bytes_total),
        bytes_total,
    });
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
