//! What a worker of either role is told.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use millrace_engine::{EngineConfig, ExpertPath};

use crate::{attach::Resolver, device::DeviceId};

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
    /// `host:port` of every router to attach to. A name stands for all routers at its addresses, which
    /// may change. Without any, the worker is ready once loaded.
    pub routers: Vec<String>,
    /// For those that are names.
    pub resolver: Resolver,
    /// Unique among all workers for the life of the process. `None`: the role and a random number.
    pub worker_id: Option<String>,
    /// Of the deployment: routers pair only workers of one revision. Empty: of none, and then the
    /// model must be the router's own.
    pub revision: String,
    /// A decode worker whose revision has no prefill workers: it is complete without any.
    pub aggregated: bool,
    pub engine: EngineConfig,
    pub device: DeviceId,
    /// Compute threads of the host's processor. `None`: one a core.
    pub threads: Option<usize>,
    /// How long a shutdown waits for running requests.
    pub drain: Duration,
    /// Makes the worker one rank of an expert-parallel group. `None`: it holds every expert itself.
    pub group: Option<GroupConfig>,
}

/// One rank's place in an expert-parallel group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupConfig {
    /// The same on all ranks of the group, and on no other.
    pub group: String,
    /// From 0, below `ranks`.
    pub rank: usize,
    /// The same on all ranks.
    pub ranks: usize,
    /// Replicas a layer besides one of every expert, over all ranks. The same on all ranks.
    pub redundant_experts: usize,
    /// Where other ranks connect to exchange rows. Port 0: any free one. They reach it under
    /// `advertise_host`, or under this address.
    pub listen: SocketAddr,
    /// Most bytes of weights a second that are staged for a new placement, so that decoding keeps
    /// the network and the memory it needs.
    pub stage_bandwidth: u64,
    /// How rows go to the ranks of their experts. The same on all ranks.
    pub expert_path: ExpertPath,
}

impl GroupConfig {
    /// Rank `rank` of `ranks`, on this machine, without redundant experts.
    pub fn new(group: impl Into<String>, rank: usize, ranks: usize) -> GroupConfig {
        GroupConfig {
            group: group.into(),
            rank,
            ranks,
            redundant_experts: 0,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            stage_bandwidth: 256 << 20,
            expert_path: ExpertPath::default(),
        }
    }
}

impl WorkerConfig {
    /// The worker's id, drawn now if it was given none.
    pub fn id(&mut self, role: Role) -> &str {
        self.worker_id
            .get_or_insert_with(|| format!("{role}-{:08x}", crate::attach::random() as u32))
    }
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
            resolver: Resolver::default(),
            worker_id: None,
            revision: String::new(),
            aggregated: false,
            engine: EngineConfig::default(),
            device: DeviceId::Cpu,
            threads: None,
            drain: Duration::from_secs(30),
            group: None,
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
