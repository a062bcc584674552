//! One expert's weights: packed, and as the bytes that ranks of a group send each other.

use std::sync::Arc;

use crate::KernelError;
use crate::cpu::arena::Arena;
use crate::cpu::pack::{Format, Layout, Packed, interleaved_outputs};

/// `down(silu(gate x) * up x)`.
pub struct Expert {
    /// Gate and up projection, [interleaved](crate::cpu::pack::Packer::interleaved).
    pub(in crate::cpu) gate_up: Packed,
    pub(in crate::cpu) down: Packed,
    pub(in crate::cpu) inter: usize,
    pub(in crate::cpu) hidden: usize,
}

/// The experts of a layer's slots. One expert may be in several.
pub struct Experts {
    pub(in crate::cpu) slots: Vec<Arc<Expert>>,
    pub(in crate::cpu) inter: usize,
    pub(in crate::cpu) hidden: usize,
}

impl Experts {
    pub(in crate::cpu) fn new(slots: Vec<Arc<Expert>>) -> Experts {
        let (inter, hidden) = slots
            .first()
            .map(|expert| (expert.inter, expert.hidden))
            .expect("a layer of experts has a slot");
        assert!(
            slots
                .iter()
                .all(|expert| (expert.inter, expert.hidden) == (inter, hidden)),
            "experts of a layer are of one size"
        );
        Experts {
            slots,
            inter,
            hidden,
        }
    }
}

/// Changes with anything about how weights are packed.
const PACKING: &[u8; 8] = b"cpu-16.1";
/// hidden, inter, and format and block of inputs of both matrices.
const WORDS: usize = 6;
const HEADER: usize = PACKING.len() + WORDS * size_of::<u32>();

impl Expert {
    /// A header, then weights and scales of both matrices.
    pub(in crate::cpu) fn to_bytes(&self) -> Vec<u8> {
        let parts = [self.gate_up.parts(), self.down.parts()];
        let len: usize = parts.iter().flatten().map(|part| part.len()).sum();
        let mut bytes = Vec::with_capacity(HEADER + len);
        bytes.extend_from_slice(PACKING);
        let word = |value: usize| u32::try_from(value).expect("sizes of a model fit 32 bits");
        for value in [
            word(self.hidden),
            word(self.inter),
            self.gate_up.format.code(),
            word(self.gate_up.k_block),
            self.down.format.code(),
            word(self.down.k_block),
        ] {
            bytes.extend_from_slice(&value.to_le_bytes());
        }
        parts
            .iter()
            .flatten()
            .for_each(|part| bytes.extend_from_slice(part));
        bytes
    }

    /// Of an expert of these sizes; anything else is refused before memory is asked for.
    pub(in crate::cpu) fn from_bytes(
        arena: &Arena,
        bytes: &[u8],
        hidden: usize,
        inter: usize,
    ) -> Result<Expert, KernelError> {
        let cut_off = |expected| KernelError::ExpertLength {
            bytes: bytes.len(),
            expected,
        };
        let (header, mut rest) = bytes
            .split_at_checked(HEADER)
            .ok_or_else(|| cut_off(HEADER))?;
        let (packing, words) = header.split_at(PACKING.len());
        if packing != PACKING {
            return Err(KernelError::ExpertPacking {
                found: packing.escape_ascii().to_string(),
                expected: PACKING.escape_ascii().to_string(),
            });
        }
        let mut words = words.as_chunks::<4>().0.iter().copied();
        let words = [(); WORDS].map(|()| words.next().map_or(0, u32::from_le_bytes));
        let [found_hidden, found_inter, formats @ ..] = words;
        let found = [found_hidden, found_inter].map(|size| size as usize);
        if found != [hidden, inter] {
            return Err(KernelError::ExpertSizes {
                found,
                expected: [hidden, inter],
            });
        }
        let layout = |outputs, inputs, code, k_block: u32| {
            let format = Format::from_code(code).ok_or(KernelError::ExpertFormat { code, k_block });
            let layout = Layout {
                outputs,
                inputs,
                format: format?,
                k_block: k_block as usize,
            };
            if layout.is_sound() {
                Ok(layout)
            } else {
                Err(KernelError::ExpertFormat { code, k_block })
            }
        };
        let gate_up = layout(interleaved_outputs(inter), hidden, formats[0], formats[1])?;
        let down = layout(hidden, inter, formats[2], formats[3])?;
        let expected: usize = [gate_up, down].iter().flat_map(Layout::bytes).sum();
        if rest.len() != expected {
            return Err(cut_off(HEADER + expected));
        }
        let mut packed = |layout: Layout| {
            let parts = layout.bytes().map(|len| {
                let (part, left) = rest.split_at(len);
                rest = left;
                part
            });
            Packed::from_parts(arena, layout, parts)
        };
        Ok(Expert {
            gate_up: packed(gate_up)?,
            down: packed(down)?,
            inter,
            hidden,
        })
    }
}
