//! What `GET /fleet` shows, and what `millrace top` reads.
//!
//! The schema is stable: fields are added, never renamed or given another meaning.
//!
//! ```json
//! {
//!   "model": "tiny-r1", "leading": true, "waiting": 0,
//!   "workers": [{"worker_id": "decode-0", "role": "decode", "available": true, "running": 3, …}],
//!   "refused": [], "groups": [],
//!   "traffic": {"incarnation": "5f…", "seconds": 12.5, "arrived": 40, …,
//!               "first_token_seconds": {"bounds": […], "counts": […], "sum": 3.1}, …}
//! }
//! ```

use serde::{Deserialize, Serialize};

use crate::experts::view::Summary;
use crate::fleet::Role;
use crate::metrics::Traffic;

/// The fleet at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FleetView {
    /// The name that answers carry.
    pub model: String,
    /// This router decides on epochs.
    pub leading: bool,
    /// Sequences that wait for a turn at this router.
    pub waiting: u32,
    /// All that are attached.
    pub workers: Vec<WorkerView>,
    /// Those that were refused in the last minute and did not come in since.
    pub refused: Vec<RefusedView>,
    /// By name.
    pub groups: Vec<Summary>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerView {
    pub worker_id: String,
    pub role: Role,
    /// Of the deployment. Empty: of none.
    pub revision: String,
    /// `host:port` of its gRPC service.
    pub address: String,
    pub draining: bool,
    /// Why no requests are sent there, in words. `None`: they are.
    pub unavailable: Option<String>,
    /// The group that it is a rank of, and which.
    pub group: Option<(String, usize)>,
    pub running: u32,
    pub waiting: u32,
    /// Most sequences a step.
    pub max_running: u32,
    /// Prompt tokens not yet computed, of running and waiting sequences.
    pub waiting_tokens: u64,
    pub kv_pages: u64,
    /// Free or evictable.
    pub free_pages: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedView {
    pub worker_id: String,
    /// `None`: it did not say.
    pub role: Option<Role>,
    pub reason: String,
}

/// What came in at this router since it started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrafficView {
    /// Random for each life of a router, hexadecimal. With another one the sums begin anew.
    pub incarnation: String,
    /// Since it started, by its own clock.
    pub seconds: f64,
    #[serde(flatten)]
    pub sums: Traffic,
}

/// The whole answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FleetAnswer {
    #[serde(flatten)]
    pub fleet: FleetView,
    pub traffic: TrafficView,
}
