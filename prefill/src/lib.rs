//! The prefill worker: computes prompts, and pushes each finished page to the decode worker that
//! asked, while it computes the next.
//!
//! ```text
//! decode worker ─ Prefill ─▶ service ─▶ engine (own thread)
//!       ▲                       │ page finished ◀──┘
//!       ╚══════ page ═══════ delivery
//! ```
//!
//! The engine never waits for a wire: pages that are on their way are held by reference, and a
//! slow receiver only keeps them from being reused. Nothing here decides when the *receiver's*
//! pages are free; that is the decode worker's business alone.

mod config;
mod delivery;
mod failure;
mod metrics;
mod request;
mod service;

use std::{convert::Infallible, future::Future, sync::Arc};

use tonic::service::Routes;
use tracing::Instrument as _;

use millrace_telemetry::Registry;
use millrace_transfer::{Initiator, InitiatorConfig, PageInitiator as _, choose};
use millrace_worker::{
    Device, Role, Worker, WorkerError, identify, metrics::Metrics, notice::Observer, on_device,
    transfer_region,
};

pub use config::PrefillConfig;
pub use millrace_transfer::Transport;

/// Runs a prefill worker until `shutdown` resolves and its requests are done. `observer` hears
/// where it listens, how loading goes and when it is ready.
pub async fn run(
    mut config: PrefillConfig,
    observer: Observer,
    shutdown: impl Future<Output = ()>,
) -> Result<(), WorkerError> {
    let span = identify(&mut config.worker, Role::Prefill);
    let serve = async { on_device!(config.worker.device, serve(config, observer, shutdown)) };
    serve.instrument(span).await
}

/// Registers all that a prefill worker registers in its life, with nothing behind it.
///
/// # Errors
/// `registry` has a worker's metrics already.
pub fn describe(registry: &Registry) -> Result<(), prometheus::Error> {
    let metrics = Metrics::new(registry.clone(), "", Role::Prefill);
    metrics.describe()?;
    metrics::PrefillMetrics::new(&metrics).map(drop)
}

async fn serve<B: Device>(
    config: PrefillConfig,
    observer: Observer,
    shutdown: impl Future<Output = ()>,
) -> Result<(), WorkerError> {
    let mut worker = Worker::bind(config.worker, Role::Prefill, observer).await?;
    let loaded = worker.load::<B>().await?;
    let region = transfer_region(loaded.pool())?;
    let layout = loaded
        .compatibility()
        .transfer_layout(&loaded.page_layout());
    let nixl = choose(config.transport, &config.nixl, region.bytes() as u64);
    let initiator = Initiator::new(
        layout,
        InitiatorConfig {
            transport: config.transport,
            nixl,
            ..InitiatorConfig::default()
        },
    )?;
    initiator.register(&region)?;
    let initiator = Arc::new(initiator);
    let counted = initiator.clone();
    worker
        .metrics()
        .watch_transfer(Box::new(move || counted.stats()))?;

    let vocab_size = loaded.vocab_size();
    let compatibility = loaded.compatibility().clone();
    let started = worker.start(loaded, |_, _| -> Infallible {
        unreachable!("only requests of Kind::Decode have pages reserved for a peer")
    })?;
    let service = service::Service {
        engine: started.engine.clone(),
        outgoing: delivery::Outgoing { initiator, region },
        compatibility,
        vocab_size,
        metrics: metrics::PrefillMetrics::new(worker.metrics())?,
        span: tracing::Span::current(),
    };
    worker
        .serve(started, Routes::new(service.server()), shutdown)
        .await
}
