//! `POST /v1/chat/completions`.

mod request;
mod response;
mod stream;

use axum::Extension;
use axum::extract::State;
use axum::response::Response;

use super::answer::{Envelope, first_event, json};
use super::body::JsonBody;
use super::error::ApiError;
use super::{Caller, Shared, sse};
pub(super) use request::{messages, stream_form};

/// Answers a conversation, at once or chunk by chunk.
pub(super) async fn handle(
    State(edge): Shared,
    Extension(caller): Extension<Caller>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let request::Call { mut request, reply } = request::read(&body, &caller.request_id)?;
    request.options.trace = caller.trace;
    let model = edge.frontend.model(&request.model)?.name;
    let envelope = Envelope::new("chatcmpl", &caller.request_id, model);
    let mut events = edge.frontend.chat(request).await?;
    let first = first_event(&mut events).await?;
    match reply.stream {
        Some(options) => Ok(sse::response(
            first,
            events,
            stream::ChatChunks::new(&envelope, reply, options),
        )),
        None => Ok(json(
            &response::collect(envelope, first, events, reply).await?,
        )),
    }
}
