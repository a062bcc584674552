//! Weights as the matrix kernels read them: panels of sixteen outputs, inputs in order.
//!
//! A panel holds, for each four inputs, sixteen columns (outputs of the layer). float32 and f16 store
//! `[input][16]`; bf16 stores two pairs of inputs as `[16][2]` and fp8 one four as `[16][4]`, which a
//! few masks and shifts widen. Values keep the precision of the checkpoint. Missing columns of the
//! last panel, and inputs missing of a block's last four, are zero.

mod parts;
mod view;

use std::ops::Range;
use std::sync::Mutex;

use millrace_model::matrix::MatrixData;

use super::arena::{Arena, Bytes};
use super::gemm::chunks;
use super::simd::LANES;
use super::threads::Threads;
use crate::KernelError;

pub use parts::Layout;
pub use view::{View, element};

/// Inputs summed before the sum is scaled and added to the output, where no scale says otherwise.
pub const K_BLOCK: usize = 128;

/// What activations are multiplied with before they meet fp8 weights, and scales after.
pub const FP8_INPUT: f32 = exp2(64);
const FP8_SCALE: f32 = exp2(56);

const fn exp2(exponent: u32) -> f32 {
    f32::from_bits((127 + exponent) << 23)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    F32,
    F16,
    Bf16,
    /// e4m3. Kernels read it times 2^-120 and activations times 2^64, so scales are stored times 2^56.
    Fp8,
}

impl Format {
    pub fn bytes(self) -> usize {
        match self {
            Format::F32 => 4,
            Format::F16 | Format::Bf16 => 2,
            Format::Fp8 => 1,
        }
    }
}

/// `[outputs, inputs]` in panels.
pub struct Packed {
    pub outputs: usize,
    pub inputs: usize,
    pub format: Format,
    /// Inputs that share a scale; a sum's inner block.
    pub k_block: usize,
    data: Bytes,
    /// `[panel][block of inputs][16]`, times 2^56; empty unless fp8.
    scales: Bytes,
}

impl Packed {
    pub fn panels(&self) -> usize {
        self.outputs.div_ceil(LANES)
    }

    pub fn panel_bytes(&self) -> usize {
        self.place(self.inputs) * LANES * self.format.bytes()
    }

    /// Inputs that are stored before input `input`, padding among them (`inputs`: in all).
    pub fn place(&self, input: usize) -> usize {
        place(self.k_block, input, self.inputs)
    }

    pub fn k_blocks(&self) -> usize {
        self.inputs.div_ceil(self.k_block)
    }

    pub fn panel(&self, panel: usize) -> &[u8] {
        &self.data[panel * self.panel_bytes()..][..self.panel_bytes()]
    }

    /// `[block][16]` of one panel, unless the format has none.
    pub fn panel_scales(&self, panel: usize) -> Option<&[f32]> {
        let len = self.k_blocks() * LANES;
        (self.format == Format::Fp8)
            .then(|| &bytemuck::cast_slice(&self.scales)[panel * len..][..len])
    }
}

/// Every block of inputs begins at a multiple of four.
fn place(k_block: usize, input: usize, inputs: usize) -> usize {
    let place = input / k_block * k_block.next_multiple_of(4) + input % k_block;
    if input == inputs {
        place.next_multiple_of(4)
    } else {
        place
    }
}

/// Outputs of interleaved gate and up projections of `inter` each, padded panels among them.
pub fn interleaved_outputs(inter: usize) -> usize {
    inter.div_ceil(LANES) * 2 * LANES
}

/// Packs weights into an arena, on `threads`.
pub struct Packer<'a> {
    pub arena: &'a Arena,
    pub threads: &'a Threads,
}

/// What a packed column holds: a view and its output; `None`: zeros.
type Column<'a> = &'a (dyn Fn(usize) -> Option<(usize, usize)> + Sync);

impl Packer<'_> {
    /// Packs views stacked along their outputs. Neighbours in one format become one [`Packed`].
    pub fn stacked(&self, views: &[View<'_>]) -> Result<Vec<Packed>, KernelError> {
        views
            .chunk_by(|a, b| a.layout() == b.layout())
            .map(|group| {
                let mut starts = Vec::with_capacity(group.len());
                let mut outputs = 0;
                for view in group {
                    starts.push(outputs);
                    outputs += view.outputs();
                }
                self.pack(group, outputs, &|output| {
                    let view = starts.partition_point(|start| *start <= output) - 1;
                    Some((view, output - starts[view]))
                })
            })
            .collect()
    }

    /// Packs one view.
    pub fn single(&self, view: View<'_>) -> Result<Packed, KernelError> {
        let outputs = view.outputs();
        self.pack(&[view], outputs, &|output| Some((0, output)))
    }

    /// Packs a gate and an up projection of equal shape: panels take turns, so that one tile of the
    /// product holds both factors of `silu(gate) * up`.
    pub fn interleaved(&self, gate_up: &[View<'_>; 2]) -> Result<Packed, KernelError> {
        let [gate, up] = gate_up;
        assert_eq!((gate.outputs(), gate.inputs()), (up.outputs(), up.inputs()));
        let inter = gate.outputs();
        self.pack(gate_up, interleaved_outputs(inter), &|output| {
            let (panel, lane) = (output / LANES, output % LANES);
            let n = panel / 2 * LANES + lane;
            (n < inter).then_some((panel % 2, n))
        })
    }

    fn pack(
        &self,
        views: &[View<'_>],
        outputs: usize,
        column: Column<'_>,
    ) -> Result<Packed, KernelError> {
        let inputs = views[0].inputs();
        assert!(
            views.iter().all(|view| view.inputs() == inputs),
            "stacked matrices of unequal width"
        );
        let (mut format, mut k_block) = views[0].layout();
        if views.iter().any(|view| view.layout() != (format, k_block)) {
            (format, k_block) = (Format::F32, K_BLOCK);
        }
        let (panels, blocks) = (outputs.div_ceil(LANES), inputs.div_ceil(k_block));
        let scaled = format == Format::Fp8;
        let scale_bytes = if scaled {
            panels * blocks * LANES * size_of::<f32>()
        } else {
            0
        };
        let panel_bytes = place(k_block, inputs, inputs) * LANES * format.bytes();
        let mut packed = Packed {
            outputs,
            inputs,
            format,
            k_block,
            data: self.arena.bytes(panels * panel_bytes)?,
            scales: self.arena.bytes(scale_bytes)?,
        };
        self.fill(&mut packed, panel_bytes, views, column)?;
        if scaled {
            fill_scales(&mut packed, views, column)?;
        }
        Ok(packed)
    }

    fn fill(
        &self,
        packed: &mut Packed,
        panel_bytes: usize,
        views: &[View<'_>],
        column: Column<'_>,
    ) -> Result<(), KernelError> {
        let (format, k_block) = (packed.format, packed.k_block);
        let (outputs, all_inputs) = (packed.outputs, packed.inputs);
        let failure = Mutex::new(None);
        let panels = Mutex::new(packed.data.chunks_mut(panel_bytes.max(1)).enumerate());
        let next = || panels.lock().expect("no panic while locked").next();
        self.threads.run(outputs.div_ceil(LANES), &|_| {
            let Some((panel, bytes)) = next() else { return };
            let columns = panel * LANES..outputs.min((panel + 1) * LANES);
            // Some inputs of all columns at a time: a panel may be larger than the first-level cache.
            for inputs in chunks(0..all_inputs, 256) {
                for (lane, output) in columns.clone().enumerate() {
                    let Some((view, n)) = column(output) else {
                        continue;
                    };
                    let view = &views[view];
                    let strided = Strided {
                        view,
                        output: n,
                        k_block,
                        lane,
                    };
                    if let Some(input) = strided.copy(format, inputs.clone(), bytes) {
                        let error = view.not_finite(n, input);
                        failure
                            .lock()
                            .expect("no panic while locked")
                            .get_or_insert(error);
                    }
                }
            }
        });
        failure
            .into_inner()
            .expect("no panic while locked")
            .map_or(Ok(()), Err)
    }
}

fn fill_scales(
    packed: &mut Packed,
    views: &[View<'_>],
    column: Column<'_>,
) -> Result<(), KernelError> {
    let (blocks, k_block) = (packed.k_blocks(), packed.k_block);
    let scales: &mut [f32] = bytemuck::cast_slice_mut(&mut packed.scales);
    for output in 0..packed.outputs {
        let Some((view, n)) = column(output) else {
            continue;
        };
        for block in 0..blocks {
            let scale = views[view].scale(n, block * k_block) * FP8_SCALE;
            if !scale.is_finite() {
                return Err(views[view].not_finite(n, block * k_block));
            }
            scales[(output / LANES * blocks + block) * LANES + output % LANES] = scale;
        }
    }
    Ok(())
}

/// One output's weights on their way into a lane of a panel.
struct Strided<'a> {
    view: &'a View<'a>,
    output: usize,
    k_block: usize,
    lane: usize,
}

impl Strided<'_> {
    /// Copies the weights of some inputs into the panel; answers the first that is not finite.
    fn copy(&self, format: Format, inputs: Range<usize>, panel: &mut [u8]) -> Option<usize> {
        match (self.view.data(), format) {
            (MatrixData::F32(bytes), _) => self.elements::<4, 1>(bytes, inputs, panel, |v| {
                u32::from_le_bytes(v) >> 23 & 0xff == 0xff
            }),
            (MatrixData::F16(bytes), Format::F16) => {
                self.elements::<2, 1>(bytes, inputs, panel, |v| {
                    u16::from_le_bytes(v) >> 10 & 0x1f == 0x1f
                })
            }
            (MatrixData::Bf16(bytes), Format::Bf16) => {
                self.elements::<2, 2>(bytes, inputs, panel, |v| {
                    u16::from_le_bytes(v) >> 7 & 0xff == 0xff
                })
            }
            (MatrixData::Fp8 { bytes, .. }, Format::Fp8) => {
                self.elements::<1, 4>(bytes, inputs, panel, |[v]| v & 0x7f == 0x7f)
            }
            // Mixed formats, or scales that do not line up: float32.
            _ => inputs.into_iter().find(|&k| {
                let value = self.view.value(self.output, k);
                panel[self.at::<1>(k) * 4..][..4].copy_from_slice(&value.to_le_bytes());
                !value.is_finite()
            }),
        }
    }

    /// Elements of `N` bytes, `GROUP` of which share a word.
    fn elements<const N: usize, const GROUP: usize>(
        &self,
        from: &[u8],
        inputs: Range<usize>,
        panel: &mut [u8],
        not_finite: impl Fn([u8; N]) -> bool,
    ) -> Option<usize> {
        let (first, step) = self.view.elements(self.output);
        let (from, _) = from.as_chunks::<N>();
        let (panel, _) = panel.as_chunks_mut::<N>();
        // One question at the end is cheaper than one a weight.
        let mut bad = false;
        for k in inputs.clone() {
            let value = from[first + k * step];
            panel[self.at::<GROUP>(k)] = value;
            bad |= not_finite(value);
        }
        bad.then(|| {
            inputs
                .into_iter()
                .find(|k| not_finite(from[first + k * step]))
        })
        .flatten()
    }

    /// Where input `k` goes, in elements.
    #[inline(always)]
    fn at<const GROUP: usize>(&self, k: usize) -> usize {
        // Blocks of a multiple of four (all but odd ones) need no padding between them.
        let k = if self.k_block.is_multiple_of(4) {
            k
        } else {
            place(self.k_block, k, self.view.inputs())
        };
        k / GROUP * GROUP * LANES + self.lane * GROUP + k % GROUP
    }
}
