//! `inference.GRPCInferenceService`.

use std::pin::Pin;

use futures::{FutureExt as _, Stream, StreamExt as _};
use millrace_proto::kserve::grpc_inference_service_server::GrpcInferenceService;
use millrace_proto::kserve::{
    ModelInferRequest, ModelInferResponse, ModelMetadataRequest, ModelMetadataResponse,
    ModelReadyRequest, ModelReadyResponse, ModelStreamInferResponse, ServerLiveRequest,
    ServerLiveResponse, ServerMetadataRequest, ServerMetadataResponse, ServerReadyRequest,
    ServerReadyResponse,
};
use tonic::{Request, Response, Status, Streaming};

use super::super::grpc::Caller;
use super::answer::{Answer, Head};
use super::error::InferError;
use super::metadata;
use super::request::{self, Rpc};
use super::stream::{Multiplexer, failure, steps};
use crate::Frontend;
use crate::api::ModelCard;

/// The service, on top of the router's handle.
pub(in super::super) struct KserveEdge {
    frontend: Frontend,
    requests_per_stream: usize,
}

impl KserveEdge {
    pub(in super::super) fn new(frontend: Frontend, requests_per_stream: usize) -> KserveEdge {
        KserveEdge {
            frontend,
            requests_per_stream,
        }
    }
}

/// The model by name and, if one is given, version: its revision.
fn model(frontend: &Frontend, name: &str, version: &str) -> Result<ModelCard, InferError> {
    let card = frontend.model(name)?;
    if version.is_empty() || version == card.revision {
        return Ok(card);
    }
    Err(InferError::Version {
        model: card.name,
        version: version.to_owned(),
        served: card.revision,
    })
}

/// Checks a request and hands it in. Also says whether its answer comes in steps.
async fn begin(
    frontend: &Frontend,
    wire: &ModelInferRequest,
    caller: &Caller,
    rpc: Rpc,
) -> Result<(Answer, bool), InferError> {
    let card = model(frontend, &wire.model_name, &wire.model_version)?;
    let infer = request::read(wire, caller, rpc)?;
    let head = Head {
        model: card.name,
        version: card.revision,
        id: wire.id.clone(),
    };
    let stream = infer.stream;
    Ok((Answer::begin(frontend, head, infer).await?, stream))
}

#[tonic::async_trait]
impl GrpcInferenceService for KserveEdge {
    async fn server_live(
        &self,
        _: Request<ServerLiveRequest>,
    ) -> Result<Response<ServerLiveResponse>, Status> {
        Ok(Response::new(ServerLiveResponse { live: true }))
    }

    async fn server_ready(
        &self,
        _: Request<ServerReadyRequest>,
    ) -> Result<Response<ServerReadyResponse>, Status> {
        Ok(Response::new(ServerReadyResponse {
            ready: self.frontend.ready(),
        }))
    }

    /// A model that is not served is not ready, which is an answer and no error.
    async fn model_ready(
        &self,
        request: Request<ModelReadyRequest>,
    ) -> Result<Response<ModelReadyResponse>, Status> {
        let ModelReadyRequest { name, version } = request.into_inner();
        let ready = model(&self.frontend, &name, &version).is_ok_and(|card| card.ready);
        Ok(Response::new(ModelReadyResponse { ready }))
    }

    async fn server_metadata(
        &self,
        _: Request<ServerMetadataRequest>,
    ) -> Result<Response<ServerMetadataResponse>, Status> {
        Ok(Response::new(metadata::server()))
    }

    async fn model_metadata(
        &self,
        request: Request<ModelMetadataRequest>,
    ) -> Result<Response<ModelMetadataResponse>, Status> {
        let ModelMetadataRequest { name, version } = request.into_inner();
        let card = model(&self.frontend, &name, &version).map_err(InferError::into_status)?;
        Ok(Response::new(metadata::model(card)))
    }

    async fn model_infer(
        &self,
        request: Request<ModelInferRequest>,
    ) -> Result<Response<ModelInferResponse>, Status> {
        let caller = Caller::of(request.metadata());
        let wire = request.into_inner();
        let (answer, _) = begin(&self.frontend, &wire, &caller, Rpc::Unary)
            .await
            .map_err(InferError::into_status)?;
        let response = answer
            .whole()
            .await
            .map_err(|error| InferError::from(error).into_status())?;
        Ok(Response::new(response))
    }

    type ModelStreamInferStream =
        Pin<Box<dyn Stream<Item = Result<ModelStreamInferResponse, Status>> + Send>>;

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<ModelInferRequest>>,
    ) -> Result<Response<Self::ModelStreamInferStream>, Status> {
        let stream_caller = Caller::of(request.metadata());
        let frontend = self.frontend.clone();
        let mut count = 0_u64;
        let respond = move |wire: ModelInferRequest| {
            // Requests without an id of their own must not share the stream's.
            let caller = Caller {
                request_id: format!("{}-{count}", stream_caller.request_id),
                ..stream_caller.clone()
            };
            count += 1;
            let frontend = frontend.clone();
            async move {
                let head = Head {
                    model: wire.model_name.clone(),
                    version: wire.model_version.clone(),
                    id: wire.id.clone(),
                };
                match begin(&frontend, &wire, &caller, Rpc::Stream).await {
                    Ok((answer, stepwise)) => steps(answer, !stepwise, head),
                    Err(error) => {
                        let failed = failure(head, &error);
                        futures::stream::once(async { failed }).boxed()
                    }
                }
            }
            .into_stream()
            .flatten()
            .boxed()
        };
        Ok(Response::new(Box::pin(Multiplexer::new(
            request.into_inner(),
            self.requests_per_stream,
            respond,
        ))))
    }
}
