//! Packed weights as bytes, to move between ranks of a group.

use super::{Format, K_BLOCK, LANES, Packed, place};
use crate::KernelError;
use crate::cpu::arena::Arena;

/// What a [`Packed`] is besides its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    pub outputs: usize,
    pub inputs: usize,
    pub format: Format,
    pub k_block: usize,
}

impl Format {
    const ALL: [Format; 4] = [Format::F32, Format::F16, Format::Bf16, Format::Fp8];

    pub fn code(self) -> u32 {
        self as u32
    }

    pub fn from_code(code: u32) -> Option<Format> {
        Format::ALL.into_iter().find(|format| format.code() == code)
    }
}

impl Layout {
    /// Whether a packer makes such: what arrives from elsewhere is not believed.
    pub fn is_sound(&self) -> bool {
        match self.format {
            // More inputs a scale than any matrix has are only one more way to say "one scale".
            Format::Fp8 => (1..=1 << 20).contains(&self.k_block),
            _ => self.k_block == K_BLOCK,
        }
    }

    /// Bytes of the weights, and of their scales.
    pub fn bytes(&self) -> [usize; 2] {
        let panels = self.outputs.div_ceil(LANES);
        let weights = place(self.k_block, self.inputs, self.inputs) * self.format.bytes();
        let scales = match self.format {
            Format::Fp8 => self.inputs.div_ceil(self.k_block) * size_of::<f32>(),
            _ => 0,
        };
        [weights, scales].map(|each| panels * LANES * each)
    }
}

impl Packed {
    /// Weights and scales, as long as [`Layout::bytes`] says.
    pub fn parts(&self) -> [&[u8]; 2] {
        [&self.data, &self.scales]
    }

    /// Copies parts of a sound layout.
    pub fn from_parts(
        arena: &Arena,
        layout: Layout,
        parts: [&[u8]; 2],
    ) -> Result<Packed, KernelError> {
        assert!(layout.is_sound() && parts.map(<[u8]>::len) == layout.bytes());
        let Layout {
            outputs,
            inputs,
            format,
            k_block,
        } = layout;
        Ok(Packed {
            outputs,
            inputs,
            format,
            k_block,
            data: arena.copy(parts[0])?,
            scales: arena.copy(parts[1])?,
        })
    }
}
