//! What should be there, and why. Everything is serialisable, and [`Decision::message`] says it in a
//! sentence or two.

use serde::Serialize;

use crate::{ByRole, Role};

/// The answer to one look.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// Replicas there should be. Always within the policy's bounds and budget.
    pub desired: ByRole<u32>,
    /// Replicas the spec asked for at this look.
    pub present: ByRole<u32>,
    pub status: Status,
    /// What keeps the decision from what demand alone would ask for. Empty: nothing does.
    pub limits: Vec<Limit>,
    pub pools: ByRole<Reasons>,
    pub bottleneck: Bottleneck,
    /// `None`: too little was seen yet.
    pub seen: Option<Seen>,
    /// With the desired replicas, under the demand that was seen and the policy's tolerance.
    pub predicted: Option<Predicted>,
    pub correction: Correction,
    /// GPUs that the desired replicas take.
    pub gpus: u64,
}

/// Whether demand decides at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase", tag = "state", content = "reason")]
pub enum Status {
    Active,
    /// Replicas stay as they are, bounds and budget aside.
    Frozen(Frozen),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Frozen {
    /// There is no router.
    NoRouters,
    /// A router that should be there was not heard, or its numbers stand still.
    MetricsGap,
    /// Too little was seen since the start or the last gap.
    Warming,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase", tag = "limit", content = "of")]
pub enum Limit {
    /// Fewer would do.
    Min(Role),
    /// More are needed.
    Max(Role),
    /// More GPUs are needed than the budget has.
    Budget,
    /// Fewer would do, but a hint of the schedule holds now.
    Schedule(Role),
    /// More or fewer are wanted than may change at once.
    Step(Role),
    /// Not even an empty pool would meet the objective: more replicas are no help, and what is scaled for
    /// is near what an empty pool does.
    Unattainable(Objective),
}

/// Why a pool has the replicas it should have.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reasons {
    pub cause: Cause,
    /// What demand alone would ask for: for the best estimate of it with the tolerance added.
    pub needed: Option<u32>,
    /// What would be predicted with one replica fewer than desired. `None`: nothing can be said, or
    /// there are none.
    pub one_fewer: Option<Alternative>,
    pub one_more: Option<Alternative>,
}

/// Why the desired replicas are what they are, next to the present ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Cause {
    /// What is there is what is needed, or too close to it to change.
    Enough,
    /// Demand is surely above what the present replicas can serve.
    Demand,
    /// An objective is violated although the prediction held.
    Violated,
    /// Work that piled up.
    Backlog,
    /// Fewer have sufficed for all of the stabilisation window.
    Surplus,
    /// Fewer would do, but it has not been so for long enough, or not surely.
    Stabilizing,
    /// Replicas are starting, and nothing but demand adds to them until they are there.
    Starting,
    /// Fewer would do, but others still drain.
    Draining,
    /// Fewer would do, but a rollout is under way.
    Rollout,
    /// Min, max, budget or schedule.
    Bounds,
    /// Nothing came for so long that both pools go to 0.
    Idle,
    /// Something came while there were none.
    Wake,
    /// See [`Status::Frozen`].
    Frozen,
}

/// One replica more or fewer, and what it would do.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Alternative {
    pub replicas: u32,
    /// The objective that decides: the one that comes closest to its bound or exceeds it most.
    pub objective: Objective,
    /// In the unit of the objective. `None`: without bound, work would pile up.
    pub predicted: Option<f64>,
    pub bound: f64,
    pub meets: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Objective {
    /// Seconds.
    Ttft,
    /// Seconds.
    Itl,
    /// Seconds.
    Queue,
    /// Share of the prefill workers' time that is busy.
    PrefillUtilization,
    /// Share of the tokens that decode workers make with as many sequences as they can hold (by turns or
    /// cache, whatever is scarcer).
    DecodeUtilization,
}

/// What is used up first as load grows, with the present replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Bottleneck {
    /// Objectives are met with ease.
    None,
    PrefillCompute,
    DecodeStepTime,
    KvCapacity,
    /// Turns: sequences wait at routers because decode workers run as many as they may.
    RouterQueue,
}

/// Demand and service as measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Seen {
    /// Seconds of traffic that this is about.
    pub window_seconds: f64,
    /// Sequences that arrived in it.
    pub arrivals: u64,
    /// Sequences a second.
    pub arrival_rate: f64,
    /// Standard error of the arrival rate, as a share of it; burstiness included.
    pub arrival_error: f64,
    /// Change of the arrival rate a second, if it is surely not 0.
    pub arrival_trend: f64,
    /// Share of arrivals.
    pub refused: f64,
    /// Tokens.
    pub mean_prompt: f64,
    /// Tokens.
    pub mean_generation: f64,
    /// Share of prompt tokens that were cached.
    pub prefix_hit_rate: f64,
    /// Tokens an update: 1 plus what MTP adds.
    pub tokens_per_update: f64,
    /// Sequences that decode at a time, mean over all workers.
    pub decoding: f64,
    /// Sequences that wait at routers now.
    pub waiting: u64,
    /// Quantiles of the objectives' quantile. `None`: nothing was measured.
    pub ttft_seconds: Option<f64>,
    pub itl_seconds: Option<f64>,
    pub queue_seconds: Option<f64>,
    /// Share of first tokens within the objective. `None`: no objective, or nothing was measured.
    pub ttft_attainment: Option<f64>,
    pub itl_attainment: Option<f64>,
    pub queue_attainment: Option<f64>,
}

/// What the model says, corrected. `None` of a time: without bound, work would pile up.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Predicted {
    pub ttft_seconds: Option<f64>,
    pub itl_seconds: Option<f64>,
    pub queue_seconds: Option<f64>,
    /// Share of time; above 1: it cannot keep up.
    pub prefill_utilization: f64,
    /// Tokens over those that full decode workers make; above 1: they cannot keep up.
    pub decode_utilization: f64,
    /// Sequences a decode rank has at a time, mean.
    pub batch: f64,
    /// Cache is scarcer than turns.
    pub kv_bound: bool,
}

/// Measured over modelled seconds, within 1/4 and 4, 1 until something was learned.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Correction {
    pub prefill: f64,
    pub decode: f64,
    /// Of TTFT, on top of that of prefill.
    pub ttft: f64,
}

impl Decision {
    /// Whether replicas should change.
    pub fn changes(&self) -> bool {
        self.desired != self.present
    }

    /// For people, e.g. in a condition or an event.
    pub fn message(&self) -> String {
        crate::explain::message(self)
    }
}
