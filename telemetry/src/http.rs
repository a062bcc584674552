//! `/metrics`, `/health` and `/ready` over HTTP.

use std::future::Future;

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::net::TcpListener;

use crate::{Readiness, Registry, scrape};

/// Serves until `shutdown` resolves and open requests are answered.
///
/// `/health` answers 200 as long as the process serves at all; `/ready` answers 503 with the
/// reason while `readiness` is waiting for something; `/metrics` is what [`scrape`]
/// answers.
pub async fn serve(
    listener: TcpListener,
    registry: Registry,
    readiness: Readiness,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    axum::serve(listener, routes(registry, readiness))
        .with_graceful_shutdown(shutdown)
        .await
}

/// The same routes, for a process that serves other things over HTTP too.
pub fn routes(registry: Registry, readiness: Readiness) -> Router {
    Router::new()
        .route("/metrics", get(metrics).with_state(registry))
        .route("/ready", get(ready).with_state(readiness))
        .route("/health", get(|| async { "ok\n" }))
}

async fn metrics(State(registry): State<Registry>, headers: HeaderMap) -> Response {
    scrape(&registry, &headers).unwrap_or_else(|error| {
        tracing::error!(%error, "metrics could not be written");
        StatusCode::INTERNAL_SERVER_ERROR.into_response()
    })
}

async fn ready(State(readiness): State<Readiness>) -> Response {
    match readiness.reason() {
        None => "ready\n".into_response(),
        Some(what) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("waiting for {what}\n"),
        )
            .into_response(),
    }
}
