//! The decode worker: owns a request from its first page to its last token.
//!
//! ```text
//! router ─ Generate ─▶ service ─▶ call ─▶ engine (own thread)
//!                                  │  pages reserved ◀──┘
//!                                  │  lease: a peer may write them
//!                                  ├─ Prefill ─▶ prefill worker ══ pages ══▶ (transfer)
//!                                  │  lease ended, first token ──▶ engine
//!                                  ▼
//!                          stream of tokens
//! ```
//!
//! [`call`] is a request's way from top to bottom, [`remote`] its detour over a prefill worker.
//! [`lease`] is the only place that decides when pages that a peer could write are pages again.

mod call;
mod config;
mod context;
mod failure;
mod lease;
mod metrics;
mod peers;
mod remote;
mod request;
mod service;
mod update;

use std::{future::Future, sync::Arc};

use tonic::service::Routes;
use tracing::Instrument as _;

use millrace_telemetry::Registry;
use millrace_transfer::{PageTarget as _, Target, TargetConfig, Transport, choose};
use millrace_worker::{
    Device, Role, Worker, WorkerError, identify, metrics::Metrics, notice::Observer, on_device,
    transfer_region,
};

pub use config::DecodeConfig;
pub use failure::{DOMAIN, PREFILL_FAILED};

/// Runs a decode worker until `shutdown` resolves and its requests are done. `observer` hears where
/// it listens, how loading goes and when it is ready.
pub async fn run(
    mut config: DecodeConfig,
    observer: Observer,
    shutdown: impl Future<Output = ()>,
) -> Result<(), WorkerError> {
    let span = identify(&mut config.worker, Role::Decode);
    let serve = async { on_device!(config.worker.device, serve(config, observer, shutdown)) };
    serve.instrument(span).await
}

/// Registers all that a decode worker registers in its life, with nothing behind it.
///
/// # Errors
/// `registry` has a worker's metrics already.
pub fn describe(registry: &Registry) -> Result<(), prometheus::Error> {
    let metrics = Metrics::new(registry.clone(), "", Role::Decode);
    metrics.describe()?;
    metrics::DecodeMetrics::new(&metrics).map(drop)
}

async fn serve<B: Device>(
    config: DecodeConfig,
    observer: Observer,
    shutdown: impl Future<Output = ()>,
) -> Result<(), WorkerError> {
    let mut worker = Worker::bind(config.worker.clone(), Role::Decode, observer).await?;
    let loaded = worker.load::<B>().await?;
    let region = transfer_region(loaded.pool())?;
    // Nothing of the pool itself is registered here: peers write into rings of their own.
    let nixl = choose(config.transport, &config.nixl, 0);
    let target = Arc::new(Target::bind(
        config.transfer,
        region,
        loaded
            .compatibility()
            .transfer_layout(&loaded.page_layout()),
        TargetConfig {
            // Port 0 stands for the bound one.
            advertise: worker.advertised(0).await?,
            shm: matches!(config.transport, Transport::Auto | Transport::Shm),
            nixl,
            ..TargetConfig::default()
        },
    )?);
    let counted = target.clone();
    worker
        .metrics()
        .watch_transfer(Box::new(move || counted.stats()))?;

    let vocab_size = loaded.vocab_size();
    let compatibility = loaded.compatibility().clone();
    let started = worker.start(loaded, move |pages, first_page| {
        lease::PagesAtPeer::grant(target.as_ref(), pages, first_page)
    })?;
    let context = context::Context {
        engine: started.engine.clone(),
        peers: peers::Peers::new(config.prefill_connect),
        prefill_timeout: config.prefill_timeout,
        compatibility,
        vocab_size,
        metrics: metrics::DecodeMetrics::new(worker.metrics())?,
        span: tracing::Span::current(),
    };
    let service = service::server(context);
    worker.serve(started, Routes::new(service), shutdown).await
}
