//! Products with weights: which tile, and over what.

use super::device::{Device, Function, Shape};
use super::params::{Address, Gemm, Matrix};
use super::tensor::{Kind, Tensor};
use super::weights::{HeadLinear, Vector, Weights};

/// As in `sm90_bf16_gemm.cu`.
const BN: usize = 64;
const BK: usize = 64;
const STAGES: usize = 4;
const THREADS: usize = 128;

/// Rows of a tile for products of `rows` rows. Results do not depend on it.
pub fn tile_rows(rows: usize) -> usize {
    match rows {
        0..=32 => 16,
        33..=256 => 64,
        _ => 128,
    }
}

fn function(device: &Device, tile: usize, out: Kind) -> &Function<Gemm> {
    let kernels = &device.kernels;
    match (tile, out) {
        (16, Kind::Bf16) => &kernels.gemm_16_bf16,
        (16, Kind::F32) => &kernels.gemm_16_f32,
        (64, Kind::Bf16) => &kernels.gemm_64_bf16,
        (64, Kind::F32) => &kernels.gemm_64_f32,
        (_, Kind::Bf16) => &kernels.gemm_128_bf16,
        (_, Kind::F32) => &kernels.gemm_128_f32,
    }
}

/// `grid`: tiles of rows, and heads.
fn launch(device: &Device, tile: usize, out: Kind, [rows, heads]: [usize; 2], gemm: &Gemm) {
    assert!(
        gemm.x.is_multiple_of(16)
            && gemm.x_stride.is_multiple_of(8)
            && gemm.x_step.is_multiple_of(8),
        "this device reads inputs in pieces of 16 bytes: head sizes and ranks of the model have to be multiples of 8"
    );
    let shape = Shape {
        grid: [(gemm.n as usize).div_ceil(BN), rows, heads],
        threads: THREADS,
        shared: STAGES * (tile + BN) * BK * 2,
    };
    // SAFETY: the callers below pass matrices of the sizes in `gemm`.
    unsafe { device.launch(function(device, tile, out), shape, gemm) };
}

/// `out = x[:, first_col ..] W^T (+ bias)`; sizes were checked.
pub fn linear(
    device: &Device,
    w: &Weights,
    bias: Option<&Vector>,
    x: &Tensor,
    first_col: usize,
    out: &Tensor,
) {
    assert_eq!(x.kind(), Kind::Bf16, "products are of bf16");
    let weights = w.matrix();
    let tile = tile_rows(x.rows());
    let gemm = Gemm {
        x: x.address() + 2 * first_col as u64,
        x_stride: x.stride() as u64,
        w: weights.data,
        w_stride: weights.stride,
        bias: bias.map_or(0, |bias| bias.memory.address()),
        y: out.address(),
        y_stride: out.stride() as u64,
        m: x.rows() as u32,
        n: w.outputs as u32,
        k: w.inputs as u32,
        ..Gemm::default()
    };
    launch(
        device,
        tile,
        out.kind(),
        [x.rows().div_ceil(tile), 1],
        &gemm,
    );
}

/// Head by head: inputs of a head begin `from` columns after those of the one before, outputs `to`.
pub fn heads(device: &Device, w: &HeadLinear, x: &Tensor, from: usize, out: &Tensor, to: usize) {
    assert_eq!((x.kind(), out.kind()), (Kind::Bf16, Kind::Bf16));
    let weights = w.weights.matrix();
    let tile = tile_rows(x.rows());
    let gemm = Gemm {
        x: x.address(),
        x_stride: x.stride() as u64,
        w: weights.data,
        w_stride: weights.stride,
        y: out.address(),
        y_stride: out.stride() as u64,
        m: x.rows() as u32,
        n: w.outputs() as u32,
        k: w.weights.inputs as u32,
        x_step: from as u64,
        w_step: w.outputs() as u64 * weights.stride,
        y_step: to as u64,
        ..Gemm::default()
    };
    launch(
        device,
        tile,
        Kind::Bf16,
        [x.rows().div_ceil(tile), w.heads],
        &gemm,
    );
}

/// One matrix a slot, over the rows that are cut into `tiles`.
pub struct Grouped {
    pub slots: Address,
    pub stride: u64,
    pub outputs: usize,
    pub inputs: usize,
    pub x_rows: Address,
    pub tile_count: Address,
    pub tiles: Address,
    pub most_tiles: usize,
    pub tile_rows: usize,
}

pub fn grouped(device: &Device, w: &Grouped, x: Matrix, out: Matrix) {
    let gemm = Gemm {
        x: x.data,
        x_stride: x.stride,
        w_stride: w.stride,
        y: out.data,
        y_stride: out.stride,
        n: w.outputs as u32,
        k: w.inputs as u32,
        slots: w.slots,
        x_rows: w.x_rows,
        tile_count: w.tile_count,
        tiles: w.tiles,
        ..Gemm::default()
    };
    launch(device, w.tile_rows, Kind::Bf16, [w.most_tiles, 1], &gemm);
}
