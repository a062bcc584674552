//! The gRPC port: `millrace.inference.v1`, KServe v2 beside it, health and reflection.

mod call;
mod convert;
mod health;
mod service;
pub(super) mod status;

use millrace_proto::inference::v1::inference_server::InferenceServer;
use millrace_proto::kserve::grpc_inference_service_server::GrpcInferenceServiceServer;
use tonic::codec::CompressionEncoding::{Gzip, Zstd};
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;
use tonic_reflection::server::Error as ReflectionError;

pub(super) use call::Caller;

use super::auth::{Guard, Policy};
use super::kserve::KserveEdge;
use crate::Frontend;
use crate::metrics::Edge;
use health::HealthEdge;
use service::InferenceEdge;

/// Limits of the gRPC edge.
#[derive(Debug, Clone)]
pub struct GrpcOptions {
    /// Largest message taken or sent, in bytes.
    pub message_limit: usize,
    /// Most requests under way on one `ModelStreamInfer` stream; more wait unread.
    pub requests_per_stream: usize,
    /// Asks for an API key before anything but health and reflection. `None`: everybody is served.
    pub guard: Option<Guard>,
}

impl Default for GrpcOptions {
    fn default() -> GrpcOptions {
        GrpcOptions {
            message_limit: 8 << 20,
            requests_per_stream: 256,
            guard: None,
        }
    }
}

type Inference = InferenceServer<InferenceEdge>;
type Kserve = GrpcInferenceServiceServer<KserveEdge>;

/// The services whose health and reflection are offered.
const NAMES: [&str; 2] = [
    <Inference as NamedService>::NAME,
    <Kserve as NamedService>::NAME,
];

/// All services of the public gRPC port.
///
/// Messages may come compressed (gzip, zstd). Answers never are: most are one token long, and every
/// Python client offers gzip without being asked.
///
/// # Errors
/// The contracts' descriptors cannot be read, which a test rules out.
pub fn routes(frontend: Frontend, options: GrpcOptions) -> Result<Routes, ReflectionError> {
    let limit = options.message_limit;
    let inference = InferenceServer::new(InferenceEdge::new(frontend.clone()))
        .max_decoding_message_size(limit)
        .max_encoding_message_size(limit)
        .accept_compressed(Gzip)
        .accept_compressed(Zstd);
    let kserve = GrpcInferenceServiceServer::new(KserveEdge::new(
        frontend.clone(),
        options.requests_per_stream,
    ))
    .max_decoding_message_size(limit)
    .max_encoding_message_size(limit)
    .accept_compressed(Gzip)
    .accept_compressed(Zstd);
    let routes = Routes::new(inference)
        .add_service(kserve)
        .add_service(HealthServer::new(HealthEdge::new(frontend)))
        // grpcurl and older clients ask for v1alpha, newer ones for v1.
        .add_service(reflection("grpc.reflection.v1.ServerReflection").build_v1()?)
        .add_service(reflection("grpc.reflection.v1alpha.ServerReflection").build_v1alpha()?);
    Ok(match options.guard {
        None => routes,
        Some(guard) => {
            let policy = Policy {
                edge: Edge::Grpc,
                is_open,
                refuse: |refused| status::unauthenticated(refused).into_http(),
            };
            guard.protect(routes.into_axum_router(), policy).into()
        }
    })
}

/// What tells of this server and of no request.
fn is_open(path: &str) -> bool {
    ["/grpc.health.v1.Health/", "/grpc.reflection."]
        .iter()
        .any(|open| path.starts_with(open))
}

/// Names what this port serves, and not the workers' services that the same descriptors hold.
fn reflection(own_name: &'static str) -> tonic_reflection::server::Builder<'static> {
    let mut builder = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(millrace_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .with_service_name("grpc.health.v1.Health")
        .with_service_name(own_name);
    for name in NAMES {
        builder = builder.with_service_name(name);
    }
    builder
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_can_be_read() {
        assert!(reflection("a").build_v1().is_ok());
        assert!(reflection("b").build_v1alpha().is_ok());
        assert_eq!(
            NAMES,
            [
                "millrace.inference.v1.Inference",
                "inference.GRPCInferenceService"
            ]
        );
    }
}
