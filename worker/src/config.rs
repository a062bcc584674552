//! What a worker of either role is told.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use millrace_engine::EngineConfig;

#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// A Hugging Face folder.
    pub model_dir: PathBuf,
    /// The name clients ask for. `None`: the folder's name.
    pub served_model_name: Option<String>,
    /// Where gRPC listens. Port 0: any free one.
    pub listen: SocketAddr,
    /// Where `/metrics`, `/health` and `/ready` listen. Port 0: any free one.
    pub http: SocketAddr,
    /// The host under which others reach this worker. `None`: the address of `listen`, which must
    /// then not be 0.0.0.0 or ::.
    pub advertise_host: Option<String>,
    /// `host:port` of every router to attach to. Without any, the worker is ready once loaded.
    pub routers: Vec<String>,
    /// Unique among all workers for the life of the process. `None`: the role and a random number.
    pub worker_id: Option<String>,
    pub engine: EngineConfig,
    /// Compute threads. `None`: one a core.
    pub threads: Option<usize>,
    /// How long a shutdown waits for running requests.
    pub drain: Duration,
}

impl Default for WorkerConfig {
    fn default() -> WorkerConfig {
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        WorkerConfig {
            model_dir: PathBuf::new(),
            served_model_name: None,
            listen: any_port,
            http: any_port,
            advertise_host: None,
            routers: Vec::new(),
            worker_id: None,
            engine: EngineConfig::default(),
            threads: None,
            drain: Duration::from_secs(30),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Prefill,
    Decode,
}

impl Role {
    /// As a metric label and in worker ids.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Prefill => "prefill",
            Role::Decode => "decode",
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
