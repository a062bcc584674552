//! The router's process: loads the model, listens, wires the parts, and stops in order.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::serve::ListenerExt;
use millrace_telemetry::ProcessCollector;
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle};
use tonic::transport::server::TcpIncoming;

use crate::assemble::{Parts, assemble};
use crate::config::RouterConfig;
use crate::edges;
use crate::fleet::membership;
use crate::fleet::roster::Roster;
use crate::frontend::{Frontend, LoadError, ServedModel};
use crate::metrics::Metrics;

/// A gRPC client that vanished is noticed after about twice this, and its requests cancelled.
const CLIENT_KEEPALIVE: Duration = Duration::from_secs(20);

/// Where a router really listens, ports 0 replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BoundAddresses {
    pub http: SocketAddr,
    pub grpc: SocketAddr,
    pub worker: SocketAddr,
}

/// Why a router could not start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("the model cannot be served: {0}")]
    Model(#[from] LoadError),
    #[error("cannot listen on {addr} ({what}): {source}; is another process there?")]
    Bind {
        what: &'static str,
        addr: SocketAddr,
        source: std::io::Error,
    },
    #[error("metrics cannot be registered: {0}")]
    Metrics(#[from] prometheus::Error),
    #[error("gRPC reflection cannot be built: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    #[error("the HTTP server failed: {0}")]
    Http(std::io::Error),
    #[error("a gRPC server failed: {0}")]
    Grpc(#[from] tonic::transport::Error),
    #[error("a task of the router ended abnormally: {0}")]
    Task(#[from] JoinError),
}

/// Serves until `shutdown` resolves; then takes no new requests, lets running ones finish within
/// `config.drain_timeout`, and returns. `on_bound` is called once, when all three ports are open;
/// requests are answered from then on, though they wait for workers to attach.
///
/// # Errors
/// It could not start, or one of its servers failed.
pub async fn run(
    config: RouterConfig,
    on_bound: impl FnOnce(BoundAddresses),
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let http = bind("HTTP", config.http_addr).await?;
    let grpc = bind("gRPC", config.grpc_addr).await?;
    let worker = bind("workers", config.worker_addr).await?;
    let bound = BoundAddresses {
        http: local(&http, config.http_addr)?,
        grpc: local(&grpc, config.grpc_addr)?,
        worker: local(&worker, config.worker_addr)?,
    };

    let model = load(&config).await?;
    let registry = Registry::new();
    registry.register(Box::new(ProcessCollector::new()?))?;
    let Parts {
        frontend,
        roster,
        metrics,
    } = assemble(&config.limits, model, &registry)?;

    let (stop, stopping) = watch::channel(false);
    let mut servers = Servers {
        http: spawn_http(http, &frontend, registry, stopping.clone()),
        grpc: spawn_grpc(grpc, &frontend, stopping)?,
        membership: spawn_membership(worker, roster, metrics),
    };
    tracing::info!(http = %bound.http, grpc = %bound.grpc, workers = %bound.worker, "serving");
    on_bound(bound);

    tokio::select! {
        () = shutdown => {}
        failed = servers.any_ends() => return failed,
    }
    tracing::info!("stopping");
    frontend.close();
    stop.send_replace(true);
    servers.drain(config.drain_timeout).await
}

async fn load(config: &RouterConfig) -> Result<Arc<ServedModel>, ServeError> {
    let (dir, name) = (config.model_dir.clone(), config.served_model_name.clone());
    let max_model_len = config.max_model_len;
    let load = move || ServedModel::load(&dir, name.as_deref(), max_model_len);
    Ok(Arc::new(tokio::task::spawn_blocking(load).await??))
}

async fn bind(what: &'static str, addr: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(addr)
        .await
        .map_err(|source| ServeError::Bind { what, addr, source })
}

fn local(listener: &TcpListener, addr: SocketAddr) -> Result<SocketAddr, ServeError> {
    listener.local_addr().map_err(|source| ServeError::Bind {
        what: "its own address",
        addr,
        source,
    })
}

type Server = JoinHandle<Result<(), ServeError>>;

struct Servers {
    http: Server,
    grpc: Server,
    membership: Server,
}

impl Servers {
    /// Servers end only when told to, so the first that ends has failed.
    async fn any_ends(&mut self) -> Result<(), ServeError> {
        tokio::select! {
            ended = &mut self.http => ended?,
            ended = &mut self.grpc => ended?,
            ended = &mut self.membership => ended?,
        }
    }

    /// Waits for the public servers, then ends the workers' one: running requests need workers.
    async fn drain(mut self, timeout: Duration) -> Result<(), ServeError> {
        let both = async { tokio::join!(&mut self.http, &mut self.grpc) };
        match tokio::time::timeout(timeout, both).await {
            Ok((http, grpc)) => http?.and(grpc?),
            Err(_) => {
                tracing::warn!(?timeout, "requests were still running; they are cut off");
                Ok(())
            }
        }
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for server in [&self.http, &self.grpc, &self.membership] {
            server.abort();
        }
    }
}

fn spawn_http(
    listener: TcpListener,
    frontend: &Frontend,
    registry: Registry,
    stopping: watch::Receiver<bool>,
) -> Server {
    // Streamed tokens are small packets: none of them may wait for the next.
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY");
        }
    });
    let options = edges::http::HttpOptions::default();
    let router = edges::http::router(frontend.clone(), registry, options);
    tokio::spawn(async move {
        let served = axum::serve(listener, router).with_graceful_shutdown(told(stopping));
        served.await.map_err(ServeError::Http)
    })
}

fn spawn_grpc(
    listener: TcpListener,
    frontend: &Frontend,
    stopping: watch::Receiver<bool>,
) -> Result<Server, ServeError> {
    let routes = edges::grpc::routes(frontend.clone(), edges::grpc::GrpcOptions::default())?;
    Ok(tokio::spawn(async move {
        tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(CLIENT_KEEPALIVE))
            .http2_keepalive_timeout(Some(CLIENT_KEEPALIVE))
            .add_routes(routes)
            .serve_with_incoming_shutdown(incoming(listener), told(stopping))
            .await?;
        Ok(())
    }))
}

fn spawn_membership(listener: TcpListener, roster: Arc<Roster>, metrics: Arc<Metrics>) -> Server {
    tokio::spawn(async move {
        membership::server()
            .add_service(membership::service(roster, metrics))
            .serve_with_incoming(incoming(listener))
            .await?;
        Ok(())
    })
}

fn incoming(listener: TcpListener) -> TcpIncoming {
    TcpIncoming::from(listener).with_nodelay(Some(true))
}

/// Resolves when the router is told to stop.
async fn told(mut stopping: watch::Receiver<bool>) {
    // An error means that the sender is gone, and the router with it.
    let _ = stopping.wait_for(|stop| *stop).await;
}
