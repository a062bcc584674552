//! Connections of the HTTP port: HTTP/1.1 and HTTP/2, whichever the client speaks.

use std::pin::pin;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::super::listen::{Connection, Incoming};

/// An HTTP/2 client that vanished is noticed after about twice this, and its requests cancelled.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// Answers until `stopping` holds true; then takes no new clients, answers the requests under way, and
/// returns. Dropping the future ends all connections.
///
/// `header_timeout` bounds the time for the head of a request, and with HTTP/1 also how long an idle
/// connection is kept.
pub async fn serve(
    mut incoming: Incoming,
    router: axum::Router,
    header_timeout: Duration,
    stopping: watch::Receiver<bool>,
) {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            connection = incoming.next() => {
                let (builder, router, stopping) = (builder.clone(), router.clone(), stopping.clone());
                connections.spawn(one(builder, connection, router, stopping));
            }
            // A panic in one of them is reported by the layer that catches it, or by the runtime.
            Some(_) = connections.join_next() => {}
            () = told(stopping.clone()) => break,
        }
    }
    // Nobody can connect while the rest is answered.
    drop(incoming);
    while connections.join_next().await.is_some() {}
}

async fn one(
    builder: Builder<TokioExecutor>,
    connection: Connection,
    router: axum::Router,
    stopping: watch::Receiver<bool>,
) {
    let service = TowerToHyperService::new(router);
    let mut served = pin!(builder.serve_connection(TokioIo::new(connection), service));
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = told(stopping) => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error, "a connection ended");
    }
}

async fn told(mut stopping: watch::Receiver<bool>) {
    // An error means that the sender is gone, and the router with it.
    let _ = stopping.wait_for(|stop| *stop).await;
}
