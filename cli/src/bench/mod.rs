//! `millrace bench`: what clients of a deployment see, how long a worker's steps take, and what one rank of a
//! large group does alone.

mod load;
mod profile;
#[cfg(feature = "cuda")]
mod rank;
mod report;
mod span;

use clap::{Args, Subcommand};

use crate::errors::Outcome;
use load::LoadArgs;

#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BenchArgs {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    load: LoadArgs,
}

#[derive(Debug, Clone, Subcommand)]
enum Command {
    /// Measure how long a worker's steps take, for a PoolAutoscaler and for `millrace sim`
    Profile(Box<profile::ProfileArgs>),
    /// Measure one rank's share of a large model on one GPU, op by op
    #[cfg(feature = "cuda")]
    Rank(rank::RankArgs),
}

pub fn main(args: BenchArgs) -> anyhow::Result<Outcome> {
    match args.command {
        None => load::main(args.load),
        Some(Command::Profile(args)) => profile::main(*args),
        #[cfg(feature = "cuda")]
        Some(Command::Rank(args)) => rank::main(args),
    }
}
