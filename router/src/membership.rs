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

use crate::experts::wire::Broken;
use crate::experts::{Groups, Seat};
use crate::fleet::roster::{KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, Member, Roster};
use crate::fleet::{RefusedWorker, wire};
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

/// `millrace.worker.v1.Membership` over a roster, and over the groups that some workers form.
pub fn service(
    roster: Arc<Roster>,
    groups: Arc<Groups>,
    metrics: Arc<Metrics>,
) -> MembershipServer<impl Membership> {
    let service = MembershipService {
        roster,
        groups,
        metrics,
    };
    MembershipServer::new(service).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

struct MembershipService {
    roster: Arc<Roster>,
    groups: Arc<Groups>,
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
            groups: Arc::clone(&self.groups),
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
    groups: Arc<Groups>,
    metrics: Arc<Metrics>,
    state: State,
}

enum State {
    Greeting,
    Attached(Box<Attached>),
    Refused,
}

struct Attached {
    /// For a rank of a group. Given up before the place in the roster: whoever is admitted in its
    /// stead finds the seat empty.
    seat: Option<Seat>,
    member: Member,
}

impl Attached {
    /// What the router has to say of its own accord; never, to a worker that is in no group.
    async fn order(seat: &mut Option<Seat>) -> proto::GroupOrder {
        match seat {
            Some(seat) => seat.order().await,
            None => std::future::pending().await,
        }
    }
}

impl Session {
    /// Reads from the worker until there is something to tell it.
    async fn next(mut self) -> Result<Option<(proto::RouterMessage, Session)>, Status> {
        let answer = match &mut self.state {
            State::Greeting => Some(self.greet().await?),
            State::Attached(attached) => {
                follow(&mut self.messages, attached, &self.metrics).await?
            }
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
        let (role, revision) = (wire::role(hello.role()), hello.revision.clone());
        let attached = wire::description(hello).and_then(|worker| {
            let (role, group) = (worker.role, worker.group.clone());
            let member = self.roster.attach(worker)?;
            let seat = group.map(|rank| self.groups.join(&worker_id, rank, member.standing()));
            Ok((role, Box::new(Attached { seat, member })))
        });
        match attached {
            Ok((role, attached)) => {
                tracing::info!(worker_id, %role, revision, address, "worker attached");
                self.metrics.membership(MembershipEvent::Admitted);
                self.state = State::Attached(attached);
                Ok(FromRouter::Admitted(proto::Admitted {}))
            }
            Err(refusal) => {
                tracing::warn!(worker_id, revision, address, %refusal, "worker refused");
                self.metrics.membership(MembershipEvent::Rejected);
                self.state = State::Refused;
                let reason = refusal.to_string();
                self.roster.refuse(RefusedWorker {
                    worker_id,
                    role,
                    reason: reason.clone(),
                });
                Ok(FromRouter::Rejected(proto::Rejected { reason }))
            }
        }
    }
}

/// Applies what the worker says until there is something to tell it, or it is gone.
async fn follow(
    messages: &mut Streaming<proto::WorkerMessage>,
    attached: &mut Attached,
    metrics: &Metrics,
) -> Result<Option<FromRouter>, Status> {
    let contract = |e: wire::BadHash| Status::invalid_argument(e.to_string());
    let broken = |e: Broken| Status::invalid_argument(e.to_string());
    loop {
        // Neither loses anything when the other is first.
        let message = tokio::select! {
            message = messages.message() => message?,
            order = Attached::order(&mut attached.seat) => {
                return Ok(Some(FromRouter::GroupOrder(order)));
            }
        };
        let Some(message) = message else {
            return Ok(None);
        };
        match message.message {
            Some(FromWorker::Snapshot(snapshot)) => {
                let blocks = wire::hashes(&snapshot.blocks).map_err(contract)?;
                attached.member.snapshot(wire::load(snapshot.load), blocks);
            }
            Some(FromWorker::Delta(delta)) => {
                if let Err(gap) = attached.member.delta(wire::delta(delta).map_err(contract)?) {
                    tracing::warn!(worker = attached.member.key().0, %gap, "resynchronising");
                    metrics.membership(MembershipEvent::Resync);
                    return Ok(Some(FromRouter::Resync(proto::Resync {})));
                }
            }
            Some(FromWorker::Draining(_)) => attached.member.drain(),
            Some(FromWorker::GroupReport(report)) => {
                let seat = attached
                    .seat
                    .as_mut()
                    .ok_or(Broken::NoGroup)
                    .map_err(broken)?;
                seat.report(&report).map_err(broken)?;
            }
            Some(FromWorker::ExpertCounts(counts)) => {
                // A worker that has all experts counts them too, for nobody to balance.
                if let Some(seat) = &attached.seat {
                    seat.counts(counts).map_err(broken)?;
                }
            }
            Some(FromWorker::Hello(_)) => {
                return Err(Status::invalid_argument(
                    "a second hello; open another stream",
                ));
            }
            // A message of a later version: sequence numbers would show a lost delta.
            None => {}
        }
    }
}
