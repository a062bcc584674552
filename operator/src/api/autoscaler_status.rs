//! What `kubectl get` and `kubectl describe` say of a PoolAutoscaler.

use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AutoscalerStatus {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Absent: the ModelDeployment has no prefill workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefill: Option<ScaledPool>,
    #[serde(default)]
    pub decode: ScaledPool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttft: Option<Measured>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub itl: Option<Measured>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_time: Option<Measured>,
    /// Absent: nothing was counted yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<SeenTraffic>,
    /// What keeps it from serving more with what there is. Empty: nothing does.
    #[serde(default)]
    pub bottleneck: String,
    /// The last decision, or why there is none, in a sentence.
    #[serde(default)]
    pub message: String,
    /// When the number of groups was changed last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_scale_time: Option<meta::Time>,
    /// Of what the numbers are. They are written when something is decided, and once a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_time: Option<meta::Time>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<meta::Condition>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScaledPool {
    /// Groups that routers send requests to.
    pub ready: i32,
    /// Groups that its WorkerPool was told to have.
    pub current: i32,
    /// Groups that it is to have.
    pub desired: i32,
    /// `ready/desired`, for a column.
    #[serde(default)]
    pub summary: String,
    /// Why it is to have them: Enough, Demand, Violated, Backlog, Surplus, Stabilizing, Starting,
    /// Draining, Rollout, Bounds, Idle, Wake, Frozen.
    #[serde(default)]
    pub cause: String,
    #[serde(default)]
    pub why_not_fewer: String,
    #[serde(default)]
    pub why_not_more: String,
}

/// An objective, and how far it is met.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Measured {
    pub objective_milliseconds: i32,
    /// At the objectives' percentile. Absent: too little was served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured_milliseconds: Option<i32>,
    /// With as many groups as are desired. Absent: nothing can be predicted yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted_milliseconds: Option<i32>,
    /// `measured/objective`, for a column.
    #[serde(default)]
    pub summary: String,
}

/// What the decision was made on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SeenTraffic {
    /// Over which the others are counted.
    pub window_seconds: i32,
    pub requests_per_minute: i32,
    /// Mean length of a prompt.
    pub prompt_tokens: i32,
    /// Of a prompt's tokens, those that were found in a prefix cache.
    pub cached_percent: i32,
    /// Mean length of an answer.
    pub generated_tokens: i32,
    /// Tokens of a decode step and sequence, in hundredths: above 100 by drafts that were accepted.
    pub tokens_per_step_percent: i32,
    /// Sequences that decode at a time.
    pub decoding: i32,
    /// Sequences that wait for a turn at routers.
    pub waiting: i32,
}
