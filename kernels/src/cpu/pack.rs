//! Weights as the matrix kernels read them: panels of sixteen outputs, inputs in order.
//!
//! A panel holds, for each pair of inputs, sixteen columns (outputs of the layer). f32, f16 and fp8
//! store `[input][16]`, bf16 stores `[input / 2][16][2]`, where one mask and one shift widen two
//! inputs at once. Values keep the precision of the checkpoint. Missing columns of the last panel
//! and the missing half of an odd pair are zero.

use std::ops::Range;
use std::sync::Mutex;

use millrace_model::matrix::{Matrix, MatrixData};

use super::buffer::{Bytes, Floats};
use super::simd::LANES;
use super::threads::Threads;
use crate::KernelError;

/// Inputs summed before the sum is scaled and added to the output, where no scale says otherwise.
const K_BLOCK: usize = 128;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    F32,
    F16,
    Bf16,
    /// e4m3; the kernels read values divided by 256, so scales are stored times 256.
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
    /// `[panel][block of inputs][16]`, times 256; empty unless fp8.
    scales: Floats,
}

impl Packed {
    pub fn panels(&self) -> usize {
        self.outputs.div_ceil(LANES)
    }

    pub fn panel_bytes(&self) -> usize {
        self.inputs.div_ceil(2) * 2 * LANES * self.format.bytes()
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
        (self.format == Format::Fp8).then(|| &self.scales[panel * len..][..len])
    }
}

/// Rows of a stored matrix as outputs; or, transposed, its columns as outputs and `rows` as inputs.
#[derive(Clone)]
pub struct View<'a> {
    matrix: Matrix<'a>,
    rows: Range<usize>,
    transposed: bool,
}

impl<'a> View<'a> {
    pub fn whole(matrix: Matrix<'a>) -> View<'a> {
        View::rows(matrix, 0..matrix.rows)
    }

    pub fn rows(matrix: Matrix<'a>, rows: Range<usize>) -> View<'a> {
        assert!(rows.end <= matrix.rows);
        View {
            matrix,
            rows,
            transposed: false,
        }
    }

    pub fn transposed(matrix: Matrix<'a>, rows: Range<usize>) -> View<'a> {
        View {
            transposed: true,
            ..View::rows(matrix, rows)
        }
    }

    pub fn outputs(&self) -> usize {
        if self.transposed {
            self.matrix.cols
        } else {
            self.rows.len()
        }
    }

    pub fn inputs(&self) -> usize {
        if self.transposed {
            self.rows.len()
        } else {
            self.matrix.cols
        }
    }

    /// Row and column of the stored matrix.
    fn at(&self, output: usize, input: usize) -> (usize, usize) {
        if self.transposed {
            (self.rows.start + input, output)
        } else {
            (self.rows.start + output, input)
        }
    }

    /// How it can be packed: values with one scale a block of inputs, or as plain float32 where
    /// the scales' blocks do not line up with this view's inputs.
    fn layout(&self) -> (Format, usize) {
        match self.matrix.data {
            MatrixData::F32(_) => (Format::F32, K_BLOCK),
            MatrixData::F16(_) => (Format::F16, K_BLOCK),
            MatrixData::Bf16(_) => (Format::Bf16, K_BLOCK),
            MatrixData::Fp8 { scales, .. } if !self.transposed => (Format::Fp8, scales.block_cols),
            MatrixData::Fp8 { scales, .. } => {
                let first = self.rows.start / scales.block_rows;
                let last = self.rows.end.saturating_sub(1) / scales.block_rows;
                if first == last {
                    (Format::Fp8, self.rows.len().max(1))
                } else if self.rows.start.is_multiple_of(scales.block_rows) {
                    (Format::Fp8, scales.block_rows)
                } else {
                    (Format::F32, K_BLOCK)
                }
            }
        }
    }

    fn scale(&self, output: usize, input: usize) -> f32 {
        let MatrixData::Fp8 { scales, .. } = self.matrix.data else {
            return 1.0;
        };
        let (row, col) = self.at(output, input);
        let blocks = self.matrix.cols.div_ceil(scales.block_cols);
        scales
            .values
            .get(row / scales.block_rows * blocks + col / scales.block_cols)
    }

    fn not_finite(&self, output: usize, input: usize) -> KernelError {
        let (row, col) = self.at(output, input);
        KernelError::NotFinite {
            row,
            col,
            rows: self.matrix.rows,
            cols: self.matrix.cols,
        }
    }

    /// Elements of one output: first element and distance, in elements.
    fn stride(&self, output: usize) -> (usize, usize) {
        let (row, col) = self.at(output, 0);
        (
            row * self.matrix.cols + col,
            if self.transposed { self.matrix.cols } else { 1 },
        )
    }
}

/// Packs views stacked along their outputs. Neighbours in one format become one [`Packed`].
pub fn stacked(threads: &Threads, views: &[View<'_>]) -> Result<Vec<Packed>, KernelError> {
    views
        .chunk_by(|a, b| a.layout() == b.layout())
        .map(|group| {
            let outputs: usize = group.iter().map(View::outputs).sum();
            let mut starts = Vec::with_capacity(group.len());
            let mut next = 0;
            for view in group {
                starts.push(next);
                next += view.outputs();
            }
            pack(threads, group, outputs, &|output| {
                let view = starts.partition_point(|start| *start <= output) - 1;
                Some((view, output - starts[view]))
            })
        })
        .collect()
}

/// Packs one view.
pub fn single(threads: &Threads, view: View<'_>) -> Result<Packed, KernelError> {
    let outputs = view.outputs();
    pack(threads, &[view], outputs, &|output| Some((0, output)))
}

/// Packs a gate and an up projection of equal shape: panels take turns, so that one tile of the
/// product holds both factors of `silu(gate) * up`. `outputs` counts padded panels of both.
pub fn interleaved(threads: &Threads, gate_up: &[View<'_>; 2]) -> Result<Packed, KernelError> {
    let [gate, up] = gate_up;
    assert_eq!((gate.outputs(), gate.inputs()), (up.outputs(), up.inputs()));
    let inter = gate.outputs();
    pack(
        threads,
        gate_up,
        inter.div_ceil(LANES) * 2 * LANES,
        &|output| {
            let (panel, lane) = (output / LANES, output % LANES);
            let n = panel / 2 * LANES + lane;
            (n < inter).then_some((panel % 2, n))
        },
    )
}

/// `column(output)` names the view and its output that a packed column holds; `None`: zeros.
fn pack(
    threads: &Threads,
    views: &[View<'_>],
    outputs: usize,
    column: &(dyn Fn(usize) -> Option<(usize, usize)> + Sync),
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
    let mut packed = Packed {
        outputs,
        inputs,
        format,
        k_block,
        data: Bytes::default(),
        scales: Floats::default(),
    };
    let (panels, panel_bytes, blocks) = (packed.panels(), packed.panel_bytes(), packed.k_blocks());
    packed.data = Bytes::zeroed(panels * panel_bytes);
    if format == Format::Fp8 {
        packed.scales = Floats::zeroed(panels * blocks * LANES);
    }

    let failure = Mutex::new(None);
    let data = Mutex::new(packed.data.chunks_mut(panel_bytes.max(1)).enumerate());
    threads.run(panels, &|_| {
        let Some((panel, bytes)) = data.lock().expect("no panic while locked").next() else {
            return;
        };
        for lane in 0..LANES {
            let output = panel * LANES + lane;
            let Some((view, n)) = (output < outputs).then(|| column(output)).flatten() else {
                continue;
            };
            if let Err(error) = copy_output(&views[view], n, format, lane, bytes) {
                failure
                    .lock()
                    .expect("no panic while locked")
                    .get_or_insert(error);
            }
        }
    });
    if let Some(error) = failure.into_inner().expect("no panic while locked") {
        return Err(error);
    }
    if format == Format::Fp8 {
        for output in 0..outputs {
            let Some((view, n)) = column(output) else {
                continue;
            };
            for block in 0..blocks {
                let scale = views[view].scale(n, block * k_block) * 256.0;
                if !scale.is_finite() {
                    return Err(views[view].not_finite(n, block * k_block));
                }
                packed.scales[(output / LANES * blocks + block) * LANES + output % LANES] = scale;
            }
        }
    }
    Ok(packed)
}

/// Copies one output's weights into lane `lane` of its panel.
fn copy_output(
    view: &View<'_>,
    output: usize,
    format: Format,
    lane: usize,
    panel: &mut [u8],
) -> Result<(), KernelError> {
    let (first, step) = view.stride(output);
    let count = view.inputs();
    // The place of input k in units of elements, for all formats but bf16.
    let plain = |k: usize| k * LANES + lane;
    let bad = match (view.matrix.data, format) {
        (MatrixData::F32(bytes), _) => copy::<4>(bytes, first, step, count, panel, plain, |v| {
            u32::from_le_bytes(v) >> 23 & 0xff == 0xff
        }),
        (MatrixData::F16(bytes), Format::F16) => {
            copy::<2>(bytes, first, step, count, panel, plain, |v| {
                u16::from_le_bytes(v) >> 10 & 0x1f == 0x1f
            })
        }
        (MatrixData::Bf16(bytes), Format::Bf16) => copy::<2>(
            bytes,
            first,
            step,
            count,
            panel,
            |k| k / 2 * 2 * LANES + lane * 2 + k % 2,
            |v| u16::from_le_bytes(v) >> 7 & 0xff == 0xff,
        ),
        (MatrixData::Fp8 { bytes, .. }, Format::Fp8) => {
            copy::<1>(bytes, first, step, count, panel, plain, |[v]| {
                v & 0x7f == 0x7f
            })
        }
        // Mixed formats, or scales that do not line up: float32.
        _ => (0..count).find(|&k| {
            let (row, col) = view.at(output, k);
            let value = element(&view.matrix, row, col);
            panel[plain(k) * 4..][..4].copy_from_slice(&value.to_le_bytes());
            !value.is_finite()
        }),
    };
    bad.map_or(Ok(()), |input| Err(view.not_finite(output, input)))
}

/// Copies `count` elements of `N` bytes, `step` apart; answers the first that is not finite.
fn copy<const N: usize>(
    from: &[u8],
    first: usize,
    step: usize,
    count: usize,
    panel: &mut [u8],
    place: impl Fn(usize) -> usize,
    not_finite: impl Fn([u8; N]) -> bool,
) -> Option<usize> {
    let (from, _) = from.as_chunks::<N>();
    let (panel, _) = panel.as_chunks_mut::<N>();
    (0..count).find(|&k| {
        let value = from[first + k * step];
        panel[place(k)] = value;
        not_finite(value)
    })
}

/// One dequantised element.
pub fn element(matrix: &Matrix<'_>, row: usize, col: usize) -> f32 {
    let at = row * matrix.cols + col;
    let two = |bytes: &[u8]| u16::from_le_bytes([bytes[at * 2], bytes[at * 2 + 1]]);
    match matrix.data {
        MatrixData::F32(bytes) => f32::from_le_bytes(bytes.as_chunks::<4>().0[at]),
        MatrixData::F16(bytes) => half::f16::from_bits(two(bytes)).to_f32(),
        MatrixData::Bf16(bytes) => half::bf16::from_bits(two(bytes)).to_f32(),
        MatrixData::Fp8 { bytes, .. } => {
            let scale = View::whole(*matrix).scale(row, col);
            super::simd::FP8_DIV_256[usize::from(bytes[at])] * 256.0 * scale
        }
    }
}
