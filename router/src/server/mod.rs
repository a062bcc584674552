//! The router's process: loads the model, listens, wires the parts, and stops in order.

mod secrets;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use millrace_telemetry::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle};
use tonic::transport::server::TcpIncoming;

use crate::assemble::{AssembleError, Parts, assemble};
use crate::config::RouterConfig;
use crate::edges;
use crate::edges::auth::{Guard, KeyError};
use crate::edges::listen::{self, Incoming, TlsError};
use crate::experts::Groups;
use crate::fleet::roster::Roster;
use crate::frontend::{Frontend, LoadError, ServedModel};
use crate::membership;
use crate::metrics::{Edge, Metrics};
use crate::overview::Overview;
use secrets::Secrets;

/// A gRPC client that vanished is noticed after about twice this, and its requests cancelled.
const CLIENT_KEEPALIVE: Duration = Duration::from_secs(20);

/// For the head of an HTTP/1 request, and so also for the pause between two: longer than the 60 s after
/// which common load balancers close what is idle. If the server closed first, a request could be on
/// its way already.
const HEADER_TIMEOUT: Duration = Duration::from_secs(75);

/// Where a router really listens, ports 0 replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BoundAddresses {
    pub http: SocketAddr,
    pub grpc: SocketAddr,
    pub worker: SocketAddr,
    pub probe: Option<SocketAddr>,
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
    #[error(transparent)]
    Assemble(#[from] AssembleError),
    #[error("gRPC reflection cannot be built: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    #[error("clients cannot be served over TLS: {0}")]
    Tls(#[from] TlsError),
    #[error("the API keys cannot be used: {0}")]
    Keys(#[from] KeyError),
    #[error("a gRPC server failed: {0}")]
    Grpc(#[from] tonic::transport::Error),
    #[error("a task of the router ended abnormally: {0}")]
    Task(#[from] JoinError),
}

/// Serves until `shutdown` resolves; then takes no new requests, lets running ones finish within
/// `config.drain_timeout`, and returns. `on_bound` is called once, when all ports are open;
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
    let probe = match config.access.probe_addr {
        None => None,
        Some(addr) => Some((addr, bind("probes", addr).await?)),
    };
    let bound = BoundAddresses {
        http: local(&http, config.http_addr)?,
        grpc: local(&grpc, config.grpc_addr)?,
        worker: local(&worker, config.worker_addr)?,
        probe: match &probe {
            None => None,
            Some((addr, listener)) => Some(local(listener, *addr)?),
        },
    };

    let secrets = Secrets::open(config.access.clone()).await?;
    let model = load(&config).await?;
    let registry = Registry::of_process()?;
    let Parts {
        frontend,
        roster,
        groups,
        metrics,
        overview,
    } = assemble(&config.limits, &config.experts, model, &registry)?;

    let (stop, stopping) = watch::channel(false);
    let (guard, tls, _followers) = secrets.follow(config.access.reload_interval, &metrics);
    let tls = |protocols: &[&str]| tls.as_ref().map(|it| it.server(protocols)).transpose();
    let incoming = |listener, tls, edge| {
        Incoming::new(listener, tls, listen::HANDSHAKE, edge, Arc::clone(&metrics))
    };
    let http = incoming(http, tls(&["h2", "http/1.1"])?, Edge::Http);
    let grpc = incoming(grpc, tls(&["h2"])?, Edge::Grpc);
    let mut servers = Servers {
        probe: probe.map(|(_, listener)| {
            let routes = edges::http::probes(
                frontend.clone(),
                Arc::clone(&groups),
                Arc::clone(&overview),
                registry.clone(),
            );
            // Answers until the router has ended: kubelets also ask while it drains.
            let (never, running) = watch::channel(false);
            let served = edges::http::serve(
                incoming(listener, None, Edge::Http),
                routes,
                HEADER_TIMEOUT,
                running,
            );
            tokio::spawn(async move {
                served.await;
                drop(never);
            })
        }),
        http: spawn_http(
            http,
            &frontend,
            Arc::clone(&groups),
            Arc::clone(&overview),
            registry,
            guard.clone(),
            stopping.clone(),
        ),
        grpc: spawn_grpc(grpc, &frontend, guard, stopping)?,
        membership: spawn_membership(worker, roster, Arc::clone(&groups), metrics, overview),
    };
    tracing::info!(
        http = %bound.http, grpc = %bound.grpc, workers = %bound.worker,
        probe = bound.probe.map(tracing::field::display),
        tls = config.access.tls.is_some(), api_keys = config.access.api_keys.is_some(), "serving"
    );
    on_bound(bound);

    tokio::select! {
        () = shutdown => {}
        failed = servers.any_ends() => return failed,
    }
    tracing::info!("stopping");
    frontend.close();
    stop.send_replace(true);
    let drained = servers.drain(config.drain_timeout).await;
    groups.close().await;
    drained
}

async fn load(config: &RouterConfig) -> Result<Arc<ServedModel>, ServeError> {
    let (dir, names) = (config.model_dir.clone(), config.served_model_names.clone());
    let max_model_len = config.max_model_len;
    let load = move || ServedModel::load(&dir, &names, max_model_len);
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
    probe: Option<JoinHandle<()>>,
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

    /// Waits for the public servers, then ends the others: running requests need workers.
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
        if let Some(probe) = &self.probe {
            probe.abort();
        }
    }
}

fn spawn_http(
    incoming: Incoming,
    frontend: &Frontend,
    groups: Arc<Groups>,
    overview: Arc<Overview>,
    registry: Registry,
    guard: Option<Guard>,
    stopping: watch::Receiver<bool>,
) -> Server {
    let options = edges::http::HttpOptions {
        guard,
        ..Default::default()
    };
    let router = edges::http::router(frontend.clone(), groups, overview, registry, options);
    tokio::spawn(async move {
        edges::http::serve(incoming, router, HEADER_TIMEOUT, stopping).await;
        Ok(())
    })
}

fn spawn_grpc(
    incoming: Incoming,
    frontend: &Frontend,
    guard: Option<Guard>,
    stopping: watch::Receiver<bool>,
) -> Result<Server, ServeError> {
    let options = edges::grpc::GrpcOptions {
        guard,
        ..Default::default()
    };
    let routes = edges::grpc::routes(frontend.clone(), options)?;
    Ok(tokio::spawn(async move {
        tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(CLIENT_KEEPALIVE))
            .http2_keepalive_timeout(Some(CLIENT_KEEPALIVE))
            .add_routes(routes)
            .serve_with_incoming_shutdown(incoming.into_stream(), told(stopping))
            .await?;
        Ok(())
    }))
}

fn spawn_membership(
    listener: TcpListener,
    roster: Arc<Roster>,
    groups: Arc<Groups>,
    metrics: Arc<Metrics>,
    overview: Arc<Overview>,
) -> Server {
    tokio::spawn(async move {
        let watch = crate::watch::service(overview);
        membership::server()
            .add_service(membership::service(roster, groups, metrics))
            .add_service(watch)
            .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)))
            .await?;
        Ok(())
    })
}

/// Resolves when the router is told to stop.
async fn told(mut stopping: watch::Receiver<bool>) {
    // An error means that the sender is gone, and the router with it.
    let _ = stopping.wait_for(|stop| *stop).await;
}
