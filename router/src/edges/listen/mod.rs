//! Connections of clients, plain or TLS, for the HTTP and the gRPC port alike.
//!
//! ```text
//! Incoming::next: accept ─▶ handshake, a task each, at most HANDSHAKE ─▶ Connection
//! ```
//! One slow or hostile client costs the others nothing: nobody waits for its handshake, and it has
//! so long to begin with its first request.

mod connection;
mod identity;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

pub use connection::Connection;
pub use identity::{Identity, TlsError};

use crate::metrics::{Edge, HandshakeFailure, Metrics};

/// How long a client may take for its handshake, and again until its first request has begun.
pub const HANDSHAKE: Duration = Duration::from_secs(10);

/// How long nothing is accepted after that failed, when the process has no file descriptor left.
const REST: Duration = Duration::from_millis(200);

/// Clients of one port.
pub struct Incoming {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    patience: Duration,
    handshakes: JoinSet<Result<Connection, HandshakeFailure>>,
    edge: Edge,
    metrics: Arc<Metrics>,
}

impl Incoming {
    /// Plain ones if `tls` is `None`.
    pub fn new(
        listener: TcpListener,
        tls: Option<Arc<ServerConfig>>,
        patience: Duration,
        edge: Edge,
        metrics: Arc<Metrics>,
    ) -> Incoming {
        Incoming {
            listener,
            tls: tls.map(TlsAcceptor::from),
            patience,
            handshakes: JoinSet::new(),
            edge,
            metrics,
        }
    }

    /// The next client that can send requests. Dropping the future loses nobody.
    pub async fn next(&mut self) -> Connection {
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        if let Some(connection) = self.begin(stream) {
                            return connection;
                        }
                    }
                    Err(error) if is_of_one_client(&error) => {}
                    Err(error) => {
                        tracing::error!(%error, "no connection can be accepted");
                        tokio::time::sleep(REST).await;
                    }
                },
                Some(ended) = self.handshakes.join_next() => match ended {
                    Ok(Ok(connection)) => return connection,
                    Ok(Err(failure)) => self.metrics.handshake_failed(self.edge, failure),
                    Err(error) => tracing::error!(%error, "a handshake ended abnormally"),
                },
            }
        }
    }

    /// As tonic wants them.
    pub fn into_stream(self) -> impl Stream<Item = io::Result<Connection>> {
        futures::stream::unfold(self, |mut incoming| async {
            let connection = incoming.next().await;
            Some((Ok(connection), incoming))
        })
    }

    fn begin(&mut self, stream: TcpStream) -> Option<Connection> {
        // Streamed tokens are small packets: none of them may wait for the next.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY");
        }
        let patience = self.patience;
        let Some(tls) = self.tls.clone() else {
            return Some(Connection::plain(stream, patience));
        };
        self.handshakes.spawn(async move {
            match tokio::time::timeout(patience, tls.accept(stream)).await {
                Ok(Ok(stream)) => Ok(Connection::tls(stream, patience)),
                Ok(Err(error)) => {
                    tracing::debug!(%error, "a TLS handshake failed");
                    Err(HandshakeFailure::Failed)
                }
                Err(_) => Err(HandshakeFailure::Timeout),
            }
        });
        None
    }
}

/// It went away before it was accepted.
fn is_of_one_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
    )
}
