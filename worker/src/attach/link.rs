//! One router: keeps a stream to it, for as long as the worker lives.

use std::{sync::Arc, time::Duration};

use tokio::sync::{broadcast::error::RecvError, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint},
};

use millrace_proto::worker::v1::{
    RouterMessage, WorkerMessage, membership_client::MembershipClient, router_message::Message,
};

use super::{
    admission::{Admission, Admitted},
    backoff::Backoff,
    feed::Feed,
    messages::{Identity, Sequencer, draining, hello},
};

const CONNECT: Duration = Duration::from_secs(2);
/// A router that answers no ping for this long is gone, whatever TCP thinks.
const KEEPALIVE: Duration = Duration::from_secs(2);
/// Messages between the feed and the wire; more wait in the feed, whose limit means a new snapshot.
const QUEUE: usize = 8;

/// The link to one router.
pub struct Link {
    /// `host:port`.
    pub router: String,
    pub identity: Arc<Identity>,
    pub feed: Arc<Feed>,
    pub admission: Admission,
    /// Turns true once.
    pub draining: watch::Receiver<bool>,
}

/// Why a stream to a router ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("`{0}` is not a router's host:port")]
    Address(String),
    #[error("cannot connect: {0}")]
    Connect(#[source] tonic::transport::Error),
    #[error("{}", .0.message())]
    Stream(#[from] Status),
    #[error("the router closed the stream")]
    Closed,
    #[error("the router refuses this worker: {0}")]
    Rejected(String),
}

impl Link {
    /// Attaches, and again whenever the stream ends.
    pub async fn keep(mut self) {
        let router = self.router.clone();
        let mut backoff = Backoff::default();
        loop {
            let ended = match self.attach(&mut backoff).await {
                Ok(never) => match never {},
                Err(ended) => ended,
            };
            let wait = match &ended {
                Ended::Rejected(reason) => {
                    tracing::error!(
                        router,
                        reason,
                        "the router refuses this worker; change the one that is wrong"
                    );
                    backoff.after_refusal()
                }
                other => {
                    tracing::warn!(router, error = %other, "no link to the router; trying again");
                    backoff.after_failure()
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// One stream from its Hello to its end.
    async fn attach(&mut self, backoff: &mut Backoff) -> Result<std::convert::Infallible, Ended> {
        let channel = self.connect().await?;
        let (mut outbox, stream) = Outbox::new();
        let (snapshot, mut updates) = self.feed.subscribe();
        // Into the queue before the call: the router need not answer before it has read them.
        outbox.send([hello(&self.identity)]).await?;
        let first = outbox.sequencer.snapshot(snapshot);
        let (answer, sent) = tokio::join!(
            async { MembershipClient::new(channel).attach(stream).await },
            outbox.send(first)
        );
        let mut answers: Streaming<RouterMessage> = answer?.into_inner();
        sent?;
        let mut admitted: Option<Admitted> = None;
        let mut told_draining = false;
        loop {
            tokio::select! {
                answer = answers.message() => match answer?.ok_or(Ended::Closed)?.message {
                    Some(Message::Admitted(_)) => {
                        tracing::info!(router = self.router, "admitted by the router");
                        backoff.reset();
                        admitted.get_or_insert_with(|| self.admission.admit());
                    }
                    Some(Message::Rejected(rejected)) => return Err(Ended::Rejected(rejected.reason)),
                    Some(Message::Resync(_)) => updates = outbox.start_over(&self.feed).await?,
                    None => {}
                },
                update = updates.recv() => match update {
                    Ok(update) => {
                        let deltas = outbox.sequencer.update(&update);
                        outbox.send(deltas).await?;
                    }
                    Err(RecvError::Lagged(_)) => updates = outbox.start_over(&self.feed).await?,
                    Err(RecvError::Closed) => return Err(Ended::Closed),
                },
                true = became_true(&mut self.draining), if !told_draining => {
                    told_draining = true;
                    outbox.send([draining()]).await?;
                }
            }
        }
    }

    async fn connect(&self) -> Result<Channel, Ended> {
        Endpoint::from_shared(format!("http://{}", self.router))
            .map_err(|_| Ended::Address(self.router.clone()))?
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true)
            .connect()
            .await
            .map_err(Ended::Connect)
    }
}

/// Returns true when the value is; never, if it will not be.
async fn became_true(flag: &mut watch::Receiver<bool>) -> bool {
    let set = flag.wait_for(|set| *set).await.is_ok();
    if !set {
        std::future::pending::<()>().await;
    }
    set
}

/// The worker's half of a stream.
struct Outbox {
    messages: mpsc::Sender<WorkerMessage>,
    sequencer: Sequencer,
}

impl Outbox {
    fn new() -> (Outbox, ReceiverStream<WorkerMessage>) {
        let (messages, stream) = mpsc::channel(QUEUE);
        let sequencer = Sequencer::default();
        (
            Outbox {
                messages,
                sequencer,
            },
            ReceiverStream::new(stream),
        )
    }

    async fn send(&self, messages: impl IntoIterator<Item = WorkerMessage>) -> Result<(), Ended> {
        for message in messages {
            self.messages
                .send(message)
                .await
                .map_err(|_| Ended::Closed)?;
        }
        Ok(())
    }

    async fn start_over(
        &mut self,
        feed: &Feed,
    ) -> Result<tokio::sync::broadcast::Receiver<Arc<super::feed::Update>>, Ended> {
        let (snapshot, updates) = feed.subscribe();
        let messages = self.sequencer.snapshot(snapshot);
        self.send(messages).await?;
        Ok(updates)
    }
}
