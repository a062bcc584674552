//! What a router is told at start.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

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
    /// What clients call the model. `None`: the folder's name.
    pub served_model_name: Option<String>,
    /// The longest sequence clients are promised, in tokens. `None`: what the checkpoint can do.
    /// Workers that can hold less are not admitted.
    pub max_model_len: Option<u32>,
    pub limits: Limits,
    /// How long running requests may go on once the router is told to stop.
    pub drain_timeout: Duration,
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
