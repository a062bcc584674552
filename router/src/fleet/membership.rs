//! The service that workers attach to. A worker's stream is its membership: it joins with the
//! first message and is gone when the stream ends, however it ends.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, stream};
use millrace_proto::worker::v1 as proto;
use proto::membership_server::{Membership, MembershipServer};
use proto::router_message::Message as FromRouter;
use proto::worker_message::Message as FromWorker;
use tonic::{Request, Response, Status, Streaming};

use super::roster::{KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, Member, Roster};
use super::wire;
use crate::metrics::{MembershipEvent, Metrics};

/// A connection that says nothing this long is closed.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// A snapshot names every cached block (18 bytes each): room for 3 million of them.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// The worker-facing server. Keepalive finds hosts that vanished without a word; a killed process
/// is noticed at once, since its kernel closes the connection.
pub fn server() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .tcp_nodelay(true)
}

/// `millrace.worker.v1.Membership` over a roster.
pub fn service(roster: Arc<Roster>, metrics: Arc<Metrics>) -> MembershipServer<impl Membership> {
    MembershipServer::new(MembershipService { roster, metrics })
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
}

struct MembershipService {
    roster: Arc<Roster>,
    metrics: Arc<Metrics>,
}

#[tonic::async_trait]
impl Membership for MembershipService {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<proto::RouterMessage, Status>> + Send>>;

    async fn attach(
        &self,
        request: Request<Streaming<proto::WorkerMessage>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        // The session lives inside the response: when the connection breaks, the server drops the
        // response, and with it the worker's place in the roster.
        let session = Session {
            messages: request.into_inner(),
            roster: Arc::clone(&self.roster),
            metrics: Arc::clone(&self.metrics),
            state: State::Greeting,
        };
        Ok(Response::new(Box::pin(stream::try_unfold(
            session,
            Session::next,
        ))))
    }
}

struct Session {
    messages: Streaming<proto::WorkerMessage>,
    roster: Arc<Roster>,
    metrics: Arc<Metrics>,
    state: State,
}

enum State {
    Greeting,
    Attached(Member),
    Refused,
}

impl Session {
    /// Reads from the worker until there is something to tell it.
    async fn next(mut self) -> Result<Option<(proto::RouterMessage, Session)>, Status> {
        let answer = match &self.state {
            State::Greeting => Some(self.greet().await?),
            State::Attached(_) => self.follow().await?,
            State::Refused => None,
        };
        Ok(answer.map(|message| {
            (
                proto::RouterMessage {
                    message: Some(message),
                },
                self,
            )
        }))
    }

    /// Expects a hello and answers it.
    async fn greet(&mut self) -> Result<FromRouter, Status> {
        let first = tokio::time::timeout(HELLO_WITHIN, self.messages.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no hello came in time"))??;
        let Some(FromWorker::Hello(hello)) = first.and_then(|m| m.message) else {
            return Err(Status::invalid_argument(
                "the first message must be a hello",
            ));
        };
        let (worker_id, address) = (hello.worker_id.clone(), hello.address.clone());
        let attached = wire::description(hello).and_then(|worker| {
            let role = worker.role;
            Ok((role, self.roster.attach(worker)?))
        });
        match attached {
            Ok((role, member)) => {
                tracing::info!(worker_id, %role, address, "worker attached");
                self.metrics.membership(MembershipEvent::Admitted);
                self.state = State::Attached(member);
                Ok(FromRouter::Admitted(proto::Admitted {}))
            }
            Err(refusal) => {
                tracing::warn!(worker_id, address, %refusal, "worker refused");
                self.metrics.membership(MembershipEvent::Rejected);
                self.state = State::Refused;
                Ok(FromRouter::Rejected(proto::Rejected {
                    reason: refusal.to_string(),
                }))
            }
        }
    }

    /// Applies the worker's reports until it must be asked for a snapshot or is gone.
    async fn follow(&mut self) -> Result<Option<FromRouter>, Status> {
        let State::Attached(member) = &self.state else {
            return Ok(None);
        };
        let contract = |e: wire::BadHash| Status::invalid_argument(e.to_string());
        while let Some(message) = self.messages.message().await? {
            match message.message {
                Some(FromWorker::Snapshot(snapshot)) => {
                    let blocks = wire::hashes(&snapshot.blocks).map_err(contract)?;
                    member.snapshot(wire::load(snapshot.load), blocks);
                }
                Some(FromWorker::Delta(delta)) => {
                    if let Err(gap) = member.delta(wire::delta(delta).map_err(contract)?) {
                        tracing::warn!(worker = member.key().0, %gap, "resynchronising");
                        self.metrics.membership(MembershipEvent::Resync);
                        return Ok(Some(FromRouter::Resync(proto::Resync {})));
                    }
                }
                Some(FromWorker::Draining(_)) => member.drain(),
                Some(FromWorker::Hello(_)) => {
                    return Err(Status::invalid_argument(
                        "a second hello; open another stream",
                    ));
                }
                // A message of a later version: sequence numbers would show a lost delta.
                None => {}
            }
        }
        Ok(None)
    }
}
