//! Choosing tokens from rows of logits: changes before it, the largest, draws, and log-probs.

use super::device::Shape;
use super::profile::bytes_of;
use super::{CudaBackend, Kind, Tensor, params};
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

    pub(super) fn score_rows(&self, x: &Tensor, scored: &[Scored], out: &mut Vec<LogProbs>) {
        assert_eq!(x.kind(), Kind::F32);
        out.clear();
        let Some(most) = scored.iter().map(|one| one.count.min(x.cols())).max() else {
            return;
        };
        let spec = |one: &Scored| {
            assert!(one.row < x.rows() && (one.token as usize) < x.cols());
            params::ScoredSpec {
                row: one.row as u32,
                token: one.token,
                count: one.count.min(x.cols()) as u32,
            }
        };
        let specs: Vec<params::ScoredSpec> = scored.iter().map(spec).collect();
        // Sum, largest and the token's own come first.
        let stride = 2 + most;
        let space = &mut *self.space();
        let mut found = vec![[0u32; 2]; scored.len() * stride];
        let memory = space.best.at_least(&self.device, size_of_val(&found[..]));
        let params = params::LogProbs {
            x: x.matrix(),
            cols: x.cols() as u32,
            scored: space.draws.upload(&self.device, &specs),
            out: memory.address(),
            out_stride: stride as u64,
        };
        self.moved("log-probs", 4 * scored.len() * x.cols(), || {
            // SAFETY: see `ops`; there is a place for all that is wanted.
            unsafe {
                let kernel = &self.device.kernels.log_probs;
                self.device.launch(kernel, blocks(scored.len()), &params)
            }
        });
        memory.download(0, &mut found);
        out.extend(found.chunks_exact(stride).zip(&specs).map(|(found, spec)| {
            let [low, high] = found[0].map(u64::from);
            let [largest, chosen] = found[1].map(f32::from_bits);
            let top = found[2..][..spec.count as usize].iter();
            let top = top.map(|&[token, bits]| (token, f32::from_bits(bits)));
            LogProbs::new(
                largest,
                f64::from_bits(high << 32 | low),
                chosen,
                top.collect(),
            )
        }));
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
