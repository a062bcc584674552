//! OpenAI's HTTP API, with vLLM's extensions, and the endpoints that operators expect.
//!
//! What a client asks for and cannot get is refused with its name ([`unsupported`]); a field that
//! changes nothing here (`user`, `metadata`, `store`, ...) or that nobody knows is ignored, as every
//! server of this API does. Errors have OpenAI's body, whatever went wrong ([`error`]).
//!
//! The answer's status is decided by its first event: a request that fails before its first token
//! has a real status code, and one that fails later ends with an `error` event in place of `[DONE]`.

mod answer;
mod body;
mod chat;
mod completions;
mod error;
mod fields;
#[cfg(test)]
mod json_values;
mod logprobs;
mod probes;
mod sampling;
mod serve;
mod sse;
mod tokens;
mod unsupported;
mod usage;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use millrace_telemetry::traces::Parent;
use tower_http::catch_panic::CatchPanicLayer;
use tracing::Instrument as _;

pub use serve::serve;

use super::auth::{Guard, Policy, Refused};
use super::request_id;
use crate::Frontend;
use crate::experts::Groups;
use crate::metrics;
use crate::overview::Overview;
use error::ApiError;

/// Limits of the HTTP edge.
#[derive(Debug, Clone)]
pub struct HttpOptions {
    /// Largest request body, in bytes. Larger ones are answered 413.
    pub body_limit: usize,
    /// How long a client may take to send its body, then 408.
    pub body_timeout: Duration,
    /// Most prompts in one `/v1/completions` request.
    pub max_prompts: usize,
    /// Asks for an API key before anything but [`OPEN`]. `None`: everybody is served.
    pub guard: Option<Guard>,
}

/// Kubelets and scrapers have no keys.
const OPEN: [&str; 3] = ["/health", "/ready", "/metrics"];

impl Default for HttpOptions {
    fn default() -> HttpOptions {
        HttpOptions {
            body_limit: 8 << 20,
            body_timeout: Duration::from_secs(30),
            max_prompts: 256,
            guard: None,
        }
    }
}

/// What the handlers share.
struct Edge {
    frontend: Frontend,
    groups: Arc<Groups>,
    overview: Arc<Overview>,
    metrics: millrace_telemetry::Registry,
    options: HttpOptions,
}

type Shared = State<Arc<Edge>>;

/// Whose request is at hand: its id, and the client's span. Put there by [`identify`].
#[derive(Clone)]
struct Caller {
    request_id: String,
    trace: Parent,
}

/// All HTTP endpoints. `/metrics` shows `metrics`.
pub fn router(
    frontend: Frontend,
    groups: Arc<Groups>,
    overview: Arc<Overview>,
    metrics: millrace_telemetry::Registry,
    options: HttpOptions,
) -> axum::Router {
    let body_limit = options.body_limit;
    let guard = options.guard.clone();
    let edge = Arc::new(Edge {
        frontend,
        groups,
        overview,
        metrics,
        options,
    });
    let routes = probe_routes()
        .route("/v1/chat/completions", post(chat::handle))
        .route("/v1/completions", post(completions::handle))
        .route("/v1/models", get(probes::models))
        // Names hold slashes ("deepseek-ai/DeepSeek-R1"), which some clients escape and others do not.
        .route("/v1/models/{*id}", get(probes::model))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/experts", get(probes::experts))
        .route("/fleet", get(probes::fleet))
        .route("/version", get(probes::version))
        .fallback(no_such_route)
        .method_not_allowed_fallback(no_such_method)
        .with_state(edge);
    let routes = match guard {
        None => routes,
        Some(guard) => guard.protect(
            routes,
            Policy {
                edge: metrics::Edge::Http,
                is_open: |path| OPEN.contains(&path),
                refuse,
            },
        ),
    };
    routes
        .layer(DefaultBodyLimit::max(body_limit))
        // A bug in one request costs that request its answer, and the process nothing.
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn(identify))
}

/// Only what kubelets and scrapers ask for, answered as [`router`] answers it, for a port of their own.
pub fn probes(
    frontend: Frontend,
    groups: Arc<Groups>,
    overview: Arc<Overview>,
    metrics: millrace_telemetry::Registry,
) -> axum::Router {
    probe_routes().with_state(Arc::new(Edge {
        frontend,
        groups,
        overview,
        metrics,
        options: HttpOptions::default(),
    }))
}

/// [`OPEN`].
fn probe_routes() -> axum::Router<Arc<Edge>> {
    axum::Router::new()
        .route("/health", get(probes::health))
        .route("/ready", get(probes::ready))
        .route("/metrics", get(probes::metrics))
}

fn refuse(refused: Refused) -> Response {
    // RFC 6750: a request without a key is told of no error.
    let challenge = match refused {
        Refused::Missing => r#"Bearer realm="millrace""#,
        Refused::Malformed => r#"Bearer realm="millrace", error="invalid_request""#,
        Refused::Unknown => r#"Bearer realm="millrace", error="invalid_token""#,
    };
    let challenge = [(header::WWW_AUTHENTICATE, challenge)];
    (challenge, ApiError::unauthorized(refused)).into_response()
}

/// Gives each request its id, and its answer the same; sees whose trace it belongs to.
async fn identify(mut request: Request, next: Next) -> Response {
    const HEADER: HeaderName = HeaderName::from_static("x-request-id");
    let offered = request
        .headers()
        .get(&HEADER)
        .and_then(|value| value.to_str().ok());
    let id = request_id::choose(offered);
    let header = HeaderValue::from_str(&id);
    let span = tracing::error_span!("http", request_id = %id, method = %request.method(), path = request.uri().path());
    let caller = Caller {
        request_id: id,
        trace: Parent::of(request.headers()),
    };
    request.extensions_mut().insert(caller);
    let mut response = next.run(request).instrument(span).await;
    if let Ok(header) = header {
        response.headers_mut().insert(HEADER, header);
    }
    response
}

async fn no_such_route(uri: Uri) -> ApiError {
    ApiError::not_found(format!(
        "there is nothing at {}; the API is at /v1/chat/completions, /v1/completions and /v1/models",
        uri.path()
    ))
}

async fn no_such_method(method: Method, uri: Uri) -> ApiError {
    ApiError::method_not_allowed(format!("{} does not take {method}", uri.path()))
}

fn panicked(payload: Box<dyn std::any::Any + Send + 'static>) -> Response {
    let text = payload.downcast_ref::<&str>().copied().map(str::to_owned);
    let text = text
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    tracing::error!(panic = text, "a request handler panicked");
    ApiError::internal("this request met a bug of the server").into_response()
}
