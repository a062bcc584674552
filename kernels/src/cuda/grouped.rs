//! Products of rows with the matrices of expert slots, in bf16.

use super::device::{Device, Shape};
use super::params::{Address, GroupedGemm, Matrix};

/// As in `sm90_bf16_grouped_gemm.cu`.
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
    assert!(
        x.data.is_multiple_of(16) && x.stride.is_multiple_of(8),
        "this device reads inputs in pieces of 16 bytes"
    );
    let gemm = GroupedGemm {
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
    };
    let kernels = &device.kernels;
    let kernel = match w.tile_rows {
        16 => &kernels.grouped_gemm_16,
        64 => &kernels.grouped_gemm_64,
        _ => &kernels.grouped_gemm_128,
    };
    let shape = Shape {
        grid: [w.outputs.div_ceil(BN), w.most_tiles, 1],
        threads: THREADS,
        shared: STAGES * (w.tile_rows + BN) * BK * 2,
    };
    // SAFETY: tables and tiles are of so many slots and rows, by the sort before.
    unsafe { device.launch(kernel, shape, &gemm) };
}
