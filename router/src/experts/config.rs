//! How a router looks after expert-parallel groups.

use std::time::Duration;

use millrace_experts::group::coordinator;
use millrace_experts::planner;

/// Where epochs are kept, and when another placement is worth its cost.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertsConfig {
    /// etcd's endpoints, `http://host:port` each. Empty: epochs are in this router's memory, and no
    /// other router may serve the same groups.
    pub etcd: Vec<String>,
    /// What this deployment's keys in etcd begin with. Routers of one deployment have the same.
    pub etcd_prefix: String,
    /// A router that leads the balancing and is not heard of for this long is replaced.
    pub leader_ttl: Duration,
    /// How often another placement is thought about. `None`: never; ranks still come and go.
    pub balance_interval: Option<Duration>,
    /// Load is shown, and remembered for the next placement, in windows of this length.
    pub load_window: Duration,
    /// A plan that some rank has not staged by then is given up.
    pub stage_deadline: Duration,
    /// How long a rank that vanished from this router may take to come back before it is left out.
    /// Ranks that others miss too are left out at once.
    pub detach_grace: Duration,
    pub cost: CostModel,
}

impl Default for ExpertsConfig {
    fn default() -> ExpertsConfig {
        ExpertsConfig {
            etcd: Vec::new(),
            etcd_prefix: "/millrace".into(),
            leader_ttl: Duration::from_secs(5),
            balance_interval: Some(Duration::from_secs(30)),
            load_window: Duration::from_secs(10),
            stage_deadline: Duration::from_secs(120),
            detach_grace: coordinator::Config::default().detach_grace,
            cost: CostModel::default(),
        }
    }
}

impl ExpertsConfig {
    pub(super) fn coordinator(&self) -> coordinator::Config {
        coordinator::Config {
            plan_deadline: self.stage_deadline,
            attach_grace: self.detach_grace,
            detach_grace: self.detach_grace,
            ..coordinator::Config::default()
        }
    }

    /// Never longer than between two looks at the placement.
    pub(super) fn window(&self) -> Duration {
        let window = self.balance_interval.unwrap_or(self.load_window);
        // An interval of nothing would be a busy loop.
        window.min(self.load_window).max(Duration::from_millis(10))
    }
}

/// What moving experts costs a group, and what balance is worth to it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CostModel {
    /// Bytes a second that a rank takes in while it stages weights.
    pub bandwidth: f64,
    /// The part of its speed that the group loses while ranks stage (0 to 1).
    pub interference: f64,
    /// What a swap stops the group for, whatever its size.
    pub pause: Duration,
    /// The part of a step's time that goes with the most loaded rank's expert work (0 to 1).
    pub expert_time: f64,
    /// How long loads are expected to stay as planned for.
    pub holds: Duration,
    /// Balancedness that must be gained at least, so that noise moves nothing.
    pub min_gain: f64,
}

impl CostModel {
    /// For a group whose experts have so many bytes.
    pub(super) fn of(&self, expert_bytes: u64) -> planner::CostModel {
        planner::CostModel {
            expert_bytes,
            bandwidth: self.bandwidth,
            interference: self.interference,
            pause: self.pause,
            expert_time: self.expert_time,
            holds: self.holds,
        }
    }
}

impl Default for CostModel {
    /// The slowest link that is worth having: a tenth of 25 Gbit/s.
    fn default() -> CostModel {
        let planner::CostModel {
            interference,
            pause,
            expert_time,
            holds,
            ..
        } = planner::CostModel::default();
        CostModel {
            bandwidth: 300e6,
            interference,
            pause,
            expert_time,
            holds,
            min_gain: 0.02,
        }
    }
}
