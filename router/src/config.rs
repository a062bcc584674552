//! What a router is told at start.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use crate::experts::config::{CostModel, ExpertsConfig};

/// Where a router listens, what it serves and how much it takes on.
#[derive(Debug, Clone)]
pub struct RouterConfig {
    /// OpenAI's HTTP API, `/metrics`, `/health`, `/ready`.
    pub http_addr: SocketAddr,
    /// The public gRPC API and KServe v2.
    pub grpc_addr: SocketAddr,
    /// Where workers attach. Not for clients: it has no authentication.
    pub worker_addr: SocketAddr,
    /// A checkpoint folder. Its weights are hashed, not loaded: only workers of the same revision
    /// are admitted.
    pub model_dir: PathBuf,
    /// What clients may call the model; answers carry the first. Empty: the folder's name.
    pub served_model_names: Vec<String>,
    /// The longest sequence clients are promised, in tokens. `None`: what the checkpoint can do.
    /// Workers that can hold less are not admitted.
    pub max_model_len: Option<u32>,
    pub limits: Limits,
    /// Groups of decode workers that share the experts. Without any it costs nothing.
    pub experts: ExpertsConfig,
    /// How long running requests may go on once the router is told to stop.
    pub drain_timeout: Duration,
    /// TLS, API keys and the port for probes. The default has none of them.
    pub access: AccessConfig,
}

/// Who may reach what.
#[derive(Debug, Clone)]
pub struct AccessConfig {
    /// What the HTTP and gRPC ports prove themselves with. `None`: they are plain.
    pub tls: Option<TlsFiles>,
    /// A folder of files (each file an owner, each line a key), or one such file. `None`: everybody
    /// is served.
    pub api_keys: Option<PathBuf>,
    /// Where `/health`, `/ready` and `/metrics` are plain HTTP for those who can speak nothing else.
    /// They are on the HTTP port in any case.
    pub probe_addr: Option<SocketAddr>,
    /// How often certificate and keys are looked at.
    pub reload_interval: Duration,
}

impl Default for AccessConfig {
    fn default() -> AccessConfig {
        AccessConfig {
            tls: None,
            api_keys: None,
            probe_addr: None,
            reload_interval: Duration::from_secs(10),
        }
    }
}

/// Both in PEM, as a Secret of type kubernetes.io/tls has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, then those that lead from it to its root.
    pub cert: PathBuf,
    /// Its private key: PKCS #8, PKCS #1 or SEC 1.
    pub key: PathBuf,
}

/// Bounds of what one router does. The defaults suit a router with a few decode workers.
#[derive(Debug, Clone)]
pub struct Limits {
    pub admission: AdmissionLimits,
    pub retry: RetryLimits,
    /// Given to requests that bring no deadline. `None`: they may take forever.
    pub request_timeout: Option<Duration>,
    /// Most choices (`n`) a request may ask for.
    pub max_choices: u32,
    /// Bounds the prefix index: (block, worker) pairs, about 100 bytes each.
    pub max_indexed_blocks: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            admission: AdmissionLimits::default(),
            retry: RetryLimits::default(),
            request_timeout: None,
            max_choices: 128,
            max_indexed_blocks: 4 << 20,
        }
    }
}

/// How many requests run and wait. A request with `n` choices counts `n` times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdmissionLimits {
    /// Most sequences with the workers at once.
    pub max_running: u32,
    /// Most sequences that wait for a turn.
    pub max_waiting: u32,
    /// Most prompt tokens of sequences that wait.
    pub max_waiting_tokens: u64,
}

impl Default for AdmissionLimits {
    fn default() -> AdmissionLimits {
        AdmissionLimits {
            max_running: 1024,
            max_waiting: 2048,
            max_waiting_tokens: 8 << 20,
        }
    }
}

/// How failures of workers are hidden from clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryLimits {
    /// Attempts in a row that a worker took on and that brought no token. Bounds what a request
    /// that kills workers can kill.
    pub max_fruitless_attempts: u32,
    /// Attempts in all.
    pub max_attempts: u32,
    /// How long a sequence looks for a worker that takes it on, while none is attached or none can be
    /// reached: long enough for a crashed one to be started again.
    pub worker_wait: Duration,
    /// A decode worker that failed a sequence is left out of its next attempt for this long, and
    /// twice as long after each further failure. If it is still attached then, it was not dead.
    pub leave_out: Duration,
}

impl Default for RetryLimits {
    fn default() -> RetryLimits {
        RetryLimits {
            max_fruitless_attempts: 4,
            max_attempts: 64,
            worker_wait: Duration::from_secs(30),
            leave_out: Duration::from_millis(200),
        }
    }
}
