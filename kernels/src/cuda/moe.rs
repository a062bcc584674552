//! Mixture of experts: rows are sorted by slot on the device, two grouped products go over them, and nothing waits for
//! the host.

use std::sync::Arc;

use super::device::{Device, Shape};
use super::expert::Experts;
use super::fp8;
use super::gemm::{self, Grouped};
use super::memory::{Memory, Scratch};
use super::params::{self, Address};
use super::tensor::{Kind, Tensor};
use super::weights::{Form, Weights};
use crate::Work;

/// Experts and weights of every row, in order of choice.
pub struct Routing {
    pub(super) experts: Memory,
    pub(super) weights: Memory,
    pub(super) per_token: usize,
    capacity: usize,
    pub(super) rows: usize,
}

/// How often each expert was chosen, `[layers][experts]`.
pub struct Tally {
    pub(super) sums: Memory,
    pub(super) layers: usize,
    pub(super) experts: usize,
}

/// Buffers of one layer at a time.
#[derive(Default)]
pub struct Space {
    rows: Scratch,
    place: Scratch,
    offsets: Scratch,
    tile_count: Scratch,
    tiles: Scratch,
    gate_up: Scratch,
    act: Scratch,
    products: Scratch,
    fp8: fp8::Space,
    /// What the host says which piece is whose.
    work: Scratch,
}

/// What the slots are to compute.
pub struct Pieces {
    pub count: usize,
    /// Words from one piece's slot to the next's.
    pub step: usize,
    pub slots: Address,
    /// The row of each piece, as far apart; 0: `per_row` pieces are of one row.
    pub rows: Address,
    pub per_row: usize,
}

/// Pieces in the order of their slots.
struct Sorted {
    count: usize,
    slots: usize,
    /// The row of each.
    rows: Address,
    /// Where each went.
    place: Address,
    /// Where each slot's begin, `[slots + 1]`.
    offsets: Address,
    /// Slots cut into tiles of `tile_rows`.
    tile_count: Address,
    tiles: Address,
    tile_rows: usize,
}

/// Products by slot, and where each piece's is.
pub struct Products {
    pub products: Address,
    pub stride: usize,
    pub place: Address,
}

impl Routing {
    pub(super) fn new(device: &Arc<Device>, capacity: usize, per_token: usize) -> Routing {
        let memory = |what| {
            let memory = Memory::new(device, capacity * per_token * 4, what);
            memory.unwrap_or_else(|error| panic!("{error}"))
        };
        Routing {
            experts: memory("chosen experts"),
            weights: memory("weights of experts"),
            per_token,
            capacity,
            rows: 0,
        }
    }

    pub(super) fn resize(&mut self, rows: usize, per_token: usize) {
        assert_eq!(self.per_token, per_token, "experts a token");
        assert!(rows <= self.capacity, "{rows} rows in a routing for fewer");
        self.rows = rows;
    }

    pub(super) fn choices(&self) -> usize {
        self.rows * self.per_token
    }
}

impl Tally {
    pub(super) fn new(device: &Arc<Device>, layers: usize, experts: usize) -> Tally {
        let sums = Memory::new(device, layers * experts * size_of::<u64>(), "counts");
        Tally {
            sums: sums.unwrap_or_else(|error| panic!("{error}")),
            layers,
            experts,
        }
    }
}

/// Values from one row to the next.
fn stride(cols: usize) -> usize {
    cols.next_multiple_of(8)
}

fn matrix(data: Address, cols: usize) -> params::Matrix {
    params::Matrix {
        data,
        stride: stride(cols) as u64,
    }
}

impl Space {
    /// `work` on the device, as pieces.
    pub fn pieces(&mut self, device: &Arc<Device>, work: &[Work]) -> Pieces {
        let address = self.work.upload(device, work);
        Pieces {
            count: work.len(),
            step: size_of::<Work>() / size_of::<u32>(),
            slots: address + std::mem::offset_of!(Work, slot) as u64,
            rows: address + std::mem::offset_of!(Work, row) as u64,
            per_row: 1,
        }
    }

    /// Every piece's row of `x` through the expert in its slot.
    pub fn run(
        &mut self,
        device: &Arc<Device>,
        x: &Tensor,
        pieces: &Pieces,
        experts: &Experts,
    ) -> Products {
        let (hidden, inter) = (experts.hidden(), experts.inter());
        let sorted = self.sort(device, pieces, experts.slots());
        let rows_of = |scratch: &mut Scratch, cols: usize| {
            let bytes = sorted.count * stride(cols) * Kind::Bf16.bytes();
            scratch.at_least(device, bytes).address()
        };
        let gate_up = rows_of(&mut self.gate_up, 2 * inter);
        let products = rows_of(&mut self.products, hidden);
        match experts.forms() {
            [Form::Fp8(first), Form::Fp8(second)] => {
                let rows = fp8::Rows {
                    x: x.address(),
                    stride: x.stride(),
                    count: sorted.count,
                    cols: hidden,
                    index: sorted.rows,
                    gated: false,
                };
                let rows = self.fp8.quantise(device, rows);
                let by = by_slots(first, experts.tables()[0], &sorted);
                fp8::multiply(device, &rows, by, gate_up, stride(2 * inter), Kind::Bf16);
                let rows = fp8::Rows {
                    x: gate_up,
                    stride: stride(2 * inter),
                    count: sorted.count,
                    cols: inter,
                    index: 0,
                    gated: true,
                };
                let rows = self.fp8.quantise(device, rows);
                let by = by_slots(second, experts.tables()[1], &sorted);
                fp8::multiply(device, &rows, by, products, stride(hidden), Kind::Bf16);
            }
            [Form::Bf16(first), Form::Bf16(second)] => {
                let act = matrix(rows_of(&mut self.act, inter), inter);
                let wide = matrix(gate_up, 2 * inter);
                let by = grouped(first, experts.tables()[0], &sorted, sorted.rows);
                gemm::grouped(device, &by, x.matrix(), wide);
                let silu = params::Silu {
                    x: wide,
                    out: act,
                    width: inter as u32,
                };
                let shape = Shape::rows(sorted.count, inter);
                // SAFETY: both buffers have as many rows of these widths.
                unsafe { device.launch(&device.kernels.silu_mul, shape, &silu) };
                let by = grouped(second, experts.tables()[1], &sorted, 0);
                gemm::grouped(device, &by, act, matrix(products, hidden));
            }
            _ => unreachable!("an expert's matrices are of one form"),
        }
        Products {
            products,
            stride: stride(hidden),
            place: sorted.place,
        }
    }

    fn sort(&mut self, device: &Arc<Device>, pieces: &Pieces, slots: usize) -> Sorted {
        let count = pieces.count;
        let tile_rows = gemm::tile_rows(count.div_ceil(slots));
        let most_tiles = count / tile_rows + slots;
        let words =
            |scratch: &mut Scratch, count: usize| scratch.at_least(device, 4 * count).address();
        let sorted = Sorted {
            count,
            slots,
            rows: words(&mut self.rows, count),
            place: words(&mut self.place, count),
            offsets: words(&mut self.offsets, slots + 1),
            tile_count: words(&mut self.tile_count, 1),
            tiles: words(&mut self.tiles, 3 * most_tiles),
            tile_rows,
        };
        let sort = params::Sort {
            keys: pieces.slots,
            row_of: pieces.rows,
            step: pieces.step as u32,
            per_row: pieces.per_row as u32,
            count: count as u32,
            slots: slots as u32,
            tile_rows: tile_rows as u32,
            rows: sorted.rows,
            place: sorted.place,
            tile_count: sorted.tile_count,
            tiles: sorted.tiles,
            offsets: sorted.offsets,
        };
        // As many warps as have something to do and room to count in.
        let room = (200 << 10) / (4 * slots);
        let warps = count.div_ceil(128).clamp(1, 32).min(room).max(1);
        let shape = Shape {
            grid: [1, 1, 1],
            threads: 32 * warps,
            shared: 4 * warps * slots,
        };
        // SAFETY: the pieces are where the caller says, and the rest was asked for in these sizes just now.
        unsafe { device.launch(&device.kernels.sort_by_slot, shape, &sort) };
        sorted
    }
}

/// Tables of matrices in 8 bits are their maps and their scales.
fn by_slots<'a>(
    like: &'a fp8::Weights,
    [maps, scales]: [Address; 2],
    sorted: &Sorted,
) -> fp8::By<'a> {
    fp8::By::Slots {
        like,
        maps,
        scales,
        offsets: sorted.offsets,
        slots: sorted.slots,
    }
}

/// The table of matrices in bf16 is their addresses.
fn grouped(
    like: &Weights,
    [addresses, _]: [Address; 2],
    sorted: &Sorted,
    x_rows: Address,
) -> Grouped {
    Grouped {
        slots: addresses,
        stride: like.matrix().stride,
        outputs: like.outputs,
        inputs: like.inputs,
        x_rows,
        tile_count: sorted.tile_count,
        tiles: sorted.tiles,
        most_tiles: sorted.count / sorted.tile_rows + sorted.slots,
        tile_rows: sorted.tile_rows,
    }
}
