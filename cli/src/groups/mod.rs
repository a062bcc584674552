//! Flags about expert-parallel groups: their ranks, their replicas, and who decides on epochs.

mod epochs;
mod units;

use std::{ffi::OsString, net::SocketAddr};

use anyhow::bail;
use clap::{Args, ValueEnum};
use millrace_engine::ExpertPath;
use millrace_model::config::{Family, ModelConfig};
use millrace_worker::GroupConfig;

pub use self::epochs::EpochArgs;
use crate::args::{Flags, positive};

/// What is the same on all ranks of a group.
#[derive(Debug, Clone, Default, Args)]
pub struct ReplicaArgs {
    /// Replicas of experts in each MoE layer of a group, besides one of every expert; `K` divided by the ranks is rounded up
    #[arg(long, value_name = "K", env = "MILLRACE_REDUNDANT_EXPERTS")]
    pub redundant_experts: Option<usize>,
    /// Most bytes of weights a second that a rank stages for a new placement; K, M and G are understood [default: 256M]
    #[arg(long, value_name = "BYTES/S", env = "MILLRACE_STAGE_BANDWIDTH", value_parser = units::bytes)]
    pub stage_bandwidth: Option<u64>,
    /// How rows go to the ranks of their experts: from GPU to GPU where all ranks of a group reach each other, each on
    /// one of its own (auto); by way of the host (host); or from GPU to GPU also where ranks share one, which is slow
    /// (devices) [default: auto]
    #[arg(long, value_name = "HOW", env = "MILLRACE_EXPERT_EXCHANGE")]
    pub expert_exchange: Option<ExpertExchange>,
}

/// How experts' rows go from rank to rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExpertExchange {
    Auto,
    Host,
    Devices,
}

impl From<ExpertExchange> for ExpertPath {
    fn from(how: ExpertExchange) -> ExpertPath {
        match how {
            ExpertExchange::Auto => ExpertPath::Auto,
            ExpertExchange::Host => ExpertPath::Host,
            ExpertExchange::Devices => ExpertPath::Devices,
        }
    }
}

impl ReplicaArgs {
    pub fn to_flags(&self) -> Vec<OsString> {
        let mut flags = Flags::default();
        flags.number("--redundant-experts", self.redundant_experts);
        let bandwidth = self.stage_bandwidth.map(|bytes| bytes.to_string());
        flags.value("--stage-bandwidth", bandwidth.as_deref());
        let how = self.expert_exchange.map(ExpertPath::from);
        flags.value("--expert-exchange", how.map(ExpertPath::as_str));
        flags.0
    }
}

/// Which rank of which group a worker is.
#[derive(Debug, Clone, Args)]
pub struct GroupArgs {
    /// The expert-parallel group that this worker is a rank of [default: it holds every expert itself]
    #[arg(
        long,
        value_name = "NAME",
        env = "MILLRACE_GROUP",
        requires = "rank",
        requires = "ranks"
    )]
    pub group: Option<String>,
    /// Which rank of the group, from 0
    #[arg(long, value_name = "N", env = "MILLRACE_RANK", requires = "group")]
    pub rank: Option<usize>,
    /// How many ranks the group has
    #[arg(long, value_name = "R", env = "MILLRACE_RANKS", requires = "group", value_parser = positive)]
    pub ranks: Option<usize>,
    /// Where other ranks connect to exchange rows (port 0: any free one)
    #[arg(
        long,
        value_name = "ADDR",
        default_value = "127.0.0.1:0",
        env = "MILLRACE_GROUP_LISTEN"
    )]
    pub group_listen: SocketAddr,
    #[command(flatten)]
    pub replicas: ReplicaArgs,
}

impl GroupArgs {
    /// `None`: the worker is on its own, and what is said of replicas does not concern it.
    ///
    /// # Errors
    /// The rank is none of the group's.
    pub fn config(&self) -> anyhow::Result<Option<GroupConfig>> {
        let (Some(group), Some(rank), Some(ranks)) = (&self.group, self.rank, self.ranks) else {
            return Ok(None);
        };
        if group.is_empty() {
            bail!("--group is empty; pass a name that all ranks of the group share");
        }
        if rank >= ranks {
            bail!(
                "--rank {rank}: a group of --ranks {ranks} has ranks 0 to {}",
                ranks - 1
            );
        }
        let default = GroupConfig::new(group, rank, ranks);
        Ok(Some(GroupConfig {
            redundant_experts: self.replicas.redundant_experts.unwrap_or(0),
            listen: self.group_listen,
            stage_bandwidth: self
                .replicas
                .stage_bandwidth
                .unwrap_or(default.stage_bandwidth),
            expert_path: self
                .replicas
                .expert_exchange
                .map_or(default.expert_path, Into::into),
            ..default
        }))
    }
}

/// Whether `ranks` ranks (the most of any group) can share the experts of a model, with `redundant`
/// replicas besides. Told before anything is started, so that it is one line and not one a rank.
///
/// # Errors
/// What does not go together, by flag.
pub fn check(
    flag: &str,
    ranks: usize,
    redundant: usize,
    model: &ModelConfig,
) -> anyhow::Result<()> {
    if ranks == 1 {
        return Ok(());
    }
    let experts = match &model.family {
        Family::DeepSeek(model) => model.moe.as_ref().map(|moe| moe.num_experts),
        Family::Dense(_) => None,
    };
    let Some(experts) = experts else {
        bail!(
            "{flag} {ranks}: {} has no routed experts that ranks could share; leave it out and pass more workers instead",
            model.common.architecture
        );
    };
    // One of each on every rank is all that could be of use.
    if redundant > experts * (ranks - 1) {
        bail!(
            "--redundant-experts {redundant}: with {experts} experts on every one of {ranks} ranks there are {} replicas; pass no more than that",
            experts * (ranks - 1)
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(rank: usize, ranks: usize) -> GroupArgs {
        GroupArgs {
            group: Some("g".into()),
            rank: Some(rank),
            ranks: Some(ranks),
            group_listen: "127.0.0.1:0".parse().unwrap(),
            replicas: ReplicaArgs::default(),
        }
    }

    #[test]
    fn a_rank_is_one_of_its_groups() {
        let config = group(1, 2).config().unwrap().unwrap();
        assert_eq!((config.rank, config.ranks), (1, 2));
        assert_eq!(config.redundant_experts, 0);
        let error = group(2, 2).config().unwrap_err().to_string();
        assert_eq!(error, "--rank 2: a group of --ranks 2 has ranks 0 to 1");
    }

    #[test]
    fn a_worker_on_its_own_may_hear_of_replicas() {
        // From the environment, as a prefill worker beside a decode group does.
        let mut alone = GroupArgs {
            group: None,
            ..group(0, 1)
        };
        alone.replicas.redundant_experts = Some(3);
        assert_eq!(alone.config().unwrap(), None);
    }
}
