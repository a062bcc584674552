//! Choosing tokens from rows of logits: changes before it, the largest, draws, and log-probs.

use cudarc::driver::result;

use super::device::Shape;
use super::profile::bytes_of;
use super::{CudaBackend, Kind, Tensor, params};
use crate::cpu::choice::log_probs;
use crate::{Draw, Edits, LogProbs, Scored};

/// A block a row, or a request about one.
fn blocks(count: usize) -> Shape {
    Shape {
        grid: [count, 1, 1],
        threads: 1024,
        shared: 0,
    }
}

/// Lists of changes begin with room for so many bytes, and it doubles: they are longer with every token, and memory
/// that moves makes recorded passes void.
const EDIT_BYTES: usize = 1 << 20;

impl CudaBackend {
    pub(super) fn edit_rows(&self, x: &mut Tensor, edits: &[(usize, &Edits<'_>)]) {
        assert_eq!(x.kind(), Kind::F32);
        if edits.is_empty() {
            return;
        }
        x.changed();
        let words = words_of(x.rows(), edits);
        let bytes = size_of_val(&words[..]);
        let space = &mut self.space().edits;
        let room = bytes.next_power_of_two().max(EDIT_BYTES);
        let memory = space.at_least(&self.device, room);
        memory.upload(0, &words);
        let params = params::Edit {
            x: x.matrix(),
            cols: x.cols() as u32,
            words: memory.address(),
        };
        self.moved("changes of logits", bytes, || {
            // SAFETY: see `ops`; tokens are held against the columns where they are read.
            unsafe {
                let kernel = &self.device.kernels.edit;
                self.device.launch(kernel, blocks(edits.len()), &params)
            }
        });
    }

    /// By way of the host, with the processor's own form.
    pub(super) fn score_rows(&self, x: &Tensor, scored: &[Scored], out: &mut Vec<LogProbs>) {
        assert_eq!(x.kind(), Kind::F32);
        let cols = x.cols();
        let mut rows = vec![0.0f32; scored.len() * cols];
        self.device.bind();
        for (one, row) in scored.iter().zip(rows.chunks_exact_mut(cols)) {
            assert!(one.row < x.rows());
            let from = x.address() + (4 * one.row * x.stride()) as u64;
            // SAFETY: a row of the tensor, and waited for before it is read here.
            let copied = unsafe { result::memcpy_dtoh_async(row, from, self.device.stream()) };
            self.device.expect(copied);
        }
        self.device.wait();
        let scores = scored.iter().zip(rows.chunks_exact(cols));
        out.clear();
        out.extend(scores.map(|(one, row)| log_probs(row, one.token, one.count)));
    }

    pub(super) fn largest(&self, x: &Tensor, out: &mut Vec<(u32, f32)>) {
        assert_eq!(x.kind(), Kind::F32);
        assert!(x.cols() > 0);
        let space = &mut self.space().best;
        let memory = space.at_least(&self.device, 8 * x.rows());
        let params = params::ArgMax {
            x: x.matrix(),
            cols: x.cols() as u32,
            out: memory.address(),
        };
        let shape = blocks(x.rows());
        self.moved("largest logit", bytes_of(x), || {
            // SAFETY: see `ops`; there is a place for every row.
            unsafe {
                self.device
                    .launch(&self.device.kernels.arg_max, shape, &params)
            }
        });
        let mut found = vec![[0u32; 2]; x.rows()];
        memory.download(0, &mut found);
        out.clear();
        out.extend(found.iter().map(|best| (best[0], f32::from_bits(best[1]))));
    }

    pub(super) fn draw_rows(&self, x: &Tensor, draws: &[(usize, Draw)], out: &mut Vec<(u32, f32)>) {
        assert!(x.kind() == Kind::F32 && x.cols() > 0);
        out.clear();
        if draws.is_empty() {
            return;
        }
        let spec = |&(row, draw): &(usize, Draw)| {
            assert!(row < x.rows());
            params::DrawSpec {
                row: row as u32,
                top_k: draw.top_k,
                inverse_temperature: draw.inverse_temperature,
                min_p: draw.min_p,
                top_p: draw.top_p,
                padding: 0,
                quantile: draw.quantile,
            }
        };
        let specs: Vec<params::DrawSpec> = draws.iter().map(spec).collect();
        let space = &mut *self.space();
        let memory = space.best.at_least(&self.device, 8 * draws.len());
        let params = params::Draw {
            x: x.matrix(),
            cols: x.cols() as u32,
            specs: space.draws.upload(&self.device, &specs),
            out: memory.address(),
        };
        let shape = blocks(draws.len());
        let bytes = 4 * draws.len() * x.cols();
        self.moved("draws", bytes, || {
            // SAFETY: see `ops`; there is a place for every draw.
            unsafe {
                self.device
                    .launch(&self.device.kernels.draw, shape, &params)
            }
        });
        let mut found = vec![[0u32; 2]; draws.len()];
        memory.download(0, &mut found);
        out.extend(found.iter().map(|best| (best[0], f32::from_bits(best[1]))));
    }
}

/// What each block is told, and then all lists (`sm90_f32_choice.cu`).
fn words_of(rows: usize, edits: &[(usize, &Edits<'_>)]) -> Vec<u32> {
    let mut words = vec![0; edits.len() * size_of::<params::EditSpec>() / size_of::<u32>()];
    let mut specs = Vec::with_capacity(edits.len());
    for (row, edits) in edits {
        assert!(*row < rows);
        let bias = words.len();
        let mut pairs = edits.bias.to_vec();
        pairs.sort_by_key(|pair| pair.0);
        words.extend(
            pairs
                .iter()
                .flat_map(|(token, bias)| [*token, bias.to_bits()]),
        );
        let banned = words.len();
        words.extend_from_slice(&edits.banned);
        let seen = words.len();
        words.extend_from_slice(bytemuck::cast_slice(&edits.seen));
        specs.push(params::EditSpec {
            row: *row as u32,
            bias: bias as u32,
            banned: banned as u32,
            seen: seen as u32,
            end: words.len() as u32,
            repetition: edits.repetition,
            frequency: edits.frequency,
            presence: edits.presence,
        });
    }
    let specs: &[u32] = bytemuck::cast_slice(&specs);
    words[..specs.len()].copy_from_slice(specs);
    words
}
