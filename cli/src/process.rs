//! A role's process: its runtime, and when it is told to stop.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use millrace_telemetry::traces::Traces;
use millrace_worker::{
    WorkerError,
    notice::{Notice, Observer},
};
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use crate::errors::Outcome;

/// Resolves when the process is told to stop.
pub type Stopped = Pin<Box<dyn Future<Output = ()> + Send>>;

pub fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
}

/// Resolves at Ctrl-C or SIGTERM. The handlers are in place when this returns, so that a signal during
/// the start is not missed. Needs a runtime.
pub fn stopped() -> std::io::Result<Stopped> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(Box::pin(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    }))
}

/// Tells this process from others of its role: its host's name, where the environment has it, and its number.
pub fn name() -> String {
    let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "localhost".to_owned());
    format!("{host}:{}", std::process::id())
}

/// Runs a worker. Once it serves, a signal lets it drain; before that, while weights load, a signal
/// ends it at once, since nobody waits for it yet.
pub fn run_worker<F>(
    service: &'static str,
    worker_id: &str,
    tell: Observer,
    run: impl FnOnce(Observer, Stopped) -> F,
) -> anyhow::Result<Outcome>
where
    F: Future<Output = Result<(), WorkerError>>,
{
    let loaded = Arc::new(AtomicBool::new(false));
    let observer: Observer = {
        let loaded = loaded.clone();
        Arc::new(move |notice| {
            loaded.fetch_or(notice == Notice::Loaded, Ordering::Relaxed);
            tell(notice);
        })
    };
    let runtime = runtime()?;
    let result = runtime.block_on(async {
        let _traces = Traces::start(service, worker_id)?;
        let stop = watch::Sender::new(false);
        let (serving, loading) = (told(stop.subscribe()), told(stop.subscribe()));
        let signalled = stopped()?;
        tokio::spawn(async move {
            signalled.await;
            stop.send_replace(true);
            stop.closed().await;
        });
        tokio::select! {
            result = run(observer, Box::pin(serving)) => Ok(result?),
            () = async {
                loading.await;
                if loaded.load(Ordering::Relaxed) {
                    std::future::pending().await
                }
            } => Ok(()),
        }
    });
    // A load that was given up has a thread that would be waited for.
    runtime.shutdown_background();
    result.map(|()| Outcome::Done)
}

async fn told(mut stop: watch::Receiver<bool>) {
    // The sender lives until the last receiver is gone.
    let _ = stop.wait_for(|stop| *stop).await;
}
