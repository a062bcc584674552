//! A worker's life around its engine: listen, load, serve, drain.

use std::{
    future::Future,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
    task::JoinSet,
    time::timeout,
};
use tonic::{
    service::Routes,
    transport::{Server, server::TcpIncoming},
};
use tonic_health::{ServingStatus, server::HealthReporter};
use tracing::Instrument as _;

use millrace_engine::LeasedPages;
use millrace_telemetry::{Readiness, Registry};

use crate::{
    Loaded, Role, Started, WorkerConfig, WorkerError,
    attach::{Admission, Feed, Identity, Link, Routers},
    device::Device,
    engine::{EngineMonitor, Mailbox},
    metrics::Metrics,
    notice::{BoundAddresses, Notice, Observer},
};

/// How long the door stays open after the routers were told that it closes: a request that one of
/// them sent before it heard still gets in.
const DRAIN_NOTICE: Duration = Duration::from_millis(200);
/// For requests that were ended to tell their callers.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// A caller that answers no ping for twice this is gone, and so are its requests.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// Bytes that a caller may send of one request, and of all requests on its connection, before
/// they are read: a prompt of 163 840 tokens is half a mebibyte.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// A worker that listens.
pub struct Worker {
    config: WorkerConfig,
    role: Role,
    id: String,
    host: String,
    served_name: String,
    incoming: TcpIncoming,
    addresses: BoundAddresses,
    metrics: Metrics,
    readiness: Readiness,
    observer: Observer,
    identity: Option<Arc<Identity>>,
    /// Tasks that end with the worker.
    background: JoinSet<()>,
}

impl Worker {
    /// Binds the gRPC address, and serves metrics and health from now on. `observer` hears where.
    pub async fn bind(
        mut config: WorkerConfig,
        role: Role,
        observer: Observer,
    ) -> Result<Worker, WorkerError> {
        let host = advertised_host(&config)?;
        if let Some(group) = &config.group {
            group.check(&config.routers)?;
        }
        let incoming = listen("gRPC", config.listen).await?;
        let http = listen("HTTP", config.http).await?;
        let addresses = BoundAddresses {
            grpc: local_address(&incoming, config.listen)?,
            http: local_address(&http, config.http)?,
        };
        let served_name = served_name(&config);
        let registry = Registry::of_process()?;
        let metrics = Metrics::new(registry.clone(), &served_name, role);
        let readiness = Readiness::waiting_for("the model to load");
        let mut background = JoinSet::new();
        let serve = millrace_telemetry::http::serve(
            http,
            registry,
            readiness.clone(),
            std::future::pending(),
        );
        background.spawn(
            async move {
                if let Err(error) = serve.await {
                    tracing::error!(%error, "metrics and health are not served any more");
                }
            }
            .in_current_span(),
        );
        tracing::info!(grpc = %addresses.grpc, http = %addresses.http, "listening");
        observer(Notice::Bound(addresses));
        Ok(Worker {
            id: config.id(role).to_owned(),
            config,
            role,
            host,
            served_name,
            incoming: TcpIncoming::from(incoming).with_nodelay(Some(true)),
            addresses,
            metrics,
            readiness,
            observer,
            identity: None,
            background,
        })
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The addresses of the advertised host, with `port`; none if no host is configured.
    pub async fn advertised(&self, port: u16) -> Result<Vec<SocketAddr>, WorkerError> {
        let Some(host) = &self.config.advertise_host else {
            return Ok(Vec::new());
        };
        match tokio::net::lookup_host((host.as_str(), port)).await {
            Ok(addresses) => Ok(addresses.collect()),
            Err(source) => Err(WorkerError::AdvertisedHost {
                host: host.clone(),
                source,
            }),
        }
    }

    /// Loads the model, telling how far it has come.
    pub async fn load<B: Device>(&self) -> Result<Loaded<B>, WorkerError> {
        let observer = self.observer.clone();
        let config = self.config.clone();
        let span = tracing::Span::current();
        let load = move || {
            let _entered = span.enter();
            Loaded::load(&config, &mut |progress| observer(Notice::Loading(progress)))
        };
        tokio::task::spawn_blocking(load)
            .await
            .map_err(|_| WorkerError::LoadPanicked)?
    }

    /// Starts the engine's thread. `reserved` gets the pages that a peer should fill and the index
    /// of the first of them, on that thread; see [`crate::engine::start`].
    pub fn start<B: Device, R: Send + 'static>(
        &mut self,
        loaded: Loaded<B>,
        reserved: impl FnMut(LeasedPages, usize) -> R + Send + 'static,
    ) -> Result<Started<B, R>, WorkerError> {
        let mailbox = Mailbox::default();
        let address = host_and_port(&self.host, self.addresses.grpc.port());
        let joining = loaded.join(&self.config, mailbox.waker(), &address, &self.metrics)?;
        let identity = loaded.identity(
            self.id.clone(),
            self.role,
            address,
            self.served_name.clone(),
            &self.config,
            joining
                .as_ref()
                .map(|joining| joining.beside.group.to_wire()),
        );
        self.identity = Some(Arc::new(identity));
        let started = loaded.start(mailbox, self.metrics.steps()?, reserved, joining)?;
        self.metrics
            .watch_engine(started.monitor.clone(), started.max_running)?;
        if let Some(counts) = &started.experts {
            self.metrics.watch_experts(counts.clone())?;
        }
        Ok(started)
    }

    /// Serves `routes` until `shutdown`, and then until the last request is done or the drain time
    /// is over; what still runs then is ended. Returns with the engine's thread gone.
    pub async fn serve<B: Device, R: Send + 'static>(
        mut self,
        started: Started<B, R>,
        routes: Routes,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), WorkerError> {
        let (health, health_service) = tonic_health::server::health_reporter();
        self.background
            .spawn(report_health(health, self.readiness.clone()));
        let (close, closed) = oneshot::channel::<()>();
        let mut routes = routes.add_service(health_service);
        let mut group = None;
        if let Some(beside) = started.beside {
            routes = routes.add_service(beside.weights.server());
            self.background
                .spawn(beside.staging.run().in_current_span());
            group = Some(beside.group);
        }
        let mut server = pin!(
            Server::builder()
                .http2_keepalive_interval(Some(KEEPALIVE))
                .http2_keepalive_timeout(Some(KEEPALIVE))
                // A long prompt fits without waiting for the other side to make room.
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .add_routes(routes)
                .serve_with_incoming_shutdown(self.incoming, async {
                    let _ = closed.await;
                })
        );
        (self.observer)(Notice::Loaded);
        let admission = Admission::new(
            self.readiness.clone(),
            self.observer.clone(),
            group.is_some(),
            self.metrics.routers()?,
        );
        if group.is_some() {
            let follow = follow_membership(started.monitor.clone(), admission.clone());
            self.background.spawn(follow);
        }
        let draining = watch::Sender::new(false);
        let feed = Feed::new(started.monitor.clone());
        self.background.spawn(feed.clone().run().in_current_span());
        let routers = Routers {
            routers: self.config.routers.clone(),
            resolver: self.config.resolver.clone(),
            link: Link {
                router: String::new(),
                identity: self.identity.clone().expect("the engine was started"),
                feed,
                admission: admission.clone(),
                draining: draining.subscribe(),
                group: group.clone(),
                experts: started.experts.clone(),
            },
        };
        self.background.spawn(routers.keep().in_current_span());
        // Nobody to wait for.
        let _alone = self.config.routers.is_empty().then(|| admission.admit());

        let stop = || {
            started.engine.stop();
            if let Some(group) = &group {
                // Its engine may be waiting for another rank.
                group.interrupt();
            }
        };
        tokio::select! {
            ended = &mut server => return Ok(ended?),
            () = shutdown => {}
        }
        tracing::info!(seconds = self.config.drain.as_secs_f64(), "draining");
        admission.drain();
        draining.send_replace(true);
        let _ = timeout(DRAIN_NOTICE, &mut server).await;
        let _ = close.send(());
        if timeout(self.config.drain, &mut server).await.is_err() {
            tracing::warn!("requests still ran at the end of the drain time; they are ended");
            stop();
            let _ = timeout(LAST_WORDS, &mut server).await;
        }
        stop();
        let _ = tokio::task::spawn_blocking(|| started.thread.join()).await;
        tracing::info!("stopped");
        Ok(())
    }
}

/// A rank is ready while it is a member of its group's epoch.
async fn follow_membership(mut monitor: EngineMonitor, admission: Admission) {
    loop {
        admission.set_outside(monitor.state().outside);
        monitor.changed().await;
    }
}

/// gRPC's own health service says what `/ready` says.
async fn report_health(health: HealthReporter, readiness: Readiness) {
    let mut changes = readiness.subscribe();
    loop {
        let status = match changes.borrow_and_update().is_none() {
            true => ServingStatus::Serving,
            false => ServingStatus::NotServing,
        };
        health.set_service_status("", status).await;
        if changes.changed().await.is_err() {
            return;
        }
    }
}

async fn listen(what: &'static str, address: SocketAddr) -> Result<TcpListener, WorkerError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| WorkerError::Listen {
            what,
            address,
            source,
        })
}

fn local_address(listener: &TcpListener, address: SocketAddr) -> Result<SocketAddr, WorkerError> {
    listener.local_addr().map_err(|source| WorkerError::Listen {
        what: "a known port",
        address,
        source,
    })
}

fn advertised_host(config: &WorkerConfig) -> Result<String, WorkerError> {
    match &config.advertise_host {
        Some(host) => Ok(host.clone()),
        None if config.listen.ip().is_unspecified() => Err(WorkerError::NoAdvertisedHost {
            address: config.listen,
        }),
        None => Ok(config.listen.ip().to_string()),
    }
}

pub(crate) fn host_and_port(host: &str, port: u16) -> String {
    match host.parse() {
        Ok(IpAddr::V6(ip)) => format!("[{ip}]:{port}"),
        _ => format!("{host}:{port}"),
    }
}

fn served_name(config: &WorkerConfig) -> String {
    let folder = || {
        let path = std::path::absolute(&config.model_dir).ok()?;
        Some(path.file_name()?.to_string_lossy().into_owned())
    };
    config
        .served_model_name
        .clone()
        .or_else(folder)
        .unwrap_or_else(|| "model".to_string())
}

/// Gives the worker its id, if it has none, and the span that all it logs is in.
pub fn identify(config: &mut WorkerConfig, role: Role) -> tracing::Span {
    tracing::error_span!("worker", id = config.id(role), %role)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_others_cannot_reach_is_not_advertised() {
        let mut config = WorkerConfig {
            listen: "0.0.0.0:0".parse().unwrap(),
            ..WorkerConfig::default()
        };
        let error = advertised_host(&config).unwrap_err();
        assert!(
            matches!(error, WorkerError::NoAdvertisedHost { .. }),
            "{error}"
        );
        config.advertise_host = Some("decode-0.decode".to_string());
        assert_eq!(advertised_host(&config).unwrap(), "decode-0.decode");
        assert_eq!(host_and_port("::1", 7), "[::1]:7");
        assert_eq!(host_and_port("decode-0.decode", 7), "decode-0.decode:7");
    }

    #[test]
    fn a_model_is_named_after_its_folder() {
        let mut config = WorkerConfig {
            model_dir: "models/tiny-r1/".into(),
            ..WorkerConfig::default()
        };
        assert_eq!(served_name(&config), "tiny-r1");
        config.served_model_name = Some("r1".to_string());
        assert_eq!(served_name(&config), "r1");
    }
}
