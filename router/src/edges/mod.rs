//! The dialects that clients speak. Wire types stop here.
//!
//! Each edge turns its own requests into [`crate::api`] requests, hands them to the
//! [`Frontend`](crate::Frontend) and writes the events that come back in its own form. An edge holds
//! no state of its own: everything a request needs travels with it.
//!
//! ```text
//! http::router(frontend, groups, overview, registry, HttpOptions) -> axum::Router
//!     OpenAI's endpoints, vLLM's /tokenize and /detokenize, /health, /ready, /experts, /fleet, /metrics,
//!     /version
//! grpc::routes(frontend, GrpcOptions) -> Result<tonic::service::Routes, tonic_reflection::server::Error>
//!     millrace.inference.v1.Inference, inference.GRPCInferenceService (KServe v2), grpc.health.v1,
//!     reflection v1 and v1alpha; goes to tonic::transport::Server::builder().add_routes(..)
//! ```
//!
//! In front of both are `listen` (plain or TLS connections) and, where keys are configured, `auth`;
//! `reload` gives them new certificates and keys while the router runs.
//!
//! Both option structs have `Default`. Nothing is spawned: dropping what is returned ends the edge.

pub mod auth;
pub mod grpc;
pub mod http;
mod kserve;
pub mod listen;
pub mod reload;
mod request_id;
mod roles;
