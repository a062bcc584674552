//! Every op on an NVIDIA GPU of compute capability 9.0 (H100, H200), by kernels of our own.
//!
//! Activations are bf16; what is summed over layers or compared (residual, router logits, logits) is float32, and so
//! are all sums inside ops. Each op asks for its kernels on one stream and returns; only what copies to the host
//! (`read`, `read_routing`, what is chosen from logits, counts) waits. An op's kernels are in a `.cu` file beside this one, named
//! `architecture_type_op.cu`; `build.rs` compiles them, and `device` embeds and loads them.
//!
//! The driver is loaded at run time, so a binary with feature `cuda` starts anywhere, and [`CudaBackend::new`] says
//! what is missing.

mod batch;
mod choice;
mod copier;
mod device;
mod error;
mod exchange;
mod expert;
mod fp8;
mod gemm;
mod graph;
mod grouped;
mod ledger;
mod map;
mod memory;
mod mla;
mod moe;
mod narrow;
mod ops;
mod params;
mod profile;
mod rows;
mod sharing;
mod sums;
mod tensor;
mod uploads;
mod weights;
mod window;

use std::sync::{Arc, Mutex};

use cudarc::driver::result;

use crate::{KvDtype, PageMemory, RopeTable};
use device::{Device, Shape};
use graph::Graphs;
use memory::{Memory, Scratch};
use profile::Profile;

pub use batch::Placed;
pub use error::CudaError;
pub use exchange::Exchange;
pub use expert::{Expert, Experts};
pub use moe::{Routing, Tally};
pub use profile::{Measured, Peak};
pub use tensor::{Kind, Tensor};
pub use weights::{Embedding, HeadLinear, Linear, Vector};

/// One GPU.
pub struct CudaBackend {
    device: Arc<Device>,
    /// Of ops that need it; the engine runs one at a time.
    space: Mutex<Space>,
    graphs: Mutex<Graphs>,
    profile: Profile,
}

#[derive(Default)]
struct Space {
    index: Scratch,
    best: Scratch,
    draws: Scratch,
    edits: Scratch,
    moe: moe::Space,
    mla: mla::Space,
}

/// cos and sin of every position.
pub struct Rope {
    cos: Memory,
    sin: Memory,
    dim: usize,
    interleaved: bool,
}

impl CudaBackend {
    /// The device that the driver counts as number `ordinal`.
    pub fn new(ordinal: usize) -> Result<CudaBackend, CudaError> {
        Ok(CudaBackend {
            device: Device::open(ordinal)?,
            space: Mutex::default(),
            graphs: Mutex::default(),
            profile: Profile::default(),
        })
    }

    /// How many devices this process sees.
    pub fn count() -> Result<usize, CudaError> {
        Device::count()
    }

    /// Seconds that the device's own copy of `from`'s memory takes: a ceiling to measure ops against.
    pub fn time_copy(&self, from: &Tensor, to: &mut Tensor) -> f64 {
        let bytes = from.bytes().min(to.bytes());
        self.device.wait();
        let began = std::time::Instant::now();
        // SAFETY: both tensors have so many bytes.
        let copied = unsafe {
            let (to, from) = (to.address(), from.address());
            result::memcpy_dtod_async(to, from, bytes, self.device.stream())
        };
        self.device.expect(copied);
        self.device.wait();
        began.elapsed().as_secs_f64()
    }

    /// Seconds that a copy of so many bytes from one device's memory to another's takes.
    pub fn time_peer_copy(from: &CudaBackend, to: &CudaBackend, bytes: usize) -> f64 {
        let memory = |backend: &CudaBackend| {
            let memory = Memory::new(&backend.device, bytes, "copies to time");
            memory.unwrap_or_else(|error| panic!("{error}"))
        };
        let (source, target) = (memory(from), memory(to));
        to.device.wait();
        // Without it, copies go by way of the host.
        for (a, b) in [(from, to), (to, from)] {
            let reached = a.device.reach(&b.device);
            reached.unwrap_or_else(|error| panic!("{error}"));
        }
        from.device.bind();
        let mut seconds = f64::INFINITY;
        for _ in 0..10 {
            from.device.wait();
            let began = std::time::Instant::now();
            // SAFETY: both have so many bytes, and addresses are unique over all devices.
            let copied = unsafe {
                let (to, from_address) = (target.address(), source.address());
                result::memcpy_dtod_async(to, from_address, bytes, from.device.stream())
            };
            from.device.expect(copied);
            from.device.wait();
            seconds = seconds.min(began.elapsed().as_secs_f64());
        }
        seconds
    }

    fn space(&self) -> std::sync::MutexGuard<'_, Space> {
        self.space
            .lock()
            .expect("nothing panics while it holds work space")
    }
}

impl Rope {
    fn new(device: &Arc<Device>, table: &RopeTable) -> Rope {
        let copy = |values: &[f32]| Memory::noted_copy_of(device, values, "rotary tables");
        Rope {
            cos: copy(&table.cos),
            sin: copy(&table.sin),
            dim: table.dim,
            interleaved: table.interleaved,
        }
    }

    fn params(&self) -> params::Rope {
        params::Rope {
            cos: self.cos.address(),
            sin: self.sin.address(),
            dim: self.dim as u32,
            interleaved: self.interleaved.into(),
        }
    }
}

/// `layer` of a pool, as kernels see it.
fn layer_of(pages: &PageMemory, layer: usize) -> params::Pages {
    let layout = pages.layout();
    assert!(layer < layout.layers);
    assert!(
        layout.latent.is_multiple_of(4) && layout.row_values.is_multiple_of(2),
        "this device reads numbers where they are aligned"
    );
    params::Pages {
        base: pages.base() as u64 + (layer * layout.layer_bytes()) as u64,
        page_bytes: layout.page_bytes() as u64,
        row_bytes: layout.row_bytes() as u32,
        row_values: layout.row_values as u32,
        latent: layout.latent as u32,
        kind: match layout.dtype {
            KvDtype::F32 => 0,
            KvDtype::Bf16 => 1,
            KvDtype::Fp8 => 2,
        },
    }
}

impl Shape {
    /// A block for each of `rows` rows of `cols` values.
    fn rows(rows: usize, cols: usize) -> Shape {
        Shape {
            grid: [rows, 1, 1],
            threads: cols.next_multiple_of(32).clamp(32, 256),
            shared: 0,
        }
    }
}
