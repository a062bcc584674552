//! The process: metrics and probes at once, controllers as long as it leads.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use kube::Client;
use kube::client::ClientBuilder;
use millrace_telemetry::{Readiness, Registry};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::build::Defaults;
use crate::cache::{Cache, Cached as _, Key};
use crate::config::OperatorConfig;
use crate::controller::{self, Applier, Context, Detached, Memory, Queues, Recollections};
use crate::error::Error;
use crate::events::Events;
use crate::fleet::Fleet;
use crate::leader::{Elector, Timing};
use crate::metrics::Metrics;
use crate::requests::Counting;

/// How long giving the Lease back may take.
const RELEASE: Duration = Duration::from_secs(3);

/// Runs until `stopped` resolves, or the Lease is lost: then it returns an error, and the process has
/// to end.
///
/// Boxed, so that its code is generated here and not anew in each binary that calls it: that took
/// minutes.
pub fn run(
    config: OperatorConfig,
    stopped: BoxFuture<'static, ()>,
) -> BoxFuture<'static, Result<(), Error>> {
    Box::pin(operate(config, stopped))
}

/// Registers all metrics of an operator, with nothing behind them.
///
/// # Errors
/// `registry` has them already.
pub fn describe(registry: &Registry) -> Result<(), Error> {
    Ok(Metrics::new(registry).map(drop)?)
}

async fn operate(config: OperatorConfig, stopped: BoxFuture<'static, ()>) -> Result<(), Error> {
    let registry = Registry::of_process()?;
    let metrics = Metrics::new(&registry)?;
    let client = client(&metrics).await?;
    let readiness = Readiness::waiting_for("the API server");
    let mut process = JoinSet::new();
    let listener = TcpListener::bind(config.http)
        .await
        .map_err(|source| Error::Listen {
            address: config.http,
            source,
        })?;
    process.spawn({
        let readiness = readiness.clone();
        async move {
            let serve = millrace_telemetry::http::serve(
                listener,
                registry,
                readiness,
                std::future::pending(),
            );
            if let Err(error) = serve.await {
                tracing::error!(%error, "metrics and probes are served no longer");
            }
        }
    });
    let mut elector = elector(&config, client.clone());
    tokio::pin!(stopped);
    tokio::select! {
        () = &mut stopped => return Ok(()),
        () = lead(&client, &readiness, &mut elector) => {}
    }
    metrics.leader.set(1);
    let result = tokio::select! {
        error = elector.hold() => Err(error),
        () = controllers(config, client, metrics.clone()) => Ok(()),
        () = &mut stopped => Ok(()),
    };
    metrics.leader.set(0);
    result?;
    // The controllers are gone: whoever takes over finds nobody else at work.
    match timeout(RELEASE, elector.release()).await {
        Ok(Err(error)) => {
            tracing::warn!(%error, "the Lease was not released; it runs out by itself")
        }
        Err(_) => tracing::warn!("the Lease was not released in time; it runs out by itself"),
        Ok(Ok(())) => {}
    }
    Ok(())
}

/// Returns once this process leads. It is ready before: standing by is a state to be in.
async fn lead(client: &Client, readiness: &Readiness, elector: &mut Elector) {
    loop {
        match client.apiserver_version().await {
            Ok(version) => {
                tracing::info!(kubernetes = version.git_version, "connected");
                break;
            }
            Err(error) => {
                tracing::warn!(%error, "the API server does not answer");
                readiness.set_waiting_for(format!("the API server: {error}"));
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
        }
    }
    readiness.set_ready();
    elector.acquire().await;
}

async fn controllers(config: OperatorConfig, client: Client, metrics: Metrics) {
    let cache = Cache::default();
    let queues = Queues::default();
    let fleet = {
        let (cache, queues) = (cache.clone(), queues.clone());
        Fleet::new(metrics.fleet_streams.clone(), move |deployment: &Key| {
            queues.deployment(deployment.clone());
            for pool in cache.pools.of(&deployment.namespace, &deployment.name) {
                queues.pool(pool.meta.key.clone());
            }
            let autoscalers = &cache.autoscalers;
            for autoscaler in autoscalers.of(&deployment.namespace, &deployment.name) {
                queues.autoscaler(autoscaler.key());
            }
        })
    };
    let context = Context {
        defaults: Defaults {
            image: config.image.clone(),
            etcd: config.etcd.clone(),
            operator_namespace: config.namespace.clone(),
        },
        fleet,
        applier: Applier::new(client.clone(), cache.clone(), metrics.clone()),
        memory: Memory::default(),
        recollections: Recollections::default(),
        detached: Detached::default(),
        events: Events::new(client.clone(), &config.identity),
        metrics,
        cache,
        client,
        config,
    };
    controller::run(Arc::new(context), queues).await;
}

async fn client(metrics: &Metrics) -> Result<Client, Error> {
    let mut config = kube::Config::infer()
        .await
        .map_err(|error| Error::NoCluster(Box::new(error)))?;
    // What fails is looked at again anyway, and the Lease must not wait for retries.
    config.default_retry = false;
    let builder = ClientBuilder::try_from(config)
        .map_err(|error| Error::api("connect to", "the API server", error))?;
    Ok(builder.with_layer(&Counting(metrics.clone())).build())
}

/// Operators of different namespaces lead beside each other.
fn elector(config: &OperatorConfig, client: Client) -> Elector {
    let name = match &config.watch {
        Some(namespace) => format!("millrace-operator-{namespace}"),
        None => "millrace-operator".to_owned(),
    };
    Elector::new(
        client,
        &config.namespace,
        &name,
        &config.identity,
        Timing::default(),
    )
}
