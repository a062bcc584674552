//! Products in 8 bits: weights as DeepSeek's checkpoints store them, inputs quantised on the way in.
//!
//! Weights have a scale for every 128 x 128 of them, inputs one for every 128 of a row. Which kernel computes a product
//! depends on the number of rows; its result does not (`sm90a_fp8_gemm.cu`), but for the number of segments that inputs
//! are cut into, which the weights' shape decides.

use std::sync::Arc;

use cudarc::driver::sys::CUtensorMap;
use millrace_model::matrix::{BlockScales, Matrix, MatrixData};

use super::device::{Device, Function, Shape};
use super::map::{Map, Value};
use super::memory::{Memory, Scratch};
use super::params::{Address, Fp8Gemm, Fp8Quantize};
use super::tensor::Kind;
use super::uploads::{copied, upload};
use super::weights::{check_rows, check_scales};
use crate::{KernelError, Pace};

const WHAT: &str = "weights";
/// Inputs, and outputs, that share a scale.
pub const BLOCK: usize = 128;
/// Outputs of a tile: there are whole ones only.
const TILE: usize = 64;
/// Values of the box that scales of inputs are copied in.
const SCALE_BOX: usize = 132;

/// `[outputs, inputs]` of e4m3, and their scales.
pub struct Weights {
    codes: Memory,
    /// `[outputs / 128, inputs / 128]`, the last row for what is left.
    scales: Memory,
    pub outputs: usize,
    pub inputs: usize,
    /// Boxed: it is as large as all else of a matrix in any form.
    map: Box<CUtensorMap>,
}

/// Whether `parts`, stacked, can be multiplied in 8 bits.
pub fn takes(parts: &[Matrix<'_>]) -> bool {
    let outputs: usize = parts.iter().map(|part| part.rows).sum();
    let whole = |(number, part): (usize, &Matrix<'_>)| {
        let MatrixData::Fp8 { scales, .. } = part.data else {
            return false;
        };
        // Blocks of a part that is not the last must end where the part does.
        let ends = number + 1 == parts.len() || part.rows.is_multiple_of(BLOCK);
        (scales.block_rows, scales.block_cols) == (BLOCK, BLOCK)
            && part.cols.is_multiple_of(BLOCK)
            && ends
    };
    outputs.is_multiple_of(TILE) && parts.iter().enumerate().all(whole)
}

impl Weights {
    /// Of what [`takes`] says yes to.
    pub fn stacked(
        device: &Arc<Device>,
        parts: &[Matrix<'_>],
        pace: Pace,
    ) -> Result<Weights, KernelError> {
        let inputs = parts[0].cols;
        let outputs = parts.iter().map(|part| part.rows).sum();
        let codes = Memory::unset(device, outputs * inputs, WHAT)?;
        let mut scales: Vec<f32> = Vec::new();
        let mut row = 0;
        for part in parts {
            check_scales(part)?;
            let MatrixData::Fp8 {
                bytes,
                scales: blocks,
            } = part.data
            else {
                unreachable!("asked before");
            };
            let at = row * inputs;
            upload(
                device,
                &codes,
                at,
                [part.rows, inputs],
                pace,
                &|rows, to| {
                    check_rows(part, rows.clone())?;
                    to.copy_from_slice(&bytes[rows.start * inputs..rows.end * inputs]);
                    Ok(())
                },
            )?;
            row += part.rows;
            scales.extend(values(
                &blocks,
                part.rows.div_ceil(BLOCK) * (inputs / BLOCK),
            ));
        }
        let scales = copied(device, bytemuck::cast_slice(&scales), WHAT, pace)?;
        Ok(Weights::of(device, codes, scales, outputs, inputs))
    }

    fn of(
        device: &Device,
        codes: Memory,
        scales: Memory,
        outputs: usize,
        inputs: usize,
    ) -> Weights {
        let map = Map {
            data: codes.address(),
            kind: Value::Byte,
            cols: inputs,
            rows: outputs,
            stride: inputs,
            box_cols: BLOCK as u32,
            box_rows: TILE as u32,
            swizzled: true,
        };
        Weights {
            map: Box::new(map.encode(device)),
            codes,
            scales,
            outputs,
            inputs,
        }
    }

    pub fn map(&self) -> &CUtensorMap {
        &self.map
    }

    pub fn scales(&self) -> Address {
        self.scales.address()
    }

    /// As they lie in memory, for another device.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.codes.bytes() + self.scales.bytes()];
        let (codes, scales) = bytes.split_at_mut(self.codes.bytes());
        self.codes.download_beside(codes);
        self.scales.download_beside(scales);
        bytes
    }

    pub fn len_of(outputs: usize, inputs: usize) -> usize {
        outputs * inputs + 4 * outputs.div_ceil(BLOCK) * (inputs / BLOCK)
    }

    /// What [`Weights::bytes`] gave; of the right length.
    pub fn from_bytes(
        device: &Arc<Device>,
        bytes: &[u8],
        outputs: usize,
        inputs: usize,
    ) -> Result<Weights, KernelError> {
        let (codes, scales) = bytes.split_at(outputs * inputs);
        let codes = copied(device, codes, WHAT, Pace::Background)?;
        let scales = copied(device, scales, WHAT, Pace::Background)?;
        Ok(Weights::of(device, codes, scales, outputs, inputs))
    }
}

fn values<'a>(scales: &'a BlockScales<'a>, count: usize) -> impl Iterator<Item = f32> + 'a {
    (0..count).map(|index| scales.values.get(index))
}

/// Rows in 8 bits, until the next ones.
#[derive(Default)]
pub struct Space {
    codes: Scratch,
    scales: Scratch,
}

/// Rows to quantise: `count` of `cols` values in bf16.
#[derive(Clone, Copy)]
pub struct Rows {
    pub x: Address,
    pub stride: usize,
    pub count: usize,
    /// Where the device has their number, which is `count` at most; 0: it is `count`.
    pub counted: Address,
    /// About how many there are: what is best depends on it, and results do not.
    pub likely: usize,
    pub cols: usize,
    /// Which row each is; 0: row by row.
    pub index: Address,
    /// `cols` values of a gate and as many that it multiplies, and not the values themselves.
    pub gated: bool,
}

/// Quantised rows.
#[derive(Clone, Copy)]
pub struct Quantised {
    pub codes: Address,
    /// `[cols / 128][scale_stride]`.
    pub scales: Address,
    pub scale_stride: usize,
    pub rows: usize,
    /// As in [`Rows`].
    pub likely: usize,
    pub cols: usize,
}

/// What they are multiplied with.
pub enum By<'a> {
    One(&'a Weights),
    /// One matrix a slot, by tables on the device; `like` is one of them. Row `offsets[s]` is the first of
    /// slot `s`.
    Slots {
        like: &'a Weights,
        maps: Address,
        scales: Address,
        offsets: Address,
        slots: usize,
    },
}

impl Space {
    /// Room for `rows` rows, whatever fills it.
    pub fn room(
        &mut self,
        device: &Arc<Device>,
        rows: usize,
        likely: usize,
        cols: usize,
    ) -> Quantised {
        let scale_stride = rows.next_multiple_of(4).max(SCALE_BOX);
        Quantised {
            codes: self.codes.at_least(device, rows * cols).address(),
            scales: self
                .scales
                .at_least(device, 4 * scale_stride * cols / BLOCK)
                .address(),
            scale_stride,
            rows,
            likely,
            cols,
        }
    }

    pub fn quantise(&mut self, device: &Arc<Device>, rows: Rows) -> Quantised {
        let room = self.room(device, rows.count, rows.likely, rows.cols);
        quantise(device, rows, &room);
        room
    }
}

/// Puts `rows` into `room`, in 8 bits.
pub fn quantise(device: &Device, rows: Rows, room: &Quantised) {
    let Rows { count, cols, .. } = rows;
    let params = Fp8Quantize {
        x: rows.x,
        q: room.codes,
        scales: room.scales,
        rows_ptr: rows.counted,
        rows: count as u32,
        k: cols as u32,
        ldx: rows.stride as u32,
        scale_ld: room.scale_stride as u32,
        index: rows.index,
    };
    let kernel = match rows.gated {
        true => &device.kernels.fp8_silu_mul_quantize,
        false => &device.kernels.fp8_quantize,
    };
    let shape = Shape {
        // Blocks go on to further rows if there are more than is likely.
        grid: [
            cols.div_ceil(256),
            count.min(2 * rows.likely).div_ceil(32),
            1,
        ],
        threads: 256,
        shared: 0,
    };
    // SAFETY: the rows are where the caller says, and there is room for them.
    unsafe { device.launch(kernel, shape, &params) };
}

/// Threads, bytes of shared memory, blocks of a cluster, outputs of a cluster, rows of a tile, and rows of the box
/// that inputs are copied in, as in `sm90a_fp8_gemm.cu`.
struct Form {
    threads: usize,
    shared: usize,
    cluster: usize,
    outputs: usize,
    tile: usize,
    box_rows: u32,
    split: u32,
    kernels: [fn(&super::device::Kernels) -> &Function<Fp8Gemm>; 2],
}

const NARROW: Form = Form {
    threads: 352,
    shared: 211_096,
    cluster: 2,
    outputs: 128,
    tile: 128,
    box_rows: 32,
    split: 1,
    kernels: [|k| &k.fp8_gemm_narrow_bf16, |k| &k.fp8_gemm_narrow_f32],
};
const SPLIT: Form = Form {
    shared: 222_728,
    cluster: 3,
    outputs: 64,
    split: SEGMENTS,
    kernels: [|k| &k.fp8_gemm_split3_bf16, |k| &k.fp8_gemm_split3_f32],
    ..NARROW
};
const WIDE: Form = Form {
    threads: 384,
    shared: 209_768,
    cluster: 2,
    outputs: 256,
    tile: 128,
    box_rows: 64,
    split: 1,
    kernels: [|k| &k.fp8_gemm_wide_bf16, |k| &k.fp8_gemm_wide_f32],
};
const WIDE_256: Form = Form {
    shared: 210_504,
    tile: 256,
    kernels: [|k| &k.fp8_gemm_wide256_bf16, |k| &k.fp8_gemm_wide256_f32],
    ..WIDE
};
const WIDE_SPLIT: Form = Form {
    split: SEGMENTS,
    kernels: [
        |k| &k.fp8_gemm_wide_split_bf16,
        |k| &k.fp8_gemm_wide_split_f32,
    ],
    ..WIDE
};

/// Segments that inputs are cut into where there are too few outputs to keep the device busy.
const SEGMENTS: u32 = 3;

/// By what was measured on an H200.
fn form(outputs: usize, inputs: usize, rows: usize, slots: usize) -> &'static Form {
    // Decided by the shape of the weights alone: the sums differ.
    let split = slots == 1 && outputs < 40 * TILE && inputs >= 24 * BLOCK;
    let each = rows.div_ceil(slots);
    match (split, each) {
        (true, 0..=256) => &SPLIT,
        (true, _) => &WIDE_SPLIT,
        (false, 0..=64) if slots == 1 => &NARROW,
        (false, 0..=32) => &NARROW,
        (false, 0..=128) if slots == 1 && outputs < 24_576 => &NARROW,
        (false, 1024..) if outputs > 8192 && inputs <= 2048 => &WIDE_256,
        _ => &WIDE,
    }
}

/// `out = x W^T`, `stride` values from one of its rows to the next.
pub fn multiply(
    device: &Device,
    x: &Quantised,
    by: By<'_>,
    out: Address,
    stride: usize,
    kind: Kind,
) {
    let (like, slots) = match &by {
        By::One(weights) => (*weights, 1),
        By::Slots { like, slots, .. } => (*like, *slots),
    };
    assert_eq!(x.cols, like.inputs);
    if x.rows == 0 {
        return;
    }
    let form = form(like.outputs, like.inputs, x.likely, slots);
    let x_map = Map {
        data: x.codes,
        kind: Value::Byte,
        cols: x.cols,
        rows: x.rows,
        stride: x.cols,
        box_cols: BLOCK as u32,
        box_rows: form.box_rows,
        swizzled: true,
    };
    let s_map = Map {
        data: x.scales,
        kind: Value::F32,
        cols: x.scale_stride,
        rows: x.cols / BLOCK,
        stride: 4 * x.scale_stride,
        box_cols: SCALE_BOX as u32,
        box_rows: 1,
        swizzled: false,
    };
    let mut params = Fp8Gemm {
        x_map: x_map.encode(device),
        s_map: s_map.encode(device),
        w_map: *like.map,
        w_maps: 0,
        w_scales: 0,
        w_scale: like.scales(),
        offsets: 0,
        rows_ptr: 0,
        y: out,
        slots: slots as u32,
        rows: x.rows as u32,
        n: like.outputs as u32,
        k: like.inputs as u32,
        ldy: stride as u32,
        split: form.split,
    };
    let mut tiles = x.rows.div_ceil(form.tile);
    if let By::Slots {
        maps,
        scales,
        offsets,
        ..
    } = by
    {
        params = Fp8Gemm {
            w_maps: maps,
            w_scales: scales,
            w_scale: 0,
            offsets,
            ..params
        };
        tiles += slots;
    }
    let work = like.outputs.div_ceil(form.outputs) * tiles;
    let clusters = (device.multiprocessors() / form.cluster).min(work);
    let shape = Shape {
        grid: [form.cluster * clusters, 1, 1],
        threads: form.threads,
        shared: form.shared,
    };
    let kernel = form.kernels[usize::from(kind == Kind::F32)](&device.kernels);
    // SAFETY: maps and addresses are of matrices of these sizes, and the output has `rows` rows.
    unsafe { device.launch(kernel, shape, &params) };
}
