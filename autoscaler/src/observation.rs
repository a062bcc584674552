//! What was seen of a deployment: what routers counted, how busy workers are, what pools there are.
//! Of the same content as `FleetView` of the worker protocol; whoever watches routers converts it.

use crate::{ByRole, Role};

/// Everything that one look knows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observation {
    /// Seconds of a steady clock that began anywhere. Never goes back while a memory lives.
    pub now: f64,
    /// Seconds since 1970, UTC. For schedules only; it may jump.
    pub unix_seconds: u64,
    /// What each router said last that was heard in the last seconds. One entry a router.
    pub routers: Vec<Router>,
    /// Routers that there should be: pods that are ready. If fewer were heard, part of the traffic is
    /// unknown, and nothing is decided.
    pub routers_expected: u32,
    /// Workers that routers have attached, each once.
    pub workers: Vec<Worker>,
    pub pools: ByRole<Pool>,
    /// A rollout is under way: there may be more replicas than wanted for a while, of which some are of
    /// another revision. Nothing is scaled down and nothing is learned.
    pub rollout: bool,
}

/// What one router said last.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Router {
    /// The same for all of a router's lives, and of no other: the name of its pod.
    pub name: String,
    /// Sequences that wait for a turn there, now.
    pub waiting: u64,
    pub traffic: Traffic,
}

/// Sums since the router started.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Traffic {
    /// Random for each life of a router; another: the sums begin anew.
    pub incarnation: u64,
    /// The router's own clock when the sums were read, since it started.
    pub seconds: f64,
    /// Sequences that asked for a turn, refused ones included.
    pub arrived: u64,
    /// Because too much was waiting.
    pub refused: u64,
    /// Of sequences that got a turn.
    pub prompt_tokens: u64,
    pub cached_prompt_tokens: u64,
    pub generated_tokens: u64,
    /// In which the generated tokens came: one update a sequence and step.
    pub updates: u64,
    pub queue_seconds: Distribution,
    /// TTFT, from the arrival.
    pub first_token_seconds: Distribution,
    /// ITL.
    pub inter_token_seconds: Distribution,
    /// Tokens.
    pub prompt_length: Distribution,
    /// Tokens of finished sequences.
    pub generation_length: Distribution,
}

/// A histogram.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Distribution {
    /// Upper, inclusive, ascending.
    pub bounds: Vec<f64>,
    /// One more than bounds; not cumulative.
    pub counts: Vec<u64>,
    pub sum: f64,
}

/// A worker: on its own, or one rank of a group.
#[derive(Debug, Clone, PartialEq)]
pub struct Worker {
    pub role: Role,
    /// Requests are sent there.
    pub available: bool,
    pub draining: bool,
    /// Sequences being prefilled or decoded.
    pub running: u32,
    /// Sequences that wait for pages or a turn.
    pub waiting: u32,
    /// Most sequences a step. 0: unknown.
    pub max_running: u32,
    /// Prompt tokens not yet computed, of running and waiting.
    pub waiting_tokens: u64,
    /// 0: unknown.
    pub kv_pages: u64,
    /// Free or evictable.
    pub free_pages: u64,
}

/// The replicas of one role. A replica is a worker on its own or a whole group of ranks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pool {
    /// Replicas that the deployment's spec asks for now: what a decision changes. A rollout's surge is
    /// none of them.
    pub wanted: u32,
    /// Replicas that are ready, of any revision. Fewer than wanted: the others are starting.
    pub ready: u32,
    /// Replicas that exist, starting and draining ones included. More than wanted: some still drain.
    pub existing: u32,
}
