//! Experts' weights: packed, in a layer's slots, and as the bytes that ranks of a group send each other.

use std::sync::Arc;

use super::device::Device;
use super::fp8;
use super::memory::Memory;
use super::params::Address;
use super::weights::{Form, Weights};
use crate::{KernelError, Pace, Stacked};

/// `down(silu(gate x) * up x)`.
pub struct Expert {
    /// `[gate; up]`.
    gate_up: Form,
    /// In the same form.
    down: Form,
}

/// The experts of a layer's slots. One expert may be in several.
pub struct Experts {
    slots: Vec<Arc<Expert>>,
    /// Where their matrices are, for the device.
    gate_up: Table,
    down: Table,
}

/// One matrix of every slot: addresses, or, in 8 bits, maps and addresses of scales.
struct Table(Memory, Option<Memory>);

/// Change with anything about how weights are packed.
const BF16: &[u8; 8] = b"cuda-b.1";
const FP8: &[u8; 8] = b"cuda-8.1";
const HEADER: usize = BF16.len() + 2 * size_of::<u32>();

impl Expert {
    pub(super) fn new(
        device: &Arc<Device>,
        gate_up: Stacked<'_>,
        down: Stacked<'_>,
        pace: Pace,
    ) -> Result<Expert, KernelError> {
        // Rows go through both.
        let narrow = fp8::takes(gate_up) && fp8::takes(down);
        let form = |parts| {
            Ok(match narrow {
                true => Form::Fp8(fp8::Weights::stacked(device, parts, pace)?),
                false => Form::Bf16(Weights::stacked(device, parts, pace)?),
            })
        };
        Ok(Expert {
            gate_up: form(gate_up)?,
            down: form(down)?,
        })
    }

    fn inter(&self) -> usize {
        self.down.inputs()
    }

    fn hidden(&self) -> usize {
        self.down.outputs()
    }

    fn packing(&self) -> &'static [u8; 8] {
        match self.down {
            Form::Bf16(_) => BF16,
            Form::Fp8(_) => FP8,
        }
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.packing().to_vec();
        for size in [self.hidden(), self.inter()] {
            let size = u32::try_from(size).expect("sizes of a model fit 32 bits");
            bytes.extend_from_slice(&size.to_le_bytes());
        }
        for form in [&self.gate_up, &self.down] {
            bytes.extend(match form {
                Form::Bf16(weights) => weights.bytes(),
                Form::Fp8(weights) => weights.bytes(),
            });
        }
        bytes
    }

    /// Of an expert of these sizes; anything else is refused before memory is asked for.
    pub(super) fn from_bytes(
        device: &Arc<Device>,
        bytes: &[u8],
        hidden: usize,
        inter: usize,
    ) -> Result<Expert, KernelError> {
        let cut_off = |expected| KernelError::ExpertLength {
            bytes: bytes.len(),
            expected,
        };
        let whole = bytes.split_at_checked(HEADER);
        let (header, rest) = whole.ok_or_else(|| cut_off(HEADER))?;
        let (packing, words) = header.split_at(BF16.len());
        let narrow = packing == FP8;
        if packing != BF16 && !narrow {
            return Err(KernelError::ExpertPacking {
                found: packing.escape_ascii().to_string(),
                expected: format!("{} or {}", BF16.escape_ascii(), FP8.escape_ascii()),
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
        let len_of = match narrow {
            true => fp8::Weights::len_of,
            false => Weights::len_of,
        };
        let sizes = [len_of(2 * inter, hidden), len_of(hidden, inter)];
        if rest.len() != sizes[0] + sizes[1] {
            return Err(cut_off(HEADER + sizes[0] + sizes[1]));
        }
        let form = |bytes, outputs, inputs| {
            Ok(match narrow {
                true => Form::Fp8(fp8::Weights::from_bytes(device, bytes, outputs, inputs)?),
                false => Form::Bf16(Weights::from_bytes(device, bytes, outputs, inputs)?),
            })
        };
        let (gate_up, down) = rest.split_at(sizes[0]);
        Ok(Expert {
            gate_up: form(gate_up, 2 * inter, hidden)?,
            down: form(down, hidden, inter)?,
        })
    }
}

impl Experts {
    pub(super) fn new(device: &Arc<Device>, slots: Vec<Arc<Expert>>) -> Experts {
        let size = |expert: &Expert| (expert.inter(), expert.hidden(), expert.packing());
        let first = size(slots.first().expect("a layer of experts has a slot"));
        assert!(
            slots.iter().all(|expert| size(expert) == first),
            "experts of a layer are of one size and form"
        );
        let table = |form: fn(&Expert) -> &Form| {
            let table = Table::new(device, slots.iter().map(|expert| form(expert)));
            table.unwrap_or_else(|error| panic!("{error}"))
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

    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    pub fn hidden(&self) -> usize {
        self.slots[0].hidden()
    }

    pub fn inter(&self) -> usize {
        self.slots[0].inter()
    }

    /// The first slot's matrices, to stand for all: `[gate; up]` and down.
    pub fn forms(&self) -> [&Form; 2] {
        [&self.slots[0].gate_up, &self.slots[0].down]
    }

    /// Tables of `[gate; up]` and down.
    pub fn tables(&self) -> [[Address; 2]; 2] {
        [&self.gate_up, &self.down].map(|Table(first, second)| {
            [first.address(), second.as_ref().map_or(0, Memory::address)]
        })
    }
}

impl Table {
    /// Of matrices in one form.
    fn new<'a>(
        device: &Arc<Device>,
        matrices: impl Iterator<Item = &'a Form>,
    ) -> Result<Table, KernelError> {
        const WHAT: &str = "a table of experts";
        let (mut addresses, mut maps) = (Vec::new(), Vec::new());
        for matrix in matrices {
            match matrix {
                Form::Bf16(weights) => addresses.push(weights.matrix().data),
                Form::Fp8(weights) => {
                    maps.push(weights.map().opaque);
                    addresses.push(weights.scales());
                }
            }
        }
        let addresses = Memory::copy_of(device, &addresses, WHAT)?;
        Ok(match maps.is_empty() {
            true => Table(addresses, None),
            false => Table(Memory::copy_of(device, &maps, WHAT)?, Some(addresses)),
        })
    }
}
