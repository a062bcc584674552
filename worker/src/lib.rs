//! What prefill and decode workers share: one life, from listening to draining.
//!
//! ```text
//! Worker::bind      listen, show metrics and health
//! Worker::load      weights and pages               (startup)
//! Loaded::start     the engine's thread             (engine/)
//! Worker::serve     gRPC, attach to the routers, drain at the end   (serve, attach/)
//! ```
//!
//! A worker may be one rank of an expert-parallel group (`group/`): its engine's thread then takes
//! each step together with the other ranks.
//!
//! What the two roles do differently is in their own crates: a gRPC service each, and what
//! becomes of pages that a peer writes.

pub mod attach;
mod compatibility;
pub mod config;
mod deadline;
mod device;
pub mod engine;
mod error;
mod group;
pub mod metrics;
pub mod notice;
mod region;
mod serve;
mod startup;
pub mod wire;

pub use compatibility::{Compatibility, Mismatch};
pub use config::{GroupConfig, Role, WorkerConfig};
pub use deadline::deadline;
pub use device::{Device, DeviceId};
pub use error::WorkerError;
pub use region::transfer_region;
pub use serve::{Worker, identify};
pub use startup::{Loaded, Started};

pub use millrace_kernels::cpu::CpuBackend;
#[cfg(feature = "cuda")]
pub use millrace_kernels::cuda::CudaBackend;
