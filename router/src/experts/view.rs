//! What `GET /experts` shows, and what `millrace experts` reads.
//!
//! The schema is stable: fields are added, never renamed or given another meaning. Numbers of 64
//! random bits (incarnations, plans) are hexadecimal strings, since JSON readers keep 53 bits.
//!
//! ```json
//! {
//!   "store": {"kind": "memory", "id": "…", "up": true, "leading": true},
//!   "groups": [{"group": "decode", "state": "whole", "paused": null, "shape": {…}, "epoch": {…}, "plan": null,
//!               "ranks": […], "placement": [[[0, 4], [1, 5]], …], "replicas": [0, 6, 1, 1],
//!               "load": {…}, "history": […]}]
//! }
//! ```

use serde::{Deserialize, Serialize};

/// The whole answer. Without any group attached, `groups` is empty.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExpertsView {
    pub store: StoreView,
    /// By name.
    pub groups: Vec<GroupView>,
}

/// Where epochs are kept, as this router sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreView {
    pub kind: StoreKind,
    /// Routers that show the same id share their epochs. `None`: not reached yet.
    pub id: Option<String>,
    /// `false`: out of reach. Groups serve on under their last epochs; changes wait.
    pub up: bool,
    /// This router decides on epochs.
    pub leading: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreKind {
    Memory,
    Etcd,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupView {
    pub group: String,
    pub state: GroupState,
    /// Why no step can be taken, in words. `None`: steps are taken, or there is no epoch yet.
    #[serde(default)]
    pub paused: Option<String>,
    pub shape: ShapeView,
    /// The latest committed epoch. `None`: the group has not formed yet.
    pub epoch: Option<EpochView>,
    /// The epoch to be, while ranks stage its weights.
    pub plan: Option<PlanView>,
    /// Ranks attached to this router, by rank.
    pub ranks: Vec<RankView>,
    /// `[layer][rank][slot]` → logical expert, of the epoch. Empty without one.
    pub placement: Vec<Vec<Vec<u32>>>,
    /// How many (layer, logical expert) pairs have 1, 2, 3, and 4 or more live replicas. Zeros
    /// without an epoch.
    pub replicas: [u64; 4],
    /// Over the last window. `None` before the first.
    pub load: Option<LoadView>,
    /// The last 32 decisions, oldest first.
    pub history: Vec<EventView>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupState {
    /// No epoch yet: ranks are still to come.
    Forming,
    /// Every rank is a member of the epoch.
    Whole,
    /// Ranks are missing, and every expert still has a live replica.
    Degraded,
    /// No step can be taken now: links broke, or experts are missing until they are staged.
    Recovering,
}

impl GroupState {
    pub const ALL: [GroupState; 4] = [
        GroupState::Forming,
        GroupState::Whole,
        GroupState::Degraded,
        GroupState::Recovering,
    ];

    /// As in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            GroupState::Forming => "forming",
            GroupState::Whole => "whole",
            GroupState::Degraded => "degraded",
            GroupState::Recovering => "recovering",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShapeView {
    /// MoE layers, the MTP layer's last if the group drafts.
    pub layers: usize,
    /// Logical experts a layer.
    pub experts: usize,
    pub ranks: usize,
    /// Physical slots of a rank in each layer.
    pub slots: usize,
    /// Weights of one expert.
    pub expert_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochView {
    pub number: u64,
    /// The latest epoch up to this one that was adopted at once, because ranks were lost.
    pub reset: u64,
    /// By rank.
    pub members: Vec<MemberView>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberView {
    pub rank: usize,
    pub incarnation: String,
    /// `host:port` where other ranks connect to exchange rows.
    pub exchange: String,
    /// `host:port` of its gRPC service.
    pub grpc: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanView {
    pub id: String,
    /// The epoch it follows on.
    pub base: u64,
    /// The epoch that it leads to.
    pub number: u64,
    /// Experts that ranks have to load because the placement changes, on all ranks and layers.
    pub moved: u64,
    /// Its ranks that have staged and verified every slot.
    pub staged: Vec<usize>,
    /// Its ranks that have not.
    pub waiting: Vec<usize>,
}

/// A rank as it reported itself last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankView {
    #[serde(flatten)]
    pub member: MemberView,
    pub worker: String,
    /// The epoch it computes under.
    pub adopted: Option<u64>,
    /// Ranks it has a working link with.
    pub linked: Vec<usize>,
    /// Members of its epoch whose link broke.
    pub lost: Vec<usize>,
    /// Why it could not stage the last plan.
    pub staging_error: Option<String>,
}

/// What the ranks counted between two looks at them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoadView {
    /// How long the window was.
    pub seconds: f64,
    /// `[layer][expert]`: how often gates chose each logical expert.
    pub chosen: Vec<Vec<u64>>,
    /// `[rank][layer]`: rows times experts that each rank computed.
    pub computed: Vec<Vec<u64>>,
    /// `[layer]`: mean over highest of `computed`, over the epoch's members; 1 is even.
    pub balancedness: Vec<f64>,
    /// The same over all layers: the sum of the means over the sum of the highest.
    pub overall: f64,
    /// The five experts with the largest shares of their layer's choices, largest first.
    pub hottest: Vec<HotExpert>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct HotExpert {
    pub layer: usize,
    pub expert: usize,
    /// Of all choices in its layer.
    pub share: f64,
    /// Live replicas it has.
    pub replicas: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventView {
    /// Seconds since 1970.
    pub at: u64,
    pub kind: EventKind,
    /// The epoch it is about: committed, planned, or the one that stays.
    pub epoch: u64,
    /// In words, with the numbers it was decided on.
    pub reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A plan was published: its ranks stage weights.
    Planned,
    /// An epoch was committed.
    Committed,
    /// A plan was given up.
    Withdrawn,
    /// A placement was computed and not worth its cost.
    Kept,
    /// Another router's write came first, or the store could not be reached.
    Failed,
}

/// A group in a few numbers, as `GET /fleet` has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub group: String,
    /// The latest committed epoch.
    pub epoch: Option<u64>,
    pub state: GroupState,
    pub ranks: usize,
    /// Of the epoch.
    pub members: usize,
    /// Over all layers.
    pub redundant_slots: usize,
    /// Over all layers, in the last window that counted anything; as [`LoadView::overall`].
    pub balancedness: Option<f64>,
    /// The plan whose weights ranks stage; `GET /experts` says more of it.
    #[serde(skip)]
    pub staging: Option<u64>,
}
