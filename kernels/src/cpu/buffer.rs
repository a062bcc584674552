//! Float32 values aligned to cache lines: activations, parameters and scratch.

use std::ops::{Deref, DerefMut};

/// One cache line, one AVX-512 register.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// Zero-initialised float32 values.
#[derive(Default)]
pub struct Floats {
    lines: Vec<Line>,
    len: usize,
}

impl Floats {
    pub fn zeroed(len: usize) -> Floats {
        Floats {
            lines: vec![Line([0.0; 16]); len.div_ceil(16)],
            len,
        }
    }

    pub fn copy_of(values: &[f32]) -> Floats {
        let mut floats = Floats::zeroed(values.len());
        floats.copy_from_slice(values);
        floats
    }

    /// The first `len` values; grows when there are fewer (then the contents are zero).
    pub fn at_least(&mut self, len: usize) -> &mut [f32] {
        if self.len < len {
            *self = Floats::zeroed(len);
        }
        &mut self[..len]
    }
}

impl Deref for Floats {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl DerefMut for Floats {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}
