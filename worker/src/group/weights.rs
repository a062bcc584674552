//! `millrace.worker.v1.ExpertWeights`: gives other ranks what this one has in memory.

use std::{pin::Pin, sync::Arc};

use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status};

use millrace_engine::ExpertShelf;
use millrace_kernels::Backend;
use millrace_proto::worker::v1::{
    ExpertChunk, FetchExpert,
    expert_weights_server::{ExpertWeights, ExpertWeightsServer},
};

use super::background::Background;

/// Small enough that the receiver's budget is kept evenly.
const CHUNK_BYTES: usize = 256 << 10;

pub struct Weights<B: Backend> {
    pub shelf: Arc<ExpertShelf<B>>,
    pub revision: String,
    pub background: Background,
}

impl<B: Backend> Weights<B> {
    pub fn server(self) -> ExpertWeightsServer<Weights<B>> {
        ExpertWeightsServer::new(self)
    }
}

#[tonic::async_trait]
impl<B: Backend> ExpertWeights for Weights<B> {
    type FetchStream = Pin<Box<dyn Stream<Item = Result<ExpertChunk, Status>> + Send>>;

    async fn fetch(
        &self,
        request: Request<FetchExpert>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        let FetchExpert {
            layer,
            expert,
            model_revision,
        } = request.into_inner();
        if model_revision != self.revision {
            return Err(Status::failed_precondition(format!(
                "model_revision is {} here, not {model_revision}; group only ranks of one checkpoint",
                self.revision
            )));
        }
        let shelf = self.shelf.clone();
        let exported = self
            .background
            .run(move || shelf.export(layer as usize, expert as usize))
            .await
            .map_err(|panicked| Status::internal(panicked.to_string()))?
            .ok_or_else(|| {
                Status::not_found(format!(
                    "expert {expert} of MoE layer {layer} is not in this rank's memory"
                ))
            })?;
        let total_bytes = exported.bytes.len() as u64;
        let digest = exported.digest.to_vec();
        let bytes = Arc::new(exported.bytes);
        let starts = (0..bytes.len()).step_by(CHUNK_BYTES);
        let chunks = tokio_stream::iter(starts).map(move |start| {
            let end = bytes.len().min(start + CHUNK_BYTES);
            let first = start == 0;
            Ok(ExpertChunk {
                data: bytes[start..end].to_vec(),
                total_bytes: if first { total_bytes } else { 0 },
                digest: if first { digest.clone() } else { Vec::new() },
            })
        });
        Ok(Response::new(Box::pin(chunks)))
    }
}
