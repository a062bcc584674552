//! From the membership contract to groups' own types, and back.

use std::sync::Arc;

use millrace_experts::epoch::EpochError;
use millrace_experts::group::coordinator::Misfit;
use millrace_experts::group::{Order, Report, Staged};
use millrace_experts::{Epoch, Member, RankId, Shape};
use millrace_proto::worker::v1 as proto;

use crate::fleet::GroupRank;

/// A message that breaks the contract; the rank's stream ends with it.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    #[error("a worker without a group sent word of one")]
    NoGroup,
    #[error(transparent)]
    Misfit(#[from] Misfit),
    #[error("the epoch that the rank computes under: {0}")]
    Epoch(#[from] EpochError),
    #[error("the rank computes under an epoch of another shape than its own")]
    Shape,
    #[error("{field} has {got} counts instead of {expected}")]
    Counts {
        field: &'static str,
        got: usize,
        expected: usize,
    },
}

/// Sums since the rank started.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counts {
    /// `[layer][expert]`
    pub chosen: Vec<u64>,
    /// `[layer][rank]`: of its own rows, by the rank that computed them.
    pub computed: Vec<u64>,
}

/// What `me` reports of itself.
pub fn report(report: &proto::GroupReport, me: &GroupRank) -> Result<Report, Broken> {
    let adopted = match report.adopted.as_slice() {
        [] => None,
        json => Some(Arc::new(Epoch::from_json(json)?)),
    };
    if let Some(epoch) = &adopted
        && epoch.placement.shape() != me.shape.shape
    {
        return Err(Broken::Shape);
    }
    let staged = (report.staged_plan != 0).then(|| Staged {
        plan: report.staged_plan,
        outcome: match report.staging_error.as_str() {
            "" => Ok(()),
            error => Err(error.to_owned()),
        },
    });
    Ok(Report {
        me: me.member.clone(),
        adopted,
        known: report.known,
        linked: report.linked.iter().map(id).collect(),
        lost: report.lost.iter().map(id).collect(),
        staged,
    })
}

fn id(id: &proto::RankId) -> RankId {
    RankId {
        rank: id.rank as usize,
        incarnation: id.incarnation,
    }
}

pub fn counts(counts: proto::ExpertCounts, shape: Shape) -> Result<Counts, Broken> {
    let check = |field, got, expected| {
        if got == expected {
            return Ok(());
        }
        Err(Broken::Counts {
            field,
            got,
            expected,
        })
    };
    check("chosen", counts.chosen.len(), shape.layers * shape.experts)?;
    check(
        "computed",
        counts.computed.len(),
        shape.layers * shape.ranks,
    )?;
    Ok(Counts {
        chosen: counts.chosen,
        computed: counts.computed,
    })
}

/// An order from the store of that id.
pub fn order(store: &str, order: &Order) -> proto::GroupOrder {
    let peer = |member: &Member| proto::GroupPeer {
        id: Some(proto::RankId {
            rank: u32::try_from(member.id.rank).unwrap_or(u32::MAX),
            incarnation: member.id.incarnation,
        }),
        exchange_address: member.exchange.clone(),
        grpc_address: member.grpc.clone(),
    };
    proto::GroupOrder {
        store: store.to_owned(),
        peers: order.peers.iter().map(peer).collect(),
        epoch: order
            .epoch
            .as_ref()
            .map(|e| e.to_json())
            .unwrap_or_default(),
        plan: order.plan.as_ref().map(|p| p.to_json()).unwrap_or_default(),
    }
}
