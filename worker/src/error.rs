//! Why a worker could not start, or ended.

use std::{io, net::SocketAddr};

use crate::device::DeviceId;
use millrace_engine::{EngineError, experts::ExpertError};
use millrace_exchange::MeshError;
use millrace_model::{checkpoint::CheckpointError, text::TextError};
use millrace_transfer::{BindError, NixlError, RegionError};

#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error("cannot listen for {what} on {address}: {source}")]
    Listen {
        what: &'static str,
        address: SocketAddr,
        source: io::Error,
    },
    #[error(
        "{address} is every address of this machine; say with --advertise-host under which name or address others reach this worker"
    )]
    NoAdvertisedHost { address: SocketAddr },
    #[error("--advertise-host {host} has no address: {source}")]
    AdvertisedHost { host: String, source: io::Error },
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Text(#[from] TextError),
    #[error(
        "this millrace was built without --features millrace/cuda, so it cannot use {0}; build it with that feature (docs/gpu.md), or use --device cpu"
    )]
    NoCuda(DeviceId),
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Cuda(#[from] millrace_kernels::cuda::CudaError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("cannot start the engine's thread: {0}")]
    Thread(#[source] io::Error),
    #[error("cannot register a metric: {0}")]
    Metrics(#[from] prometheus::Error),
    #[error("cannot offer the KV pages for transfer: {0}")]
    Region(#[from] RegionError),
    #[error("cannot receive KV pages: {0}")]
    Transfer(#[from] BindError),
    #[error("cannot send KV pages: {0}")]
    Nixl(#[from] NixlError),
    #[error("the gRPC server failed: {0}")]
    Serve(#[from] tonic::transport::Error),
    #[error(transparent)]
    Experts(#[from] ExpertError),
    #[error("rank {rank} of {ranks} is none; ranks count from 0")]
    Rank { rank: usize, ranks: usize },
    #[error(
        "rank {rank} of group {group} has no router; routers decide who is in a group, so name one with --router"
    )]
    GroupWithoutRouter { group: String, rank: usize },
    #[error("cannot exchange rows with other ranks: {0}")]
    Mesh(#[from] MeshError),
    #[error("loading the model panicked; the log says where")]
    LoadPanicked,
}
