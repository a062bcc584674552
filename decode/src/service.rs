//! `millrace.worker.v1.Decode` on the wire.

use std::{pin::Pin, sync::Arc};

use futures::{Stream, stream::try_unfold};
use tonic::{Request, Response, Status};

use millrace_proto::worker::v1::{
    GenerateRequest, GenerateUpdate,
    decode_server::{Decode, DecodeServer},
};
use millrace_telemetry::traces::{self, Parent};
use millrace_worker::deadline;

use crate::{call::Call, context::Context, request::Generation};

/// A prompt of 163 840 tokens is half a mebibyte; a bias for every token of a large vocabulary is
/// about two.
const MAX_REQUEST_BYTES: usize = 16 << 20;

pub fn server(context: Context) -> DecodeServer<impl Decode> {
    DecodeServer::new(Service {
        context: Arc::new(context),
    })
    .max_decoding_message_size(MAX_REQUEST_BYTES)
}

struct Service {
    context: Arc<Context>,
}

#[tonic::async_trait]
impl Decode for Service {
    type GenerateStream = Pin<Box<dyn Stream<Item = Result<GenerateUpdate, Status>> + Send>>;

    async fn generate(
        &self,
        request: Request<GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let deadline = deadline(request.metadata());
        let span = traces::Span::server("decode", &Parent::of(request.metadata().as_ref()));
        let generation = Generation::from_wire(request.into_inner(), self.context.vocab_size)?;
        let call = Call::start(self.context.clone(), generation, deadline, span).await?;
        // The stream owns the call: when the router drops the one, tonic drops the other.
        Ok(Response::new(Box::pin(try_unfold(call, Call::next))))
    }
}
