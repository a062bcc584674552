//! A worker as the router knows it: what it said of itself, and how busy it is.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use super::compatibility::Compatibility;
use super::pool::Rank;
use super::rank::GroupRank;

/// Names one attachment. Never used again: a worker that comes back gets a new key, so whatever
/// still refers to its earlier life cannot touch this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerKey(pub u64);

#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Prefill,
    Decode,
}

impl Role {
    pub const ALL: [Role; 2] = [Role::Prefill, Role::Decode];

    pub fn as_str(self) -> &'static str {
        match self {
            Role::Prefill => "prefill",
            Role::Decode => "decode",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a worker says of itself when it attaches. Fixed for its life.
#[derive(Debug, Clone, PartialEq)]
pub struct Description {
    /// Unique for the life of a process.
    pub worker_id: String,
    pub role: Role,
    /// `host:port` of its gRPC service.
    pub address: String,
    /// Of the deployment. Empty: of none.
    pub revision: String,
    /// No prefill worker of its revision is to come.
    pub aggregated: bool,
    pub compatibility: Compatibility,
    /// Hash of tokenizer, chat template and end tokens.
    pub text_revision: String,
    /// The longest sequence it can hold, in tokens.
    pub max_model_len: u32,
    pub vocab_size: u32,
    /// The size of its page pool.
    pub kv_pages: u64,
    /// Most sequences a step.
    pub max_running: u32,
    /// Its place in an expert-parallel group. `None`: it has all experts itself.
    pub group: Option<GroupRank>,
}

/// How busy a worker is. Reported by it, or with the router's own estimate added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Sequences being decoded or prefilled.
    pub running: u32,
    /// Sequences that wait for pages or a turn.
    pub waiting: u32,
    /// Prompt tokens not yet computed, of running and waiting sequences.
    pub waiting_tokens: u64,
    /// Free or evictable.
    pub free_pages: u64,
    /// Promised to a peer's writes.
    pub leased_pages: u64,
    /// A rank that is no member of its group's epoch: it would fail whatever it is given.
    pub outside: bool,
}

/// What one request will add to a worker's load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Demand {
    /// Prompt tokens to compute there.
    pub tokens: u64,
    /// Pages it takes there beyond those already cached.
    pub pages: u64,
}

/// Names one request on one worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket(pub u64);

/// How long after a request was sent its worker's load reports may still not count it: the way
/// there, the worker's current step, and the way back.
pub const SETTLE: Duration = Duration::from_millis(50);

/// What a sequence of a batch costs another, in prompt tokens: it makes each of its steps longer.
const SEQUENCE_COST: u64 = 16;
/// What it costs to wait for one that must end first.
const OVER_COST: u64 = 1024;

/// One attached worker.
#[derive(Debug)]
pub struct Worker {
    pub description: Description,
    pub draining: bool,
    /// A rank whose group goes on without it, whatever it says itself: one that hangs says nothing.
    pub left_out: bool,
    reported: Load,
    /// Sent by this router, not yet in `reported`. Oldest first.
    unreported: VecDeque<Unreported>,
    /// Requests ever sent there by this router: the tie-break that spreads equal choices.
    pub assigned: u64,
    pub(super) sync: Sync,
    /// Where it stands in its pool. `None`: it takes no requests.
    pub(super) rank: Option<Rank>,
}

#[derive(Debug)]
struct Unreported {
    ticket: Ticket,
    demand: Demand,
    since: Instant,
}

/// Why a worker takes no new requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    #[error("draining")]
    Draining,
    #[error("no snapshot yet")]
    NoSnapshot,
    /// It says so itself.
    #[error("outside its group's epoch")]
    Outside,
    /// Its group does.
    #[error("its group goes on without it")]
    LeftOut,
}

/// Where a worker's stream of deltas stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sync {
    /// Nothing is known of it yet, or a gap was seen: deltas are ignored until a snapshot.
    AwaitingSnapshot { had_snapshot: bool },
    /// The next delta must have this number.
    Following { next: u64 },
}

impl Worker {
    pub fn new(description: Description) -> Worker {
        Worker {
            description,
            draining: false,
            left_out: false,
            reported: Load::default(),
            unreported: VecDeque::new(),
            assigned: 0,
            sync: Sync::AwaitingSnapshot {
                had_snapshot: false,
            },
            rank: None,
        }
    }

    pub fn model_revision(&self) -> &str {
        &self.description.compatibility.model_revision
    }

    /// Takes new requests: its load is known, it is not draining, and its group computes with it.
    pub fn is_available(&self) -> bool {
        self.unavailable().is_none()
    }

    /// Why it takes no new requests. `None`: it does. After a gap the last known load still serves
    /// as a hint.
    pub fn unavailable(&self) -> Option<Unavailable> {
        const NOTHING_YET: Sync = Sync::AwaitingSnapshot {
            had_snapshot: false,
        };
        if self.draining {
            Some(Unavailable::Draining)
        } else if self.sync == NOTHING_YET {
            Some(Unavailable::NoSnapshot)
        } else if self.left_out {
            Some(Unavailable::LeftOut)
        } else if self.reported.outside {
            Some(Unavailable::Outside)
        } else {
            None
        }
    }

    /// A report that arrived at `now`. Requests sent well before are assumed to be counted in it.
    pub fn report(&mut self, load: Load, now: Instant) {
        self.reported = load;
        while self
            .unreported
            .front()
            .is_some_and(|sent| sent.since + SETTLE <= now)
        {
            self.unreported.pop_front();
        }
    }

    /// A request was sent there at `now`.
    pub fn assign(&mut self, ticket: Ticket, demand: Demand, now: Instant) {
        self.assigned += 1;
        self.unreported.push_back(Unreported {
            ticket,
            demand,
            since: now,
        });
    }

    /// A request ended there. If it was reported already, the worker's next report leaves it out.
    pub fn release(&mut self, ticket: Ticket) {
        self.unreported.retain(|sent| sent.ticket != ticket);
    }

    /// The last report plus what this router has sent since: without it a burst that arrives
    /// between two reports would all go to the one worker that was idle.
    pub fn load(&self) -> Load {
        let mut load = self.reported;
        for Unreported { demand, .. } in &self.unreported {
            load.running = load.running.saturating_add(1);
            load.waiting_tokens = load.waiting_tokens.saturating_add(demand.tokens);
            load.free_pages = load.free_pages.saturating_sub(demand.pages);
        }
        load
    }

    /// What a sequence has to wait for or to bear here, whichever it is: in tokens, the time that a
    /// prefill worker needs for one. `crate::dispatch::pairing` says what it is made of.
    pub fn backlog(&self) -> u64 {
        let load = self.load();
        let batch = match self.description.role {
            Role::Prefill => 0,
            Role::Decode => {
                let sequences = u64::from(load.running) + u64::from(load.waiting);
                let most = u64::from(self.description.max_running);
                SEQUENCE_COST * sequences + OVER_COST * (sequences + 1).saturating_sub(most)
            }
        };
        load.waiting_tokens.saturating_add(batch)
    }

    /// Where it stands in its pool, by its [`backlog`](Self::backlog). `None`: it takes no requests.
    pub fn rank(&self) -> Option<Rank> {
        self.rank
    }
}
