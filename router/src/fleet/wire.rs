//! From the membership contract to the fleet's own types.

use millrace_experts::group::GroupShape;
use millrace_experts::{Member, RankId, Shape};
use millrace_model::blocks::BlockHash;
use millrace_proto::worker::v1 as proto;

use super::{Compatibility, Delta, Description, GroupRank, Load, Refusal, Role};

/// A message that breaks the contract; the worker's stream ends with it.
#[derive(Debug, thiserror::Error)]
#[error("a block hash has {0} bytes instead of 16")]
pub struct BadHash(usize);

pub fn role(role: proto::Role) -> Option<Role> {
    match role {
        proto::Role::Prefill => Some(Role::Prefill),
        proto::Role::Decode => Some(Role::Decode),
        proto::Role::Unspecified => None,
    }
}

pub fn description(hello: proto::Hello) -> Result<Description, Refusal> {
    let role = role(hello.role()).ok_or(Refusal::Missing { field: "role" })?;
    let layout = hello.compatibility.ok_or(Refusal::Missing {
        field: "compatibility",
    })?;
    let model = hello.model.ok_or(Refusal::Missing { field: "model" })?;
    let group = hello.group.map(|group| rank(group, &hello.address));
    Ok(Description {
        worker_id: hello.worker_id,
        role,
        address: hello.address,
        revision: hello.revision,
        aggregated: hello.aggregated,
        compatibility: Compatibility {
            model_revision: layout.model_revision,
            page_tokens: layout.page_tokens,
            cached_layers: layout.cached_layers,
            row_values: layout.row_values,
            kv_dtype: layout.kv_dtype,
            parallelism: layout.parallelism,
        },
        text_revision: model.text_revision,
        max_model_len: model.max_model_len,
        vocab_size: model.vocab_size,
        kv_pages: hello.kv_pages,
        max_running: hello.max_running,
        group,
    })
}

fn rank(rank: proto::GroupRank, grpc: &str) -> GroupRank {
    GroupRank {
        group: rank.group,
        member: Member {
            id: RankId {
                rank: rank.rank as usize,
                incarnation: rank.incarnation,
            },
            exchange: rank.exchange_address,
            grpc: grpc.to_owned(),
        },
        shape: GroupShape {
            shape: Shape {
                layers: rank.layers as usize,
                experts: rank.experts as usize,
                ranks: rank.ranks as usize,
                slots: rank.slots as usize,
            },
            expert_bytes: rank.expert_bytes,
        },
    }
}

/// An absent load is an idle worker without pages: it is shunned rather than flooded.
pub fn load(load: Option<proto::Load>) -> Load {
    let load = load.unwrap_or_default();
    Load {
        running: load.running,
        waiting: load.waiting,
        waiting_tokens: load.waiting_tokens,
        free_pages: load.free_pages,
        leased_pages: load.leased_pages,
        outside: load.outside,
    }
}

pub fn delta(delta: proto::Delta) -> Result<Delta, BadHash> {
    Ok(Delta {
        sequence: delta.sequence,
        load: load(delta.load),
        cleared: delta.cleared,
        removed: hashes(&delta.removed)?,
        stored: hashes(&delta.stored)?,
    })
}

pub fn hashes(blocks: &[Vec<u8>]) -> Result<Vec<BlockHash>, BadHash> {
    let hash = |bytes: &Vec<u8>| {
        let bytes = <[u8; 16]>::try_from(bytes.as_slice()).map_err(|_| BadHash(bytes.len()))?;
        Ok(BlockHash::from_bytes(bytes))
    };
    blocks.iter().map(hash).collect()
}
