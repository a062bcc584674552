//! Every op on the host's processor.
//!
//! What an output row is made of, and in which order, is written down where it is computed: `gemm`
//! (all projections), `attention`, `norm`, `gate`, `moe`. Work is divided among threads along outputs
//! only. `ops` is the trait's implementation: it checks shapes and says what runs over which rows.

mod arena;
mod attention;
mod buffer;
mod choice;
mod draw;
mod elementwise;
mod embedding;
mod gate;
mod gemm;
mod linear;
mod math;
mod moe;
mod norm;
mod ops;
mod pack;
mod rope;
mod simd;
mod tensor;
mod threads;

use std::sync::Mutex;

use crate::{Batch, PAGE_TOKENS, Pace};
use arena::Arena;
use buffer::Floats;
use pack::Packer;
use threads::Threads;

pub use embedding::Embedding;
pub use gate::{Routing, Tally};
pub use linear::{HeadLinear, Linear};
pub use moe::{Expert, Experts};
pub use simd::Isa;
pub use tensor::Tensor;

/// The host's processor.
pub struct CpuBackend {
    isa: Isa,
    threads: Threads,
    /// The calling thread and no other: for work beside serving.
    alone: Threads,
    arena: Arena,
    moe: Mutex<moe::Scratch>,
}

/// Parameters of a norm or bias.
pub struct Vector(Floats);

impl CpuBackend {
    /// `threads` threads in all: the one that calls the ops, and helpers. 0 counts as 1. Kernels are those of the best instruction set the processor has.
    pub fn new(threads: usize) -> CpuBackend {
        CpuBackend::with_isa(threads, Isa::detect())
    }

    /// With kernels of a certain instruction set, for tests and measurements. Panics if the processor
    /// lacks it.
    pub fn with_isa(threads: usize, isa: Isa) -> CpuBackend {
        assert!(isa.available(), "this processor has no {isa:?}");
        CpuBackend {
            isa,
            threads: Threads::new(threads),
            alone: Threads::new(1),
            arena: Arena::default(),
            moe: Mutex::default(),
        }
    }

    pub fn isa(&self) -> Isa {
        self.isa
    }

    pub fn threads(&self) -> usize {
        self.threads.count()
    }

    fn packer(&self, pace: Pace) -> Packer<'_> {
        Packer {
            arena: &self.arena,
            threads: match pace {
                Pace::Full => &self.threads,
                Pace::Background => &self.alone,
            },
        }
    }

    fn device(&self) -> moe::Device<'_> {
        moe::Device {
            isa: self.isa,
            threads: &self.threads,
            scratch: &self.moe,
        }
    }

    /// Calls `f(row, its values)` for all rows.
    fn each_row(&self, x: &mut Tensor, f: impl Fn(usize, &mut [f32]) + Sync) {
        let (rows, cols) = (x.rows(), x.cols());
        let out = x.output(0);
        self.threads.for_rows(rows, cols, &|row| {
            // SAFETY: each row is one call's own.
            f(row, unsafe { out.slice(row, 0, cols) })
        });
    }

    /// Calls `f(row, page, slot)` for all rows of a batch with the place of their cache row.
    fn each_place(&self, batch: &Batch, values: usize, f: impl Fn(usize, usize, usize) + Sync) {
        for segment in &batch.segments {
            let table = &batch.page_tables[segment.pages.clone()];
            self.threads.for_rows(segment.rows.len(), values, &|i| {
                let position = segment.start + i;
                let page = table[position / PAGE_TOKENS] as usize;
                f(segment.rows.start + i, page, position % PAGE_TOKENS);
            });
        }
    }
}

#[cfg(test)]
mod tests;
