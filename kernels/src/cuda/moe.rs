//! Mixture of experts: rows are sorted by slot on the device, two grouped products go over them, and nothing waits for
//! the host.

use std::sync::Arc;

use super::device::{Device, Shape};
use super::expert::Experts;
use super::fp8;
use super::grouped::{self, Grouped};
use super::memory::{Memory, Scratch};
use super::params::{self, Address};
use super::sums::Sums;
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
    pub(super) sums: Sums,
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
    pub fp8: fp8::Space,
    /// Between the two products.
    fp8_act: fp8::Space,
    /// What the host says which piece is whose.
    work: Scratch,
}

/// What the slots are to compute.
pub struct Pieces {
    pub count: usize,
    /// Where the device has their number, which is `count` at most; 0: it is `count`.
    pub counted: Address,
    /// About how many there are: what is best depends on it, and results do not.
    pub likely: usize,
    /// Words from one piece's slot to the next's.
    pub step: usize,
    pub slots: Address,
    /// The row of each piece, as far apart; 0: `per_row` pieces are of one row.
    pub rows: Address,
    pub per_row: usize,
}

/// Pieces in the order of their slots.
pub struct Sorted {
    pub count: usize,
    pub likely: usize,
    slots: usize,
    /// The row of each.
    pub rows: Address,
    /// Where each went.
    pub place: Address,
    /// Of pieces computed at a time.
    pub wave: usize,
    pub waves: usize,
    /// Where each slot's begin in each wave, `[waves][slots + 1]`.
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
        let memory = |what| Memory::noted(device, capacity * per_token * 4, what);
        Routing {
            experts: memory("activations"),
            weights: memory("activations"),
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
        Tally {
            sums: Sums::noted(device, layers * experts, "counts of choices"),
            layers,
            experts,
        }
    }
}

/// Values from one row to the next.
pub fn stride(cols: usize) -> usize {
    cols.next_multiple_of(8)
}

fn rows_of(scratch: &mut Scratch, device: &Arc<Device>, rows: usize, stride: usize) -> Address {
    let bytes = rows * stride * Kind::Bf16.bytes();
    scratch.at_least(device, bytes).address()
}

impl Space {
    /// `work` on the device, as pieces.
    pub fn pieces(&mut self, device: &Arc<Device>, work: &[Work]) -> Pieces {
        let address = self.work.upload(device, work);
        Pieces {
            count: work.len(),
            counted: 0,
            likely: work.len(),
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
        let sorted = self.sort(device, pieces, experts.slots(), pieces.count);
        let products = match experts.forms() {
            [Form::Fp8(_), Form::Fp8(_)] => {
                let rows = fp8::Rows {
                    x: x.address(),
                    stride: x.stride(),
                    count: sorted.count,
                    counted: 0,
                    likely: sorted.likely,
                    cols: experts.hidden(),
                    index: sorted.rows,
                    gated: false,
                };
                let rows = self.fp8.quantise(device, rows);
                self.narrow_products(device, rows, &sorted, 0, experts)
            }
            _ => self.wide_products(device, x.matrix(), &sorted, experts),
        };
        Products {
            products,
            stride: stride(experts.hidden()),
            place: sorted.place,
        }
    }

    /// Products in 8 bits of the sorted pieces of a wave, whose rows `x` are; `[sorted.wave, hidden]`.
    pub fn narrow_products(
        &mut self,
        device: &Arc<Device>,
        x: fp8::Quantised,
        sorted: &Sorted,
        wave: usize,
        experts: &Experts,
    ) -> Address {
        let [Form::Fp8(first), Form::Fp8(second)] = experts.forms() else {
            unreachable!("asked before");
        };
        let (hidden, inter) = (experts.hidden(), experts.inter());
        let (count, wide) = (sorted.wave, stride(2 * inter));
        let gate_up = rows_of(&mut self.gate_up, device, count, wide);
        let products = rows_of(&mut self.products, device, count, stride(hidden));
        let offsets = sorted.offsets + (4 * wave * (sorted.slots + 1)) as u64;
        let by_slots = |like, [maps, scales]: [Address; 2]| fp8::By::Slots {
            like,
            maps,
            scales,
            offsets,
            slots: sorted.slots,
        };
        let by = by_slots(first, experts.tables()[0]);
        fp8::multiply(device, &x, by, gate_up, wide, Kind::Bf16);
        let rows = fp8::Rows {
            x: gate_up,
            stride: wide,
            count,
            counted: offsets + 4 * sorted.slots as u64,
            likely: x.likely,
            cols: inter,
            index: 0,
            gated: true,
        };
        let rows = self.fp8_act.quantise(device, rows);
        let by = by_slots(second, experts.tables()[1]);
        fp8::multiply(device, &rows, by, products, stride(hidden), Kind::Bf16);
        products
    }

    /// Products in bf16 of all sorted pieces, from the rows of `x` that they name; `[sorted.count, hidden]`.
    pub fn wide_products(
        &mut self,
        device: &Arc<Device>,
        x: params::Matrix,
        sorted: &Sorted,
        experts: &Experts,
    ) -> Address {
        let [Form::Bf16(first), Form::Bf16(second)] = experts.forms() else {
            unreachable!("an expert's matrices are of one form");
        };
        assert_eq!(sorted.waves, 1, "tiles are of all pieces");
        let (hidden, inter) = (experts.hidden(), experts.inter());
        let matrix = |scratch: &mut Scratch, cols| params::Matrix {
            data: rows_of(scratch, device, sorted.count, stride(cols)),
            stride: stride(cols) as u64,
        };
        let gate_up = matrix(&mut self.gate_up, 2 * inter);
        let act = matrix(&mut self.act, inter);
        let products = matrix(&mut self.products, hidden);
        let by = by_slots(first, experts.tables()[0], sorted, sorted.rows);
        grouped::grouped(device, &by, x, gate_up);
        let silu = params::Silu {
            x: gate_up,
            out: act,
            width: inter as u32,
            narrow: params::Narrow::default(),
        };
        let shape = Shape::rows(sorted.count, inter);
        // SAFETY: both buffers have as many rows of these widths.
        unsafe { device.launch(&device.kernels.silu_mul, shape, &silu) };
        let by = by_slots(second, experts.tables()[1], sorted, 0);
        grouped::grouped(device, &by, act, products);
        products.data
    }

    /// `wave`: how many pieces are to be computed at a time.
    pub fn sort(
        &mut self,
        device: &Arc<Device>,
        pieces: &Pieces,
        slots: usize,
        wave: usize,
    ) -> Sorted {
        let count = pieces.count;
        let waves = count.div_ceil(wave.max(1)).max(1);
        let tile_rows = grouped::tile_rows(pieces.likely.div_ceil(slots));
        let most_tiles = count / tile_rows + slots;
        let words =
            |scratch: &mut Scratch, count: usize| scratch.at_least(device, 4 * count).address();
        let sorted = Sorted {
            count,
            likely: pieces.likely,
            slots,
            wave,
            waves,
            rows: words(&mut self.rows, count),
            place: words(&mut self.place, count),
            offsets: words(&mut self.offsets, waves * (slots + 1)),
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
            counted: pieces.counted,
            tile_rows: tile_rows as u32,
            wave: wave as u32,
            waves: waves as u32,
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

/// The table of matrices in bf16 is their addresses.
fn by_slots(
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
