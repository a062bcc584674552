//! One router: keeps a stream to it, for as long as the worker lives.

use std::{sync::Arc, time::Duration};

use tokio::sync::{broadcast::error::RecvError, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint},
};

use millrace_engine::ExpertCounts;
use millrace_proto::worker::v1::{
    RouterMessage, WorkerMessage, membership_client::MembershipClient, router_message::Message,
};

use super::{
    admission::{Admission, Admitted},
    backoff::Backoff,
    experts::ExpertReports,
    feed::Feed,
    messages::{Identity, Sequencer, draining, hello},
};
use crate::group::{Group, GroupLink};

const CONNECT: Duration = Duration::from_secs(2);
/// A router that answers no ping for this long is gone, whatever TCP thinks.
const KEEPALIVE: Duration = Duration::from_secs(2);
/// Messages between the feed and the wire; more wait in the feed, whose limit means a new snapshot.
const QUEUE: usize = 8;

/// The link to one router.
#[derive(Clone)]
pub struct Link {
    /// `host:port`.
    pub router: String,
    pub identity: Arc<Identity>,
    pub feed: Arc<Feed>,
    pub admission: Admission,
    /// Turns true once.
    pub draining: watch::Receiver<bool>,
    /// Of a rank.
    pub group: Option<Arc<Group>>,
    /// Of a model with experts.
    pub experts: Option<Arc<ExpertCounts>>,
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
    /// Attaches, and again whenever the stream ends, until the router is not `listed` any more. A
    /// stream that lives is left alone, listed or not.
    pub async fn keep(mut self, mut listed: watch::Receiver<bool>) {
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
            if became(false, &mut listed, wait).await {
                tracing::info!(router, "the router is gone from where it was listed");
                return;
            }
        }
    }

    /// One stream from its Hello to its end.
    async fn attach(&mut self, backoff: &mut Backoff) -> Result<std::convert::Infallible, Ended> {
        let channel = self.connect().await?;
        let (mut outbox, stream) = Outbox::new();
        let (snapshot, mut updates) = self.feed.subscribe();
        let group = self.group.clone();
        let mut group = group.map(|group| GroupLink::new(group, self.router.clone()));
        let mut counts = ExpertReports::new(self.experts.clone());
        // Into the queue before the call: the router need not answer before it has read them.
        outbox.send([hello(&self.identity)]).await?;
        outbox.send(group.as_mut().map(GroupLink::report)).await?;
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
                    Some(Message::GroupOrder(order)) => match &group {
                        Some(group) => group.hear(order),
                        None => tracing::warn!(
                            router = self.router,
                            "an order for a group, but this worker is in none"
                        ),
                    },
                    None => {}
                },
                report = changed(&mut group) => outbox.send([report]).await?,
                message = counts.next() => outbox.send([message]).await?,
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

/// The next report of a rank; never one of a worker in no group.
async fn changed(group: &mut Option<GroupLink>) -> WorkerMessage {
    match group {
        Some(group) => group.changed().await,
        None => std::future::pending().await,
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

/// Whether the flag is `value` at some time within `wait`.
async fn became(value: bool, flag: &mut watch::Receiver<bool>, wait: Duration) -> bool {
    let becomes = flag.wait_for(|flag| *flag == value);
    matches!(tokio::time::timeout(wait, becomes).await, Ok(Ok(_)))
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
