//! What both endpoints do with a stream of events before it takes its own form.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use futures::StreamExt as _;
use serde::{Deserialize, Serialize};

use crate::api::{Event, EventStream, RequestError, StopMatch};

/// What every body or chunk of one answer repeats.
#[derive(Debug, Clone)]
pub(super) struct Envelope {
    /// `chatcmpl-...` or `cmpl-...`, made of the request id.
    pub(super) id: String,
    /// Seconds since the Unix epoch.
    pub(super) created: u64,
    pub(super) model: String,
}

impl Envelope {
    pub(super) fn new(prefix: &str, request_id: &str, model: String) -> Envelope {
        let created = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        let id = format!(
            "{prefix}-{}",
            request_id.strip_prefix("req-").unwrap_or(request_id)
        );
        Envelope { id, created, model }
    }
}

/// `stream_options`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct StreamOptions {
    /// One more chunk before `[DONE]` with the usage and no choices; all others say `"usage": null`.
    pub(super) include_usage: bool,
    /// vLLM's: every chunk has the usage so far.
    pub(super) continuous_usage_stats: bool,
}

/// Waits for the first event, so that a request which fails before it is answered with a status.
///
/// # Errors
/// The stream's own, or `Internal` where it ends without any event.
pub(super) async fn first_event(stream: &mut EventStream) -> Result<Event, RequestError> {
    stream.next().await.unwrap_or_else(|| Err(ended_early()))
}

/// A stream that stops before each of its choices has finished is a bug behind the edge.
pub(super) fn ended_early() -> RequestError {
    RequestError::Internal {
        message: "the answer ended before it was finished".into(),
    }
}

/// A JSON body with status 200.
pub(super) fn json(value: &impl Serialize) -> Response {
    axum::Json(value).into_response()
}

/// The headers of an event stream: no cache and no buffering proxy may sit on it.
pub(super) const EVENT_STREAM: [(header::HeaderName, HeaderValue); 3] = [
    (
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream; charset=utf-8"),
    ),
    (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    (
        header::HeaderName::from_static("x-accel-buffering"),
        HeaderValue::from_static("no"),
    ),
];

/// vLLM's `stop_reason`: the stop string or stop token that matched; null for an end token.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub(super) enum StopReason {
    Text(String),
    Token(u32),
}

impl From<&StopMatch> for StopReason {
    fn from(stop: &StopMatch) -> StopReason {
        match stop {
            StopMatch::Text(text) => StopReason::Text(text.clone()),
            StopMatch::Token(id) => StopReason::Token(*id),
        }
    }
}
