//! The commands of the processes themselves: from flags to a crate's configuration, and `run`.

use std::{net::SocketAddr, time::Duration};

use clap::Args;
use millrace_decode::DecodeConfig;
use millrace_engine::EngineConfig;
use millrace_kernels::KvDtype;
use millrace_prefill::PrefillConfig;
use millrace_router::config::{AdmissionLimits, Limits, RouterConfig};
use millrace_telemetry::logs::{self, LogFormat};
use millrace_telemetry::traces::Traces;
use millrace_transfer::{NixlConfig, Transport};
use millrace_worker::{
    Role, WorkerConfig,
    attach::Resolver,
    notice::{Notice, Observer},
};

use crate::{
    access::AccessArgs,
    args::{EngineArgs, KvDtypeArg, ModelArgs, TransferArg},
    errors::Outcome,
    groups::{EpochArgs, GroupArgs},
    process,
};

/// What every role takes.
#[derive(Debug, Clone, Args)]
pub struct ProcessArgs {
    /// `human` or `json`; RUST_LOG chooses what is logged
    #[arg(
        long,
        value_name = "FORMAT",
        default_value_t,
        env = "MILLRACE_LOG_FORMAT"
    )]
    pub log_format: LogFormat,
    /// How long running requests may take to finish once it is told to stop
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 30,
        env = "MILLRACE_DRAIN_SECONDS"
    )]
    pub drain_seconds: u64,
}

#[derive(Debug, Clone, Args)]
pub struct RouterArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Where the OpenAI-compatible HTTP API, /metrics, /health and /ready listen
    #[arg(
        long,
        value_name = "ADDR",
        default_value = "127.0.0.1:8000",
        env = "MILLRACE_HTTP"
    )]
    pub http: SocketAddr,
    /// Where the gRPC APIs listen
    #[arg(
        long,
        value_name = "ADDR",
        default_value = "127.0.0.1:9000",
        env = "MILLRACE_GRPC"
    )]
    pub grpc: SocketAddr,
    /// Where workers attach; not for clients, there is no authentication
    #[arg(
        long,
        value_name = "ADDR",
        default_value = "127.0.0.1:9001",
        env = "MILLRACE_WORKERS"
    )]
    pub workers: SocketAddr,
    /// Most sequences with the workers at once [default: 1024]
    #[arg(long, value_name = "N", env = "MILLRACE_MAX_SEQUENCES")]
    pub max_sequences: Option<u32>,
    /// Most sequences that wait for a turn; more are answered 429 [default: 2048]
    #[arg(long, value_name = "N", env = "MILLRACE_MAX_WAITING")]
    pub max_waiting: Option<u32>,
    /// Given to requests that bring no deadline [default: none]
    #[arg(long, value_name = "SECONDS", env = "MILLRACE_REQUEST_TIMEOUT")]
    pub request_timeout: Option<u64>,
    #[command(flatten)]
    pub access: AccessArgs,
    #[command(flatten)]
    pub epochs: EpochArgs,
    #[command(flatten)]
    pub process: ProcessArgs,
}

#[derive(Debug, Clone, Args)]
pub struct WorkerArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Where its gRPC service listens (port 0: any free one)
    #[arg(
        long,
        value_name = "ADDR",
        default_value = "127.0.0.1:0",
        env = "MILLRACE_LISTEN"
    )]
    pub listen: SocketAddr,
    /// Where /metrics, /health and /ready listen (port 0: any free one)
    #[arg(
        long,
        value_name = "ADDR",
        default_value = "127.0.0.1:0",
        env = "MILLRACE_METRICS"
    )]
    pub metrics: SocketAddr,
    /// The host under which routers and workers reach it [default: the address of --listen]
    #[arg(long, value_name = "HOST", env = "MILLRACE_ADVERTISE_HOST")]
    pub advertise_host: Option<String>,
    /// A router's --workers address, or a name of several routers; may be given several times
    #[arg(
        long = "router",
        value_name = "HOST:PORT",
        env = "MILLRACE_ROUTER",
        value_delimiter = ','
    )]
    pub routers: Vec<String>,
    /// Unique among all workers [default: the role and a random number]
    #[arg(long, value_name = "ID", env = "MILLRACE_WORKER_ID")]
    pub worker_id: Option<String>,
    /// Of the deployment: routers pair only workers of one revision [default: none; its model must
    /// then be the router's]
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true,
        env = "MILLRACE_REVISION"
    )]
    pub revision: String,
    #[command(flatten)]
    pub group: GroupArgs,
    #[command(flatten)]
    pub process: ProcessArgs,
    /// Print a line on standard output for each step of the start, for `millrace up`
    #[arg(long, hide = true)]
    pub notices: bool,
}

#[derive(Debug, Clone, Args)]
pub struct DecodeArgs {
    #[command(flatten)]
    pub worker: WorkerArgs,
    /// Where prefill workers connect to write pages (port 0: any free one)
    #[arg(
        long,
        value_name = "ADDR",
        default_value = "127.0.0.1:0",
        env = "MILLRACE_TRANSFER_LISTEN"
    )]
    pub transfer_listen: SocketAddr,
    /// Its revision has no prefill workers, so routers need not wait for any before they send
    /// requests here while another revision has both
    #[arg(long, env = "MILLRACE_AGGREGATED")]
    pub aggregated: bool,
}

pub fn router(args: RouterArgs) -> anyhow::Result<Outcome> {
    logs::init(args.process.log_format)?;
    let config = args.config()?;
    process::runtime()?.block_on(async {
        let _traces = Traces::start("millrace-router", &process::name())?;
        millrace_router::run(config, |_| {}, process::stopped()?).await?;
        Ok(Outcome::Done)
    })
}

pub fn prefill(args: WorkerArgs) -> anyhow::Result<Outcome> {
    logs::init(args.process.log_format)?;
    let mut config = PrefillConfig {
        worker: args.config()?,
        transport: transport(&args.engine),
        nixl: nixl(&args.engine),
    };
    let id = config.worker.id(Role::Prefill).to_owned();
    process::run_worker(
        "millrace-prefill",
        &id,
        args.observer(),
        |observer, stopped| millrace_prefill::run(config, observer, stopped),
    )
}

pub fn decode(args: DecodeArgs) -> anyhow::Result<Outcome> {
    logs::init(args.worker.process.log_format)?;
    let mut config = DecodeConfig {
        worker: WorkerConfig {
            aggregated: args.aggregated,
            ..args.worker.config()?
        },
        transfer: args.transfer_listen,
        transport: transport(&args.worker.engine),
        nixl: nixl(&args.worker.engine),
        ..DecodeConfig::default()
    };
    let id = config.worker.id(Role::Decode).to_owned();
    process::run_worker(
        "millrace-decode",
        &id,
        args.worker.observer(),
        |observer, stopped| millrace_decode::run(config, observer, stopped),
    )
}

impl RouterArgs {
    fn config(&self) -> anyhow::Result<RouterConfig> {
        let (model_dir, names) = self.model.resolve()?;
        let admission = AdmissionLimits::default();
        let limits = Limits {
            admission: AdmissionLimits {
                max_running: self.max_sequences.unwrap_or(admission.max_running),
                max_waiting: self.max_waiting.unwrap_or(admission.max_waiting),
                ..admission
            },
            request_timeout: self.request_timeout.map(Duration::from_secs),
            ..Limits::default()
        };
        Ok(RouterConfig {
            http_addr: self.http,
            grpc_addr: self.grpc,
            worker_addr: self.workers,
            model_dir,
            served_model_names: names,
            max_model_len: self.model.max_model_len.map(u32::try_from).transpose()?,
            limits,
            experts: self.epochs.config()?,
            drain_timeout: Duration::from_secs(self.process.drain_seconds),
            access: self.access.config(),
        })
    }
}

impl WorkerArgs {
    fn config(&self) -> anyhow::Result<WorkerConfig> {
        let group = self.group.config()?;
        let (model_dir, names) = self.model.resolve()?;
        Ok(WorkerConfig {
            model_dir,
            // A worker says one name in its logs and metrics; routers know them all.
            served_model_name: names.into_iter().next(),
            listen: self.listen,
            http: self.metrics,
            advertise_host: self.advertise_host.clone(),
            routers: self.routers.clone(),
            resolver: Resolver::default(),
            worker_id: self.worker_id.clone(),
            revision: self.revision.clone(),
            aggregated: false,
            engine: engine_config(&self.engine, self.model.max_model_len),
            threads: self.engine.threads,
            device: self.engine.device.unwrap_or_default(),
            drain: Duration::from_secs(self.process.drain_seconds),
            group,
        })
    }

    fn observer(&self) -> Observer {
        let print = self.notices;
        std::sync::Arc::new(move |notice: Notice| {
            if print {
                use std::io::Write;
                // The supervisor is gone: nobody to tell, and this process ends with it.
                let _ = writeln!(std::io::stdout().lock(), "{notice}");
            }
        })
    }
}

pub fn engine_config(args: &EngineArgs, max_model_len: Option<usize>) -> EngineConfig {
    let default = EngineConfig::default();
    EngineConfig {
        max_batch_tokens: args.max_batch_tokens.unwrap_or(default.max_batch_tokens),
        max_running: args.max_running.unwrap_or(default.max_running),
        max_model_len,
        kv_pages: args.kv_pages.unwrap_or(default.kv_pages),
        kv_dtype: match args.kv_dtype {
            Some(KvDtypeArg::F32) => KvDtype::F32,
            Some(KvDtypeArg::Bf16) => KvDtype::Bf16,
            Some(KvDtypeArg::Fp8) => KvDtype::Fp8,
            None => default.kv_dtype,
        },
        mtp: default.mtp && !args.no_mtp,
        prefix_cache: default.prefix_cache && !args.no_prefix_cache,
        local_prefill_tokens: args
            .local_prefill_tokens
            .unwrap_or(default.local_prefill_tokens),
    }
}

fn transport(args: &EngineArgs) -> Transport {
    match args.transfer {
        None | Some(TransferArg::Auto) => Transport::Auto,
        Some(TransferArg::Nixl) => Transport::Nixl,
        Some(TransferArg::Shm) => Transport::Shm,
        Some(TransferArg::Tcp) => Transport::Tcp,
    }
}

fn nixl(args: &EngineArgs) -> NixlConfig {
    NixlConfig {
        devices: args.transfer_devices.clone(),
        ..NixlConfig::default()
    }
}
