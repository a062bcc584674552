//! What the operator is told when it starts.

use std::net::SocketAddr;

#[derive(Debug, Clone)]
pub struct OperatorConfig {
    /// The namespace it looks after. `None`: all.
    pub watch: Option<String>,
    /// Its own namespace: where its Lease is, and from where it talks to routers.
    pub namespace: String,
    /// Unique among the replicas of this operator: the name of its pod.
    pub identity: String,
    /// The image of routers and workers whose ModelDeployment names none.
    pub image: String,
    /// The etcd of deployments that name none, `host:port` each. Empty: their routers keep epochs in
    /// memory, which allows one router only.
    pub etcd: Vec<String>,
    /// Where /metrics, /health and /ready listen.
    pub http: SocketAddr,
}
