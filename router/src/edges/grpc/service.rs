//! `millrace.inference.v1.Inference`.

use std::pin::Pin;

use futures::{Stream, StreamExt as _};
use millrace_proto::inference::v1::inference_server::Inference;
use millrace_proto::inference::v1::{
    ChatRequest, ChatResponse, DetokenizeRequest, DetokenizeResponse, GenerateRequest,
    GenerateResponse, ListModelsRequest, ListModelsResponse, TokenizeRequest, TokenizeResponse,
};
use tonic::metadata::AsciiMetadataValue;
use tonic::{Request, Response, Status};
use tracing::Instrument as _;

use super::status::from_error;
use super::{Caller, convert};
use crate::Frontend;
use crate::api::{Event, EventStream};

/// The service, on top of the router's handle.
pub(super) struct InferenceEdge {
    frontend: Frontend,
}

impl InferenceEdge {
    pub(super) fn new(frontend: Frontend) -> InferenceEdge {
        InferenceEdge { frontend }
    }
}

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Converts events as they are polled. Dropped by a client that goes away, it drops the events, which
/// cancels the request.
fn responses<T: 'static>(
    events: EventStream,
    id: String,
    convert: fn(Event, String) -> T,
) -> Response<Responses<T>> {
    let header = AsciiMetadataValue::try_from(id.as_str());
    let stream = events.map(move |event| {
        event
            .map(|event| convert(event, id.clone()))
            .map_err(from_error)
    });
    let mut response = Response::new(Box::pin(stream) as Responses<T>);
    if let Ok(header) = header {
        response.metadata_mut().insert("x-request-id", header);
    }
    response
}

#[tonic::async_trait]
impl Inference for InferenceEdge {
    type GenerateStream = Responses<GenerateResponse>;

    async fn generate(
        &self,
        request: Request<GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let caller = Caller::of(request.metadata());
        let request = convert::completion(request.into_inner(), &caller)?;
        let id = request.options.request_id.clone();
        let span = tracing::error_span!("grpc", request_id = %id, method = "Generate");
        let events = self
            .frontend
            .complete(request)
            .instrument(span)
            .await
            .map_err(from_error)?;
        Ok(responses(events, id, convert::generate_response))
    }

    type ChatStream = Responses<ChatResponse>;

    async fn chat(
        &self,
        request: Request<ChatRequest>,
    ) -> Result<Response<Self::ChatStream>, Status> {
        let caller = Caller::of(request.metadata());
        let request = convert::chat(request.into_inner(), &caller)?;
        let id = request.options.request_id.clone();
        let span = tracing::error_span!("grpc", request_id = %id, method = "Chat");
        let events = self
            .frontend
            .chat(request)
            .instrument(span)
            .await
            .map_err(from_error)?;
        Ok(responses(events, id, convert::chat_response))
    }

    async fn tokenize(
        &self,
        request: Request<TokenizeRequest>,
    ) -> Result<Response<TokenizeResponse>, Status> {
        let request = convert::tokenize(request.into_inner())?;
        let max_model_len = self
            .frontend
            .model(&request.model)
            .map_err(from_error)?
            .max_model_len;
        let token_ids = self.frontend.tokenize(request).await.map_err(from_error)?;
        Ok(Response::new(TokenizeResponse {
            token_ids,
            max_model_len,
        }))
    }

    async fn detokenize(
        &self,
        request: Request<DetokenizeRequest>,
    ) -> Result<Response<DetokenizeResponse>, Status> {
        let DetokenizeRequest { model, token_ids } = request.into_inner();
        let text = self
            .frontend
            .detokenize(&model, token_ids)
            .await
            .map_err(from_error)?;
        Ok(Response::new(DetokenizeResponse { text }))
    }

    async fn list_models(
        &self,
        _: Request<ListModelsRequest>,
    ) -> Result<Response<ListModelsResponse>, Status> {
        let models = self
            .frontend
            .models()
            .into_iter()
            .map(convert::model)
            .collect();
        Ok(Response::new(ListModelsResponse { models }))
    }
}
