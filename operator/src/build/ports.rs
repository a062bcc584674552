//! Ports of pods and Services, each with the name it has there.

/// A port and its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    pub number: i32,
    pub name: &'static str,
}

const fn port(number: i32, name: &'static str) -> Port {
    Port { number, name }
}

/// Of routers.
pub mod router {
    use super::{Port, port};

    /// For clients: the OpenAI-compatible API.
    pub const HTTP: Port = port(8000, "http");
    /// For clients: the gRPC APIs.
    pub const GRPC: Port = port(9000, "grpc");
    /// For workers and the operator.
    pub const WORKERS: Port = port(9001, "workers");
    /// Health, readiness and metrics, plain whatever the ports for clients are.
    pub const PROBE: Port = port(8001, "probe");
    pub const ALL: [Port; 4] = [HTTP, GRPC, WORKERS, PROBE];
}

/// Of workers.
pub mod worker {
    use super::{Port, port};

    /// For routers and other workers.
    pub const GRPC: Port = port(9100, "grpc");
    /// Health, readiness and metrics.
    pub const HTTP: Port = port(9102, "http");
    /// Where prefill workers write the pages of decode workers.
    pub const TRANSFER: Port = port(9103, "transfer");
    /// Where ranks of a group exchange rows.
    pub const EXCHANGE: Port = port(9104, "exchange");
    pub const ALL: [Port; 4] = [GRPC, HTTP, TRANSFER, EXCHANGE];
}
