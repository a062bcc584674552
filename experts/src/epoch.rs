//! Numbered decisions about a group: who is in it, and which expert is where.
//!
//! The records are what the epoch store (etcd, or a lone router's memory) holds and what ranks are
//! sent, as JSON, so that an operator can read them with `etcdctl`.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Loads, Placement};

/// One life of a rank: a restarted process has the same rank and another incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RankId {
    pub rank: usize,
    /// Random, never 0.
    pub incarnation: u64,
}

/// A live rank of an epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    #[serde(flatten)]
    pub id: RankId,
    /// `host:port` where other ranks connect to exchange rows.
    pub exchange: String,
    /// `host:port` of its gRPC service, from which peers fetch weights.
    pub grpc: String,
}

/// What a group computes under. Never changed once committed; the next one has the next number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epoch {
    /// From 1.
    pub number: u64,
    /// The latest epoch up to this one that is adopted *at once*: a rank that computes under an
    /// older one drops its step. A change that loses no member is agreed on between two steps
    /// instead, and leaves this number as it was.
    pub reset: u64,
    /// Live ranks, by rank. Slots of the others are masked.
    pub members: Vec<Member>,
    pub placement: Arc<Placement>,
    /// What the placement was made for: which replica a token takes follows from it.
    pub expected: Arc<Loads>,
}

impl Epoch {
    pub fn member(&self, id: RankId) -> Option<&Member> {
        self.members.iter().find(|member| member.id == id)
    }

    /// `[ranks]`: which of them are members.
    pub fn live(&self) -> Vec<bool> {
        let mut live = vec![false; self.placement.shape().ranks];
        for member in &self.members {
            live[member.id.rank] = true;
        }
        live
    }

    pub fn is_degraded(&self) -> bool {
        self.members.len() < self.placement.shape().ranks
    }

    /// # Errors
    /// What is wrong with a record that was read.
    pub fn check(&self) -> Result<(), EpochError> {
        let shape = self.placement.shape();
        if self.number == 0 || self.reset > self.number {
            return Err(EpochError::Number {
                number: self.number,
                reset: self.reset,
            });
        }
        let mut last = None;
        for Member { id, .. } in &self.members {
            if id.rank >= shape.ranks || last >= Some(id.rank) {
                return Err(EpochError::Members {
                    rank: id.rank,
                    ranks: shape.ranks,
                });
            }
            last = Some(id.rank);
        }
        if (self.expected.layers(), self.expected.experts) != (shape.layers, shape.experts) {
            return Err(EpochError::Expected);
        }
        match self.placement.missing(&self.live()).first() {
            Some(&(layer, expert)) => Err(EpochError::NoReplica { layer, expert }),
            None => Ok(()),
        }
    }

    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain data becomes JSON")
    }

    /// # Errors
    /// It is not a record, or one that cannot be computed under.
    pub fn from_json(json: &[u8]) -> Result<Epoch, EpochError> {
        let epoch: Epoch =
            serde_json::from_slice(json).map_err(|error| EpochError::Json(error.to_string()))?;
        epoch.check()?;
        Ok(epoch)
    }
}

/// The epoch to be, while ranks stage its weights. At most one a group at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Unique: a plan that was given up and made again has another.
    pub id: u64,
    /// The epoch it follows on. Another one committed meanwhile makes the plan void.
    pub base: u64,
    pub next: Epoch,
}

impl Plan {
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain data becomes JSON")
    }

    /// # Errors
    /// It is not a plan, or one that leads nowhere.
    pub fn from_json(json: &[u8]) -> Result<Plan, EpochError> {
        let plan: Plan =
            serde_json::from_slice(json).map_err(|error| EpochError::Json(error.to_string()))?;
        plan.next.check()?;
        if plan.next.number != plan.base + 1 {
            return Err(EpochError::Number {
                number: plan.next.number,
                reset: plan.next.reset,
            });
        }
        Ok(plan)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EpochError {
    #[error("not a record of an epoch: {0}")]
    Json(String),
    #[error("epoch {number} with reset {reset} is out of order")]
    Number { number: u64, reset: u64 },
    #[error("member {rank} is out of order, named twice or not one of {ranks} ranks")]
    Members { rank: usize, ranks: usize },
    #[error("the expected loads are not those of the placement's layers and experts")]
    Expected,
    #[error("layer {layer}: no live rank has expert {expert}")]
    NoReplica { layer: usize, expert: usize },
}
