//! From a configuration to a running rank.

use std::{net::SocketAddr, sync::Arc};

use millrace_engine::{
    Engine,
    experts::{ExpertError, GroupRank, shape},
};
use millrace_exchange::{FrameLimits, Mesh, MeshConfig};
use millrace_experts::{Member, Placement, RankId, Shape, group::GroupShape};
use millrace_kernels::Backend;
use millrace_model::config::{DeepSeekConfig, Family, ModelConfig};

use super::{
    Group, Rank,
    background::Background,
    metrics::{GroupMetrics, MeshCollector, MeshReading, StagingMetrics},
    staging::Staging,
    weights::Weights,
};
use crate::{
    GroupConfig, WorkerError, attach::random, engine::Waker, metrics::Metrics, serve::host_and_port,
};

impl GroupConfig {
    /// # Errors
    /// There is no such rank, or nobody to let it into the group.
    pub(crate) fn check(&self, routers: &[String]) -> Result<(), WorkerError> {
        let &GroupConfig { rank, ranks, .. } = self;
        if rank >= ranks {
            return Err(WorkerError::Rank { rank, ranks });
        }
        if routers.is_empty() {
            return Err(WorkerError::GroupWithoutRouter {
                group: self.group.clone(),
                rank,
            });
        }
        Ok(())
    }
}

/// A rank that is not running yet.
pub(crate) struct Joining<B: Backend> {
    pub rank: Rank,
    pub beside: Beside<B>,
}

/// What runs beside the engine's thread.
pub(crate) struct Beside<B: Backend> {
    pub group: Arc<Group>,
    pub staging: Staging<B>,
    pub weights: Weights<B>,
}

/// The shape of the group, and what this rank of it loads first.
pub(crate) fn first_placement(
    config: &GroupConfig,
    model: &ModelConfig,
    mtp: bool,
) -> Result<GroupRank, WorkerError> {
    let shape = shape(model, mtp, config.ranks, config.redundant_experts)?;
    let placement = Placement::initial(shape).map_err(ExpertError::from)?;
    Ok(GroupRank {
        placement: Arc::new(placement),
        rank: config.rank,
        path: config.expert_path,
    })
}

/// Listens for the other ranks. `host` is where they reach this one if it is not where it listens,
/// `grpc` the whole address of its gRPC service.
pub(crate) fn join<B: Backend>(
    config: &GroupConfig,
    shape: Shape,
    engine: &Engine<B>,
    waker: Waker,
    host: Option<&str>,
    grpc: &str,
    metrics: &Metrics,
) -> Result<Joining<B>, WorkerError> {
    let shelf = engine.shelf().ok_or(ExpertError::NoExperts)?.clone();
    let id = RankId {
        rank: config.rank,
        incarnation: random().max(1),
    };
    let revision = engine.revision().to_string();
    let path = engine.expert_path().ok_or(ExpertError::NoExperts)?;
    let listen = config.listen;
    let mesh = MeshConfig::new(listen, id, config.group.as_str(), limits(engine, shape))
        .with("model revision", &revision)
        .with("MoE layers", shape.layers)
        .with("experts", shape.experts)
        .with("ranks", shape.ranks)
        .with("--expert-exchange", path.as_str());
    let news = waker.clone();
    let mesh = Arc::new(Mesh::bind(mesh, Arc::new(move || news.wake()))?);
    let me = Member {
        id,
        exchange: advertised(host, mesh.address())?,
        grpc: grpc.to_string(),
    };
    tracing::info!(
        group = config.group,
        rank = id.rank,
        ranks = shape.ranks,
        slots = shape.slots,
        exchange = me.exchange,
        "a rank of a group"
    );
    let group_metrics = GroupMetrics::new(metrics)?;
    let (read, waits) = (mesh.clone(), group_metrics.clone());
    let read = move || MeshReading {
        linked: read.linked().len(),
        peers: read.stats(),
        waits: waits.waits(),
    };
    metrics.watch(MeshCollector::new(metrics, Box::new(read))?)?;
    let group = Arc::new(Group::new(
        config.group.clone(),
        revision.clone(),
        me,
        GroupShape {
            shape,
            expert_bytes: shelf.expert_bytes(),
        },
        mesh.clone(),
        waker,
    ));
    let background = Background::start().map_err(WorkerError::Thread)?;
    let staging = Staging::new(
        group.clone(),
        shelf.clone(),
        background.clone(),
        StagingMetrics::new(metrics)?,
        config.stage_bandwidth,
    );
    Ok(Joining {
        rank: Rank {
            group: group.clone(),
            mesh,
            metrics: group_metrics,
        },
        beside: Beside {
            group,
            staging,
            weights: Weights {
                shelf,
                revision,
                background,
            },
        },
    })
}

/// The largest parcel: all rows of a step, each with all of its experts at one rank.
fn limits<B: Backend>(engine: &Engine<B>, shape: Shape) -> FrameLimits {
    let model = engine.model();
    let rows = engine.config().most_rows();
    FrameLimits {
        hidden: model.common.hidden_size,
        rows,
        work: rows * experts_per_token(model),
        slots: shape.slots,
    }
}

fn experts_per_token(model: &ModelConfig) -> usize {
    match &model.family {
        Family::DeepSeek(DeepSeekConfig { moe: Some(moe), .. }) => moe.experts_per_token,
        _ => 0,
    }
}

fn advertised(host: Option<&str>, bound: SocketAddr) -> Result<String, WorkerError> {
    match host {
        Some(host) => Ok(host_and_port(host, bound.port())),
        None if bound.ip().is_unspecified() => {
            Err(WorkerError::NoAdvertisedHost { address: bound })
        }
        None => Ok(bound.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_that_nobody_can_let_in_does_not_start() {
        let check = |rank, routers: &[&str]| {
            let routers: Vec<String> = routers.iter().map(|r| r.to_string()).collect();
            GroupConfig::new("decode", rank, 2).check(&routers)
        };
        assert!(check(1, &["router:9001"]).is_ok());
        let error = check(2, &["router:9001"]).unwrap_err();
        assert!(matches!(error, WorkerError::Rank { rank: 2, ranks: 2 }));
        let error = check(0, &[]).unwrap_err();
        assert!(error.to_string().contains("--router"), "{error}");
    }

    #[test]
    fn other_ranks_are_told_an_address_that_they_can_reach() {
        let everywhere = "0.0.0.0:7".parse().unwrap();
        assert!(advertised(None, everywhere).is_err());
        assert_eq!(
            advertised(Some("decode-0"), everywhere).unwrap(),
            "decode-0:7"
        );
        assert_eq!(
            advertised(None, "127.0.0.1:7".parse().unwrap()).unwrap(),
            "127.0.0.1:7"
        );
    }
}
