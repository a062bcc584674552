//! Mixture of experts: rows are sorted by slot on the device, two grouped products go over them, and nothing waits for
//! the host.

use std::sync::Arc;

use super::device::{Device, Shape};
use super::gemm::{self, Grouped};
use super::memory::{Memory, Scratch};
use super::params::{self, Address};
use super::tensor::Tensor;
use super::weights::Weights;
use crate::{KernelError, Stacked, Work};

/// `down(silu(gate x) * up x)`.
pub struct Expert {
    /// `[gate; up]`.
    gate_up: Weights,
    down: Weights,
}

/// The experts of a layer's slots. One expert may be in several.
pub struct Experts {
    slots: Vec<Arc<Expert>>,
    /// The addresses of their matrices, for the device.
    gate_up: Memory,
    down: Memory,
}

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
    tile_count: Scratch,
    tiles: Scratch,
    gate_up: Scratch,
    act: Scratch,
    products: Scratch,
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

/// Products by slot, and where each piece's is.
pub struct Products {
    pub products: Address,
    pub stride: usize,
    pub place: Address,
}

/// Changes with anything about how weights are packed.
const PACKING: &[u8; 8] = b"cuda-b.1";
const HEADER: usize = PACKING.len() + 2 * size_of::<u32>();

impl Expert {
    pub(super) fn new(
        device: &Arc<Device>,
        gate_up: Stacked<'_>,
        down: Stacked<'_>,
    ) -> Result<Expert, KernelError> {
        Ok(Expert {
            gate_up: Weights::stacked(device, gate_up)?,
            down: Weights::stacked(device, down)?,
        })
    }

    fn inter(&self) -> usize {
        self.down.inputs
    }

    fn hidden(&self) -> usize {
        self.down.outputs
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = PACKING.to_vec();
        for size in [self.hidden(), self.inter()] {
            let size = u32::try_from(size).expect("sizes of a model fit 32 bits");
            bytes.extend_from_slice(&size.to_le_bytes());
        }
        bytes.extend(self.gate_up.bytes());
        bytes.extend(self.down.bytes());
        bytes
    }

    /// Of an expert of these sizes; anything else is refused before memory is asked for.
    pub(super) fn from_bytes(
        device: &Arc<Device>,
        bytes: &[u8],
        hidden: usize,
        inter: usize,
    ) -> Result<Expert, KernelError> {
        let sizes = [
            Weights::len_of(2 * inter, hidden),
            Weights::len_of(hidden, inter),
        ];
        let expected = HEADER + sizes[0] + sizes[1];
        let cut_off = || KernelError::ExpertLength {
            bytes: bytes.len(),
            expected,
        };
        let (header, rest) = bytes.split_at_checked(HEADER).ok_or_else(cut_off)?;
        let (packing, words) = header.split_at(PACKING.len());
        if packing != PACKING {
            return Err(KernelError::ExpertPacking {
                found: packing.escape_ascii().to_string(),
                expected: PACKING.escape_ascii().to_string(),
            });
        }
        let words = words.as_chunks::<4>().0;
        let found = [0, 1].map(|at| u32::from_le_bytes(words[at]) as usize);
        if found != [hidden, inter] {
            return Err(KernelError::ExpertSizes {
                found,
                expected: [hidden, inter],
            });
        }
        if rest.len() != sizes[0] + sizes[1] {
            return Err(cut_off());
        }
        let (gate_up, down) = rest.split_at(sizes[0]);
        Ok(Expert {
            gate_up: Weights::from_bytes(device, gate_up, 2 * inter, hidden)?,
            down: Weights::from_bytes(device, down, hidden, inter)?,
        })
    }
}

impl Experts {
    pub(super) fn new(device: &Arc<Device>, slots: Vec<Arc<Expert>>) -> Experts {
        let size = |expert: &Expert| (expert.inter(), expert.hidden());
        let first = size(slots.first().expect("a layer of experts has a slot"));
        assert!(
            slots.iter().all(|expert| size(expert) == first),
            "experts of a layer are of one size"
        );
        let table = |matrix: fn(&Expert) -> &Weights| {
            let addresses: Vec<Address> = slots
                .iter()
                .map(|expert| matrix(expert).matrix().data)
                .collect();
            let memory = Memory::copy_of(device, &addresses, "a table of experts");
            memory.unwrap_or_else(|error| panic!("{error}"))
        };
        let (gate_up, down) = (
            table(|expert| &expert.gate_up),
            table(|expert| &expert.down),
        );
        Experts {
            slots,
            gate_up,
            down,
        }
    }

    pub fn hidden(&self) -> usize {
        self.slots[0].hidden()
    }
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
        let (count, slots) = (pieces.count, experts.slots.len());
        let (hidden, inter) = (experts.hidden(), experts.slots[0].inter());
        let words = count * size_of::<u32>();
        let tile = gemm::tile_rows(count.div_ceil(slots));
        let most_tiles = count / tile + slots;
        let rows = self.rows.at_least(device, words).address();
        let place = self.place.at_least(device, words).address();
        let tile_count = self.tile_count.at_least(device, 4).address();
        let tiles = self.tiles.at_least(device, 12 * most_tiles).address();
        let sort = params::Sort {
            keys: pieces.slots,
            row_of: pieces.rows,
            step: pieces.step as u32,
            per_row: pieces.per_row as u32,
            count: count as u32,
            slots: slots as u32,
            tile_rows: tile as u32,
            rows,
            place,
            tile_count,
            tiles,
        };
        // As many warps as have something to do and room to count.
        let warps = (count.div_ceil(128))
            .clamp(1, 32)
            .min((200 << 10) / 4 / slots)
            .max(1);
        let shape = Shape {
            grid: [1, 1, 1],
            threads: 32 * warps,
            shared: 4 * warps * slots,
        };
        // SAFETY: the pieces are where the caller says, and the rest was asked for in these sizes just now.
        unsafe { device.launch(&device.kernels.sort_by_slot, shape, &sort) };

        let stride = |cols: usize| cols.next_multiple_of(8);
        let wide = stride(2 * inter);
        let gate_up = self.gate_up.at_least(device, 2 * count * wide).address();
        let act = self
            .act
            .at_least(device, 2 * count * stride(inter))
            .address();
        let products = self
            .products
            .at_least(device, 2 * count * stride(hidden))
            .address();
        let matrix = |data, cols| params::Matrix {
            data,
            stride: stride(cols) as u64,
        };
        let expert = &experts.slots[0];
        let mut grouped = Grouped {
            slots: experts.gate_up.address(),
            stride: expert.gate_up.matrix().stride,
            outputs: 2 * inter,
            inputs: hidden,
            x_rows: rows,
            tile_count,
            tiles,
            most_tiles,
            tile_rows: tile,
        };
        gemm::grouped(device, &grouped, x.matrix(), matrix(gate_up, 2 * inter));
        let silu = params::Silu {
            x: matrix(gate_up, 2 * inter),
            out: matrix(act, inter),
            width: inter as u32,
        };
        // SAFETY: both buffers have `count` rows of these widths.
        unsafe { device.launch(&device.kernels.silu_mul, Shape::rows(count, inter), &silu) };
        grouped = Grouped {
            slots: experts.down.address(),
            stride: expert.down.matrix().stride,
            outputs: hidden,
            inputs: inter,
            x_rows: 0,
            ..grouped
        };
        gemm::grouped(
            device,
            &grouped,
            matrix(act, inter),
            matrix(products, hidden),
        );
        Products {
            products,
            stride: stride(hidden),
            place,
        }
    }
}
