//! What operators and clients look at before they send work: models, health, metrics, version.

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;

use super::Shared;
use super::answer::json;
use super::error::ApiError;
use crate::api::ModelCard;

#[derive(Serialize)]
struct ModelObject {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// vLLM's: prompt plus output, in tokens.
    max_model_len: u32,
}

impl From<ModelCard> for ModelObject {
    fn from(card: ModelCard) -> ModelObject {
        let ModelCard {
            name,
            created,
            max_model_len,
            ..
        } = card;
        ModelObject {
            id: name,
            object: "model",
            created,
            owned_by: "millrace",
            max_model_len,
        }
    }
}

#[derive(Serialize)]
struct ModelList {
    object: &'static str,
    data: Vec<ModelObject>,
}

/// `GET /v1/models`
pub(super) async fn models(State(edge): Shared) -> Response {
    let data = edge
        .frontend
        .models()
        .into_iter()
        .map(ModelObject::from)
        .collect();
    json(&ModelList {
        object: "list",
        data,
    })
}

/// `GET /v1/models/{id}`
pub(super) async fn model(
    State(edge): Shared,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let card = edge.frontend.model(&id)?;
    // Clients compare it with what they asked for.
    Ok(json(&ModelObject::from(ModelCard { name: id, ..card })))
}

/// `GET /health`: this process answers. Whether it can serve is `/ready`'s to say.
pub(super) async fn health() -> Response {
    #[derive(Serialize)]
    struct Health {
        status: &'static str,
    }
    json(&Health { status: "ok" })
}

/// `GET /ready`: 200 while requests would find workers, otherwise 503.
pub(super) async fn ready(State(edge): Shared) -> Response {
    #[derive(Serialize)]
    struct Ready {
        ready: bool,
        /// The models that can be served now.
        models: Vec<String>,
    }
    let ready = edge.frontend.ready();
    let models = edge
        .frontend
        .models()
        .into_iter()
        .filter(|card| card.ready)
        .map(|card| card.name)
        .collect();
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, json(&Ready { ready, models })).into_response()
}

/// `GET /experts`: [`ExpertsView`](crate::experts::view::ExpertsView). Its `groups` are empty while no
/// rank of a group is attached; that is no error, since most deployments have none.
pub(super) async fn experts(State(edge): Shared) -> Response {
    json(&edge.groups.view())
}

/// `GET /fleet`: [`FleetAnswer`](crate::overview::view::FleetAnswer).
pub(super) async fn fleet(State(edge): Shared) -> Response {
    json(&edge.overview.answer())
}

/// `GET /metrics`, in the format that the scraper asks for.
pub(super) async fn metrics(State(edge): Shared, headers: HeaderMap) -> Result<Response, ApiError> {
    millrace_telemetry::scrape(&edge.metrics, &headers)
        .map_err(|error| ApiError::internal(format!("the metrics could not be written: {error}")))
}

/// `GET /version`
pub(super) async fn version() -> Response {
    #[derive(Serialize)]
    struct Version {
        version: &'static str,
    }
    json(&Version {
        version: env!("CARGO_PKG_VERSION"),
    })
}
