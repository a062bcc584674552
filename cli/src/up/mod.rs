//! `millrace up`: a whole deployment on this machine, as child processes of this same binary.
//!
//! ```text
//! plan -> supervisor (one child::keep a process) -> events -> screen
//!            start until every worker is admitted and /ready says so | run | shut down
//! ```
//! A laptop runs what a pod runs: the children are the same subcommands, joined over loopback.

mod backoff;
mod banner;
mod child;
mod plan;
mod ports;
mod ready;
mod screen;
mod shutdown;
mod signals;
mod supervisor;

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use anyhow::{Context, bail};
use clap::{Args, builder::FalseyValueParser};
use millrace_model::config::ModelConfig;
use millrace_worker::notice::Notice;

use self::{
    child::{Event, Order},
    screen::Screen,
    signals::Signals,
    supervisor::{Deployment, Events},
};
use crate::{
    args::{EngineArgs, ModelArgs, positive},
    errors::Outcome,
    groups::{self, EpochArgs, ReplicaArgs},
};

/// What the children log unless more is asked for.
const QUIET: &str = "warn";

#[derive(Debug, Clone, Args)]
pub struct UpArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Prefill workers
    #[arg(long, value_name = "N", default_value_t = 1, env = "MILLRACE_PREFILL")]
    pub prefill: usize,
    /// Decode workers
    #[arg(long, value_name = "M", default_value_t = 1, env = "MILLRACE_DECODE")]
    pub decode: usize,
    /// Ranks of each decode worker: processes that share the model's experts between them
    #[arg(long, value_name = "R", default_value_t = 1, env = "MILLRACE_DECODE_RANKS", value_parser = positive)]
    pub decode_ranks: usize,
    /// Ranks of each prefill worker
    #[arg(long, value_name = "R", default_value_t = 1, env = "MILLRACE_PREFILL_RANKS", value_parser = positive)]
    pub prefill_ranks: usize,
    #[command(flatten)]
    pub replicas: ReplicaArgs,
    #[command(flatten)]
    pub epochs: EpochArgs,
    /// No prefill workers: decode workers compute prompts themselves
    #[arg(long, env = "MILLRACE_AGGREGATED", value_parser = FalseyValueParser::new())]
    pub aggregated: bool,
    /// Where the OpenAI-compatible HTTP API listens (port 0: any free one)
    #[arg(
        long,
        value_name = "ADDR",
        default_value = "127.0.0.1:8000",
        env = "MILLRACE_HTTP"
    )]
    pub http: SocketAddr,
    /// Where the gRPC APIs listen (port 0: any free one)
    #[arg(
        long,
        value_name = "ADDR",
        default_value = "127.0.0.1:9000",
        env = "MILLRACE_GRPC"
    )]
    pub grpc: SocketAddr,
    #[command(flatten)]
    pub engine: EngineArgs,
    /// How long running requests may take to finish once it is told to stop
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 30,
        env = "MILLRACE_DRAIN_SECONDS"
    )]
    pub drain_seconds: u64,
    /// Show what the processes log (default: warnings only)
    #[arg(long, short)]
    pub verbose: bool,
    /// Which of their logs to show, e.g. `info,millrace_decode=debug`
    #[arg(long, value_name = "FILTER", env = "RUST_LOG")]
    pub log: Option<String>,
}

impl UpArgs {
    fn prefill_workers(&self) -> usize {
        if self.aggregated { 0 } else { self.prefill }
    }

    /// Processes besides the router.
    fn workers(&self) -> usize {
        self.prefill_workers() * self.prefill_ranks + self.decode * self.decode_ranks
    }

    /// # Errors
    /// Flags that do not go together, or not with this model.
    fn check(&self, model: &ModelConfig) -> anyhow::Result<()> {
        let redundant = self.replicas.redundant_experts.unwrap_or(0);
        if redundant > 0 && self.decode_ranks == 1 && self.prefill_ranks == 1 {
            bail!(
                "--redundant-experts {redundant}: a worker of one rank has no use for replicas; pass --decode-ranks or --prefill-ranks of at least 2"
            );
        }
        groups::check("--prefill-ranks", self.prefill_ranks, redundant, model)?;
        groups::check("--decode-ranks", self.decode_ranks, redundant, model)
    }

    fn log_filter(&self) -> &str {
        match &self.log {
            Some(filter) if !filter.trim().is_empty() => filter,
            _ if self.verbose => "info",
            _ => QUIET,
        }
    }
}

pub fn main(args: UpArgs) -> anyhow::Result<Outcome> {
    // One thread: children are bound to the life of the thread that starts them (child::spawn).
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(up(args))
}

async fn up(args: UpArgs) -> anyhow::Result<Outcome> {
    if args.decode == 0 {
        bail!("--decode 0: nothing could generate tokens; pass at least 1");
    }
    let (model, names) = args.model.resolve()?;
    // Headers only: a bad folder is told in one line, not by every worker.
    millrace_model::checkpoint::Checkpoint::open(&model)
        .with_context(|| format!("--model {}", model.display()))?;
    args.check(&ModelConfig::from_dir(&model)?)?;
    let mut claims = ports::Claims::default();
    let http = claims.claim("--http", args.http)?;
    let grpc = claims.claim("--grpc", args.grpc)?;
    // Not for clients: only the workers of this deployment are told of it.
    let workers = claims.any_free()?;
    // Fixed for the deployment's life, so that a restarted worker is scraped at the same address.
    let mut metrics = vec![ports::reachable(http)];
    for _ in 0..args.workers() {
        metrics.push(claims.any_free()?);
    }
    drop(claims);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let log_filter = args.log_filter();
    let resolved = plan::Resolved {
        model: &model,
        names: &names,
        http,
        grpc,
        workers,
        metrics: &metrics,
        log_filter,
        cores,
    };

    let mut signals = Signals::new()?;
    let (deployment, mut events) = Deployment::start(plan::plan(&args, &resolved));
    let mut screen = Screen::new(deployment.names(), log_filter != QUIET);
    let started = tokio::select! {
        started = start(&deployment, &mut events, &mut screen, http) => started,
        () = signals.next() => return Ok(stop(&deployment, &mut events, &mut screen, &mut signals, &args).await),
    };
    if let Err(error) = started {
        deployment.order(deployment.all(), Order::Kill);
        deployment.ended(deployment.all()).await;
        return Err(error);
    }
    banner::print(&args, &names[0], http, grpc, deployment.names(), &metrics);
    loop {
        tokio::select! {
            (child, event) = events.next() => screen.running(child, event),
            () = signals.next() => break,
        }
    }
    screen.say("stopping (again to stop at once)");
    Ok(stop(&deployment, &mut events, &mut screen, &mut signals, &args).await)
}

/// Until every worker has been admitted by the router and the router's /ready agrees.
///
/// # Errors
/// A child ended: at the start that is a mistake in the flags or the model, not a crash to recover from.
async fn start(
    deployment: &Deployment,
    events: &mut Events,
    screen: &mut Screen,
    http: SocketAddr,
) -> anyhow::Result<()> {
    let mut waiting_for: BTreeSet<usize> = deployment.workers().collect();
    let routable = ready::wait(http);
    tokio::pin!(routable);
    let mut ready = false;
    while !ready || !waiting_for.is_empty() {
        tokio::select! {
            (child, event) = events.next() => {
                screen.starting(child, &event);
                match event {
                    Event::Exited(exit) => bail!("{}", screen.failure(child, &exit)),
                    Event::Notice(Notice::Ready) => drop(waiting_for.remove(&child)),
                    _ => {}
                }
            }
            () = &mut routable, if !ready => ready = true,
        }
    }
    screen.loaded();
    Ok(())
}

async fn stop(
    deployment: &Deployment,
    events: &mut Events,
    screen: &mut Screen,
    signals: &mut Signals,
    args: &UpArgs,
) -> Outcome {
    let drain = Duration::from_secs(args.drain_seconds);
    shutdown::shut_down(deployment, events, screen, signals, drain).await
}
