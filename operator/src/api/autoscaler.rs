//! `PoolAutoscaler`: how many groups a ModelDeployment has, decided by what its clients see.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::AutoscalerStatus;

/// Scales both pools of a ModelDeployment together, so that its clients get their first token, and each
/// one after it, in time. Its numbers come from the routers' streams and from nowhere else.
#[allow(
    clippy::duplicated_attributes,
    reason = "each column has a type, and several have the same"
)]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[kube(
    group = "serving.millrace.dev",
    version = "v1alpha1",
    kind = "PoolAutoscaler",
    namespaced,
    shortname = "pas",
    category = "millrace",
    status = "AutoscalerStatus",
    derive = "PartialEq",
    printcolumn(name = "Target", type_ = "string", json_path = ".spec.target.name"),
    printcolumn(
        name = "Prefill",
        type_ = "string",
        json_path = ".status.prefill.summary"
    ),
    printcolumn(
        name = "Decode",
        type_ = "string",
        json_path = ".status.decode.summary"
    ),
    printcolumn(name = "TTFT", type_ = "string", json_path = ".status.ttft.summary"),
    printcolumn(name = "ITL", type_ = "string", json_path = ".status.itl.summary"),
    printcolumn(
        name = "Active",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Active')].status"
    ),
    printcolumn(
        name = "Frozen",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Frozen')].status"
    ),
    printcolumn(
        name = "Bottleneck",
        type_ = "string",
        json_path = ".status.bottleneck"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        priority = 1,
        json_path = ".status.message"
    )
)]
#[x_kube(validation = Rule::new("has(self.prefill) || !has(self.schedule) || self.schedule.all(s, !has(s.prefillReplicas))").message("schedule has prefillReplicas, and there is no prefill; remove them, or set prefill"))]
#[x_kube(validation = Rule::new("!has(self.scaleToZero) || self.scaleToZero.idleSeconds >= (has(self.coldStartSeconds) ? self.coldStartSeconds : 60)").message("scaleToZero.idleSeconds is less than coldStartSeconds: groups would go before they serve"))]
pub struct PoolAutoscalerSpec {
    /// What is scaled. Its pools must leave `replicas` out.
    pub target: AutoscalerTarget,
    pub objectives: Objectives,
    /// Left out for a ModelDeployment without prefill workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefill: Option<ReplicaBounds>,
    pub decode: ReplicaBounds,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    #[serde(default)]
    pub behavior: ScalingBehavior,
    /// At least so many groups at times that are known before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub schedule: Vec<ScheduledReplicas>,
    /// Without it, `minReplicas` groups are there also when nobody asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_to_zero: Option<ScaleToZero>,
    /// From the decision for one more group until it gets requests: what grows is scaled for as it will
    /// be then, and schedules take effect so much earlier. Default: 60.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86400))]
    pub cold_start_seconds: Option<i32>,
    pub profile: ProfileSource,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AutoscalerTarget {
    /// A ModelDeployment in the same namespace.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// At least one of the times.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("has(self.ttftMilliseconds) || has(self.itlMilliseconds) || has(self.queueMilliseconds)").message("set at least one of ttftMilliseconds, itlMilliseconds and queueMilliseconds"))]
pub struct Objectives {
    /// So many of a hundred are to be at least as fast. Default: 95.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 50, max = 99))]
    pub percentile: Option<i32>,
    /// Time to the first token, from the request's arrival at a router.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3600000))]
    pub ttft_milliseconds: Option<i32>,
    /// Inter-token latency: time from one token to the next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3600000))]
    pub itl_milliseconds: Option<i32>,
    /// Time that a request waits at a router for its turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3600000))]
    pub queue_milliseconds: Option<i32>,
}

/// Groups of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("!has(self.minReplicas) || self.minReplicas <= self.maxReplicas").message("minReplicas is more than maxReplicas"))]
pub struct ReplicaBounds {
    /// Default: 1. Only `scaleToZero` goes below it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub min_replicas: Option<i32>,
    #[schemars(range(min = 1, max = 10000))]
    pub max_replicas: i32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Budget {
    /// Of both pools together; a rank on CPUs counts as one. The surge of a rollout comes on top.
    #[schemars(range(min = 1))]
    pub max_gpus: i32,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ScalingBehavior {
    #[serde(default)]
    pub scale_up: ScalingRules,
    #[serde(default)]
    pub scale_down: ScalingRules,
    /// Demand may be off by so much without a change. Default: 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub tolerance_percent: Option<i32>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ScalingRules {
    /// A change is made if it was right for so long, all the time. Default: 0 up, 600 down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 3600))]
    pub stabilization_window_seconds: Option<i32>,
    /// Most groups of a pool a period. Default: any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_step: Option<i32>,
    /// Default: 60.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1800))]
    pub period_seconds: Option<i32>,
}

/// From `from` to `until`, on these days. One that ends before it begins goes on into the next day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("has(self.prefillReplicas) || has(self.decodeReplicas)").message("set at least one of prefillReplicas and decodeReplicas"))]
#[x_kube(validation = Rule::new("self.from != self.until").message("from and until are the same; write different times"))]
pub struct ScheduledReplicas {
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 63))]
    pub name: String,
    /// On which it begins. Default: every day.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 7))]
    pub days: Vec<Day>,
    /// `HH:MM`, UTC.
    #[schemars(length(max = 5), regex(pattern = r"^([01][0-9]|2[0-3]):[0-5][0-9]$"))]
    pub from: String,
    /// `HH:MM`, UTC; not included.
    #[schemars(length(max = 5), regex(pattern = r"^([01][0-9]|2[0-3]):[0-5][0-9]$"))]
    pub until: String,
    /// At least so many groups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub prefill_replicas: Option<i32>,
    /// At least so many groups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub decode_replicas: Option<i32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum Day {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

/// Once nobody has asked for a while, all groups go. The next request brings them back, and waits for
/// them; but a router gives up after 30 s without a worker, so that clients have to ask again where a
/// start takes longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ScaleToZero {
    /// Without a request.
    #[schemars(range(min = 60, max = 604800))]
    pub idle_seconds: i32,
}

/// How long one rank takes, measured on its device: what `millrace bench profile` prints, here or in a
/// ConfigMap. It is corrected by what is measured while it serves, within a factor of 4.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("has(self.configMap) ? !has(self.prefill) && !has(self.decode) && !has(self.maxRunning) && !has(self.kvTokens) : has(self.prefill) && has(self.decode) && has(self.maxRunning) && has(self.kvTokens)").message("set either configMap, or all of prefill, decode, maxRunning and kvTokens"))]
pub struct ProfileSource {
    /// Where what was printed is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map: Option<ConfigMapKey>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefill: Option<PrefillProfile>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decode: Option<DecodeProfile>,
    /// Most sequences a decode step, until workers say it themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_running: Option<u32>,
    /// Tokens that the cache of a decode rank holds, until workers say it themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub kv_tokens: Option<u64>,
}

impl ProfileSource {
    /// The one that is in the spec, if all of it is.
    pub fn inline(&self) -> Option<Profile> {
        Some(Profile {
            prefill: self.prefill.clone()?,
            decode: self.decode.clone()?,
            max_running: self.max_running?,
            kv_tokens: self.kv_tokens?,
        })
    }
}

/// A ConfigMap in the same namespace, read again every 15 s or so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConfigMapKey {
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Of `data`. Default: profile.yaml.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub key: Option<String>,
}

/// A whole [`ProfileSource`], wherever it was.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Profile {
    pub prefill: PrefillProfile,
    pub decode: DecodeProfile,
    pub max_running: u32,
    pub kv_tokens: u64,
}

/// A chunk of n tokens after c others takes `baseSeconds + secondsPerToken * n +
/// secondsPerTokenContext * n * (c + n / 2)`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("self.baseSeconds + self.secondsPerToken > 0.0").message("tokens take time: baseSeconds or secondsPerToken is above 0"))]
pub struct PrefillProfile {
    /// Tokens of a full chunk.
    #[schemars(range(min = 1))]
    pub chunk_tokens: u32,
    #[schemars(range(min = 0))]
    pub base_seconds: f64,
    #[schemars(range(min = 0))]
    pub seconds_per_token: f64,
    #[schemars(range(min = 0))]
    pub seconds_per_token_context: f64,
}

/// A step of b sequences of c tokens each takes `baseSeconds + secondsPerSequence * b +
/// secondsPerContextToken * b * c`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("self.baseSeconds > 0.0").message("a step takes time: baseSeconds is above 0"))]
pub struct DecodeProfile {
    #[schemars(range(min = 0))]
    pub base_seconds: f64,
    #[schemars(range(min = 0))]
    pub seconds_per_sequence: f64,
    #[schemars(range(min = 0))]
    pub seconds_per_context_token: f64,
}
