//! One expert's weights into memory, from another rank or from the checkpoint.

use std::sync::Arc;

use millrace_engine::{ExpertError, ExpertShelf};
use millrace_kernels::Backend;
use millrace_proto::worker::v1::FetchExpert;

use super::{
    budget::Budget,
    fetch::{FetchError, Peers},
};
use crate::group::{
    Group,
    background::{Background, Panicked},
    metrics::StagingMetrics,
};

/// One expert of one MoE layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expert {
    pub layer: usize,
    pub expert: usize,
}

/// Why a peer's weights are of no use.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The checksum among others.
    #[error(transparent)]
    Import(#[from] ExpertError),
    #[error(transparent)]
    Panicked(#[from] Panicked),
}

impl PeerError {
    /// The peer is well, but has not got it.
    pub fn is_absent(&self) -> bool {
        matches!(self, PeerError::Fetch(FetchError::Absent))
    }

    /// As a metric label.
    fn label(&self) -> &'static str {
        match self {
            PeerError::Fetch(error) => error.label(),
            PeerError::Import(ExpertError::WrongDigest { .. }) => "checksum",
            PeerError::Import(_) => "malformed",
            PeerError::Panicked(_) => "panic",
        }
    }
}

/// There is no other source after the checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum StagingError {
    #[error("the checkpoint cannot be read: {0}")]
    Checkpoint(#[from] ExpertError),
    #[error(transparent)]
    Panicked(#[from] Panicked),
}

/// Where weights come from, within one budget.
pub struct Sources<B: Backend> {
    shelf: Arc<ExpertShelf<B>>,
    background: Background,
    metrics: StagingMetrics,
    budget: Budget,
    peers: Peers,
    revision: String,
    /// Bytes of the largest expert.
    largest: u64,
}

impl<B: Backend> Sources<B> {
    pub fn new(
        group: &Group,
        shelf: Arc<ExpertShelf<B>>,
        background: Background,
        metrics: StagingMetrics,
        bytes_per_second: u64,
    ) -> Sources<B> {
        Sources {
            shelf,
            background,
            metrics,
            budget: Budget::new(bytes_per_second),
            peers: Peers::default(),
            revision: group.revision().to_string(),
            largest: group.shape().expert_bytes,
        }
    }

    /// Forgets connections to other addresses.
    pub fn keep<'a>(&mut self, addresses: impl Iterator<Item = &'a str> + Clone) {
        self.peers.keep(addresses);
    }

    /// Out of a peer's memory.
    pub async fn peer(&mut self, address: &str, at: Expert) -> Result<(), PeerError> {
        let result = self.fetch(address, at).await;
        match &result {
            Ok(bytes) => self.metrics.staged_from_peer(*bytes),
            Err(error) => self.metrics.failed(error.label()),
        }
        result.map(drop)
    }

    async fn fetch(&mut self, address: &str, at: Expert) -> Result<u64, PeerError> {
        let request = FetchExpert {
            layer: at.layer as u32,
            expert: at.expert as u32,
            model_revision: self.revision.clone(),
        };
        let fetched = self
            .peers
            .fetch(address, request, self.largest, &mut self.budget)
            .await?;
        let shelf = self.shelf.clone();
        let bytes = fetched.bytes.len() as u64;
        let import = move || shelf.import(at.layer, at.expert, &fetched.bytes, &fetched.digest);
        self.background.run(import).await??;
        Ok(bytes)
    }

    /// From the disk.
    pub async fn checkpoint(&mut self, at: Expert) -> Result<(), StagingError> {
        self.budget.spend(self.largest).await;
        let shelf = self.shelf.clone();
        let load = move || shelf.load_from_checkpoint(at.layer, at.expert);
        let loaded = match self.background.run(load).await {
            Ok(loaded) => loaded.map_err(StagingError::from),
            Err(panicked) => Err(panicked.into()),
        };
        match &loaded {
            Ok(()) => self.metrics.staged_from_checkpoint(self.largest),
            Err(_) => self.metrics.failed("checkpoint"),
        }
        loaded
    }
}
