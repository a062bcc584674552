//! `POST /v1/completions`, for one prompt or many.

mod request;
mod response;
mod stream;

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use futures::StreamExt as _;
use futures::future::try_join_all;
use futures::stream::select_all;

use super::answer::{Envelope, first_event, json};
use super::body::JsonBody;
use super::error::ApiError;
use super::{Caller, Shared, sse};
use crate::Frontend;
use crate::api::{
    CompletionRequest, EventStream, Prompt, RequestError, TokenizeInput, TokenizeRequest,
};

/// Completes each prompt `n` times; choice `p * n + c` is completion `c` of prompt `p`.
pub(super) async fn handle(
    State(edge): Shared,
    Extension(caller): Extension<Caller>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let request::Call {
        mut requests,
        mut reply,
    } = request::read(&body, &caller.request_id, edge.options.max_prompts)?;
    for request in &mut requests {
        request.options.trace = caller.trace.clone();
    }
    let model = edge.frontend.model(&requests[0].model)?.name;
    let envelope = Envelope::new("cmpl", &caller.request_id, model);
    if reply.echo && reply.logprobs {
        let texts = requests
            .iter()
            .map(|request| first_token_text(&edge.frontend, request));
        reply.first_tokens = try_join_all(texts).await?;
    }
    // Should one prompt be refused, the others' streams are dropped, which cancels them.
    let streams = try_join_all(
        requests
            .into_iter()
            .map(|request| edge.frontend.complete(request)),
    )
    .await?;
    let mut events = merge(streams, reply.n);
    let first = first_event(&mut events).await?;
    match reply.stream {
        Some(options) => Ok(sse::response(
            first,
            events,
            stream::CompletionChunks::new(&envelope, reply, options),
        )),
        None => Ok(json(
            &response::collect(envelope, first, events, reply).await?,
        )),
    }
}

/// One stream of all prompts' events, with choices numbered through.
fn merge(mut streams: Vec<EventStream>, n: u32) -> EventStream {
    if streams.len() == 1
        && let Some(only) = streams.pop()
    {
        return only;
    }
    let numbered = streams.into_iter().zip(0_u32..).map(|(stream, prompt)| {
        stream.map(move |event| {
            event.map(|mut event| {
                event.index += prompt * n;
                event
            })
        })
    });
    Box::pin(select_all(numbered))
}

/// The text of a prompt's first token, the only one that comes back without log-probs and hence
/// without its text.
async fn first_token_text(
    frontend: &Frontend,
    request: &CompletionRequest,
) -> Result<String, RequestError> {
    let first = match &request.prompt {
        Prompt::Tokens(ids) => ids.first().copied(),
        Prompt::Text(text) => {
            let input = TokenizeInput::Text(text.clone());
            let request = TokenizeRequest {
                model: request.model.clone(),
                input,
                add_special_tokens: None,
            };
            frontend.tokenize(request).await?.first().copied()
        }
    };
    match first {
        Some(id) => frontend.detokenize(&request.model, vec![id]).await,
        // An empty prompt is refused when it is completed.
        None => Ok(String::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Event;

    #[tokio::test]
    async fn merged_choices_are_numbered_through() {
        let prompt = |indices: [u32; 2]| -> EventStream {
            let events = indices.map(|index| {
                Ok(Event {
                    index,
                    ..Event::default()
                })
            });
            Box::pin(futures::stream::iter(events))
        };
        let merged = merge(vec![prompt([0, 1]), prompt([1, 0])], 2);
        let mut seen: Vec<u32> = merged.map(|event| event.unwrap().index).collect().await;
        seen.sort_unstable();
        assert_eq!(seen, [0, 1, 2, 3]);
    }
}
