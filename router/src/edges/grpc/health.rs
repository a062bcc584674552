//! `grpc.health.v1.Health`, answered from the router's own readiness whenever it is asked.

use std::pin::Pin;
use std::time::Duration;

use futures::Stream;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::NAMES;
use crate::Frontend;

/// How often a watched status is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// Serving while requests would find workers. There is no status to keep up to date: each answer asks.
pub(super) struct HealthEdge {
    frontend: Frontend,
}

impl HealthEdge {
    pub(super) fn new(frontend: Frontend) -> HealthEdge {
        HealthEdge { frontend }
    }
}

fn status(frontend: &Frontend) -> ServingStatus {
    if frontend.ready() {
        ServingStatus::Serving
    } else {
        ServingStatus::NotServing
    }
}

/// The empty name is the server as a whole.
fn known(service: &str) -> bool {
    service.is_empty() || NAMES.contains(&service)
}

#[tonic::async_trait]
impl Health for HealthEdge {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        if !known(&service) {
            return Err(Status::not_found(format!(
                "no service {service:?} here; there are {}",
                NAMES.join(", ")
            )));
        }
        Ok(Response::new(HealthCheckResponse {
            status: status(&self.frontend).into(),
        }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let known = known(&request.into_inner().service);
        let frontend = self.frontend.clone();
        let now = move || {
            if known {
                status(&frontend)
            } else {
                ServingStatus::ServiceUnknown
            }
        };
        // The first status comes at once, the others when they change.
        let changes = futures::stream::unfold((now, None), |(now, last)| async move {
            loop {
                let status = now();
                if last != Some(status) {
                    let response = HealthCheckResponse {
                        status: status.into(),
                    };
                    return Some((Ok(response), (now, Some(status))));
                }
                tokio::time::sleep(LOOK).await;
            }
        });
        Ok(Response::new(Box::pin(changes)))
    }
}
