//! A router that decides on epochs as the test says, and the ranks attached to it.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{Stream, StreamExt as _};
use millrace_experts::{Epoch, Loads, Member, Placement, Plan, RankId, Shape};
use millrace_proto::worker::v1::{
    self as wire, Admitted, GroupOrder, GroupPeer, GroupRank, GroupReport, RankId as WireId,
    RouterMessage, WorkerMessage,
    membership_server::{Membership, MembershipServer},
    router_message::Message as Answer,
    worker_message::Message,
};
use millrace_worker::{GroupConfig, WorkerConfig};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

use super::{
    HANGS, Running, decode_config, generate, prompt, request, sampling, tokens, worker_config,
};

/// What an attached rank has told.
#[derive(Clone)]
pub struct Attached {
    pub hello: GroupRank,
    pub member: Member,
    pub report: GroupReport,
    pub outside: bool,
    /// Of [`millrace_proto::worker::v1::ExpertCounts`].
    pub chosen: u64,
    pub computed: u64,
    answers: mpsc::Sender<Result<RouterMessage, Status>>,
}

impl Attached {
    pub fn adopted(&self) -> u64 {
        match self.report.adopted.as_slice() {
            [] => 0,
            json => Epoch::from_json(json).unwrap().number,
        }
    }
}

#[derive(Default)]
struct Decided {
    epoch: Option<Epoch>,
    plan: Option<Plan>,
}

/// Ranks by number: the life that attached last.
pub type Ranks = BTreeMap<usize, Attached>;

#[derive(Clone)]
pub struct GroupRouter {
    pub address: SocketAddr,
    ranks: Arc<watch::Sender<Ranks>>,
    decided: Arc<Mutex<Decided>>,
    hung_up: Arc<Mutex<bool>>,
}

impl GroupRouter {
    pub async fn start() -> GroupRouter {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let router = GroupRouter {
            address: listener.local_addr().unwrap(),
            ranks: Arc::new(watch::Sender::new(Ranks::new())),
            decided: Arc::default(),
            hung_up: Arc::default(),
        };
        let server = tonic::transport::Server::builder()
            .add_service(MembershipServer::new(router.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(server);
        router
    }

    /// Returns when the ranks are as `done` says.
    pub async fn until(&self, what: &str, done: impl Fn(&Ranks) -> bool) -> Ranks {
        let mut ranks = self.ranks.subscribe();
        let wait = ranks.wait_for(|ranks| done(ranks));
        match tokio::time::timeout(HANGS, wait).await {
            Ok(ranks) => ranks.unwrap().clone(),
            Err(_) => {
                let reports: Vec<String> = self
                    .ranks
                    .borrow()
                    .iter()
                    .map(|(rank, a)| {
                        let GroupReport { adopted: _, .. } = &a.report;
                        format!(
                            "rank {rank}: adopted {}, known {}, linked {:?}, lost {:?}, staged {} {}",
                            a.adopted(),
                            a.report.known,
                            a.report.linked,
                            a.report.lost,
                            a.report.staged_plan,
                            a.report.staging_error
                        )
                    })
                    .collect();
                panic!("never came to be so: {what}\n{}", reports.join("\n"));
            }
        }
    }

    /// Returns when `count` ranks are attached and each has a link with every other.
    pub async fn until_linked(&self, count: usize) -> Ranks {
        self.until("all ranks are linked", |ranks| {
            let linked = |a: &Attached| {
                let others = ranks.values().filter(|b| b.member.id != a.member.id);
                others
                    .map(|b| wire_id(b.member.id))
                    .all(|id| a.report.linked.contains(&id))
            };
            ranks.len() == count && ranks.values().all(linked)
        })
        .await
    }

    /// Commits the first epoch, or the next, of `ranks`; returns when all of them have adopted it.
    pub async fn commit(&self, ranks: &[usize], placement: Placement, reset: bool) -> Epoch {
        let epoch = self.next_epoch(ranks, placement, reset);
        self.publish(epoch.clone()).await;
        self.until_adopted(ranks, epoch.number).await;
        epoch
    }

    pub fn next_epoch(&self, ranks: &[usize], placement: Placement, reset: bool) -> Epoch {
        let before = self.decided.lock().unwrap();
        let before = before.epoch.as_ref();
        let number = before.map_or(1, |epoch| epoch.number + 1);
        let attached = self.ranks.borrow();
        let shape = placement.shape();
        Epoch {
            number,
            reset: match before {
                Some(epoch) if !reset => epoch.reset,
                _ => number,
            },
            members: ranks.iter().map(|r| attached[r].member.clone()).collect(),
            placement: Arc::new(placement),
            expected: Arc::new(Loads::zero(shape.layers, shape.experts)),
        }
    }

    pub async fn publish(&self, epoch: Epoch) {
        {
            let mut decided = self.decided.lock().unwrap();
            decided.plan = None;
            decided.epoch = Some(epoch);
        }
        self.broadcast().await;
    }

    pub async fn until_adopted(&self, ranks: &[usize], number: u64) {
        let adopted = |all: &Ranks| {
            let of = |rank: &usize| {
                all.get(rank)
                    .is_some_and(|a| a.adopted() == number && !a.outside)
            };
            ranks.iter().all(of)
        };
        self.until(&format!("epoch {number} is adopted"), adopted)
            .await;
    }

    /// Has `next` staged, and returns the epoch once every member has.
    pub async fn stage(&self, id: u64, next: Epoch) -> Epoch {
        let members: Vec<usize> = next.members.iter().map(|m| m.id.rank).collect();
        {
            let mut decided = self.decided.lock().unwrap();
            decided.plan = Some(Plan {
                id,
                base: next.number - 1,
                next: next.clone(),
            });
        }
        self.broadcast().await;
        let ranks = self
            .until(&format!("plan {id} is staged"), |all| {
                members
                    .iter()
                    .all(|rank| all.get(rank).is_some_and(|a| a.report.staged_plan == id))
            })
            .await;
        for rank in &members {
            assert_eq!(ranks[rank].report.staging_error, "", "rank {rank}");
        }
        next
    }

    /// No plan any more.
    pub async fn give_up(&self) {
        self.decided.lock().unwrap().plan = None;
        self.broadcast().await;
    }

    /// As if this router had died: its streams end, and it takes no new ones.
    pub fn hang_up(&self) {
        *self.hung_up.lock().unwrap() = true;
        self.ranks.send_modify(Ranks::clear);
    }

    /// Plan, stage, commit, adopt.
    pub async fn change(&self, id: u64, ranks: &[usize], placement: Placement) -> Epoch {
        let next = self.next_epoch(ranks, placement, false);
        let next = self.stage(id, next).await;
        self.publish(next.clone()).await;
        self.until_adopted(ranks, next.number).await;
        next
    }

    fn order(&self) -> GroupOrder {
        let decided = self.decided.lock().unwrap();
        let json = |record: Option<Vec<u8>>| record.unwrap_or_default();
        GroupOrder {
            store: "the test's".to_string(),
            peers: self.ranks.borrow().values().map(peer).collect(),
            epoch: json(decided.epoch.as_ref().map(Epoch::to_json)),
            plan: json(decided.plan.as_ref().map(Plan::to_json)),
        }
    }

    pub async fn broadcast(&self) {
        let order = self.order();
        self.send(|_| Answer::GroupOrder(order.clone())).await;
    }

    /// Sends each rank an answer.
    pub async fn send(&self, answer: impl Fn(usize) -> Answer) {
        let ranks = self.ranks.borrow().clone();
        for (rank, attached) in ranks {
            let message = Some(answer(rank));
            // It may have gone.
            let _ = attached.answers.send(Ok(RouterMessage { message })).await;
        }
    }

    async fn hear(
        self,
        mut messages: Streaming<WorkerMessage>,
        answers: mpsc::Sender<Result<RouterMessage, Status>>,
    ) {
        let mut me = None;
        let mut ranks = self.ranks.subscribe();
        let gone = |all: &Ranks| all.is_empty() && *self.hung_up.lock().unwrap();
        loop {
            let message = tokio::select! {
                message = messages.next() => message,
                _ = ranks.wait_for(gone) => break,
            };
            let Some(Ok(message)) = message else { break };
            let message = message.message.unwrap();
            if let Message::Hello(hello) = &message {
                let group = hello.group.clone().expect("only ranks attach");
                let id = RankId {
                    rank: group.rank as usize,
                    incarnation: group.incarnation,
                };
                me = Some(id);
                let attached = Attached {
                    member: Member {
                        id,
                        exchange: group.exchange_address.clone(),
                        grpc: hello.address.clone(),
                    },
                    hello: group,
                    report: GroupReport::default(),
                    outside: true,
                    chosen: 0,
                    computed: 0,
                    answers: answers.clone(),
                };
                self.ranks.send_modify(|all| {
                    all.insert(id.rank, attached);
                });
                let message = Some(Answer::Admitted(Admitted {}));
                let _ = answers.send(Ok(RouterMessage { message })).await;
                self.broadcast().await;
                continue;
            }
            let id = me.expect("a hello comes first");
            self.ranks.send_modify(|all| {
                let Some(attached) = all.get_mut(&id.rank).filter(|a| a.member.id == id) else {
                    return;
                };
                match message {
                    Message::GroupReport(report) => attached.report = report,
                    Message::ExpertCounts(counts) => {
                        attached.chosen = counts.chosen.iter().sum();
                        attached.computed = counts.computed.iter().sum();
                    }
                    Message::Snapshot(snapshot) => {
                        attached.outside = snapshot.load.unwrap().outside;
                    }
                    Message::Delta(delta) => attached.outside = delta.load.unwrap().outside,
                    Message::Draining(_) | Message::Hello(_) => {}
                }
            });
        }
        if let Some(id) = me {
            self.ranks.send_modify(|all| {
                if all.get(&id.rank).is_some_and(|a| a.member.id == id) {
                    all.remove(&id.rank);
                }
            });
        }
    }
}

fn wire_id(id: RankId) -> WireId {
    WireId {
        rank: id.rank as u32,
        incarnation: id.incarnation,
    }
}

fn peer(attached: &Attached) -> GroupPeer {
    GroupPeer {
        id: Some(wire_id(attached.member.id)),
        exchange_address: attached.member.exchange.clone(),
        grpc_address: attached.member.grpc.clone(),
    }
}

#[tonic::async_trait]
impl Membership for GroupRouter {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<RouterMessage, Status>> + Send>>;

    async fn attach(
        &self,
        request: Request<Streaming<WorkerMessage>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        if *self.hung_up.lock().unwrap() {
            return Err(Status::unavailable("it is gone"));
        }
        let (answers, stream) = mpsc::channel(64);
        tokio::spawn(self.clone().hear(request.into_inner(), answers));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

/// Makes a worker rank `rank` of `ranks`.
pub fn join(
    worker: &mut WorkerConfig,
    router: &GroupRouter,
    rank: usize,
    ranks: usize,
    redundant: usize,
) {
    worker.routers = vec![router.address.to_string()];
    worker.group = Some(GroupConfig {
        redundant_experts: redundant,
        ..GroupConfig::new("test", rank, ranks)
    });
}

/// Starts rank `rank` of `ranks`.
pub async fn rank(router: &GroupRouter, rank: usize, ranks: usize, redundant: usize) -> Running {
    rank_that_drains(router, rank, ranks, redundant, worker_config().drain).await
}

/// The same, with this long to finish when it is told to stop.
pub async fn rank_that_drains(
    router: &GroupRouter,
    rank: usize,
    ranks: usize,
    redundant: usize,
    drain: Duration,
) -> Running {
    let mut config = decode_config();
    config.worker.drain = drain;
    join(&mut config.worker, router, rank, ranks, redundant);
    Running::decode(config).await
}

/// A router and all ranks of a group, linked.
pub async fn group(ranks: usize, redundant: usize) -> (GroupRouter, Vec<Running>, Shape) {
    let router = GroupRouter::start().await;
    let mut running = Vec::new();
    for number in 0..ranks {
        running.push(rank(&router, number, ranks, redundant).await);
    }
    let attached = router.until_linked(ranks).await;
    (router, running, shape(&attached[&0].hello))
}

pub fn shape(hello: &GroupRank) -> Shape {
    Shape {
        layers: hello.layers as usize,
        experts: hello.experts as usize,
        ranks: hello.ranks as usize,
        slots: hello.slots as usize,
    }
}

/// Another placement for each `seed`: the experts dealt in an order of its own in every layer.
pub fn placement(shape: Shape, seed: u64) -> Placement {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let slots = shape.layer_slots();
    let mut table = Vec::with_capacity(shape.layers * slots);
    for _ in 0..shape.layers {
        let mut layer: Vec<u32> = (0..shape.experts as u32).collect();
        layer.extend((shape.experts..slots).map(|_| random(shape.experts) as u32));
        for place in (1..slots).rev() {
            layer.swap(place, random(place + 1));
        }
        table.extend(layer);
    }
    Placement::new(shape, table).unwrap()
}

/// For something to happen that nothing tells of.
pub async fn a_moment() {
    tokio::time::sleep(Duration::from_millis(50)).await;
}

pub const COMPLETE: &str = "result=\"complete\"";
pub const DROPPED: &str = "result=\"dropped\"";
pub const CHECKPOINT: &str = "source=\"checkpoint\"";

/// Returns when some steps were taken.
pub async fn under_way(rank: &Running) {
    rank.until("group_steps_total", COMPLETE, |steps| steps > 10.0)
        .await;
}

/// What a worker on its own says to each of `requests`.
pub async fn alone(requests: &[wire::GenerateRequest]) -> Vec<Vec<wire::Token>> {
    let worker = Running::decode(decode_config()).await;
    let mut client = worker.client().await;
    let mut expected = Vec::new();
    for request in requests {
        expected.push(tokens(
            &generate(&mut client, request.clone()).await.unwrap(),
        ));
    }
    expected
}

pub fn requests(count: usize, max_tokens: usize) -> Vec<wire::GenerateRequest> {
    (0..count)
        .map(|i| request(prompt(20 + 37 * i, i as u32), &sampling(max_tokens)))
        .collect()
}

pub type Generated = tokio::task::JoinHandle<Result<Vec<wire::GenerateUpdate>, tonic::Status>>;

/// Sends each request to a rank, in turns.
pub async fn spread(ranks: &[Running], requests: &[wire::GenerateRequest]) -> Vec<Generated> {
    let mut answers = Vec::new();
    for (i, request) in requests.iter().enumerate() {
        let mut client = ranks[i % ranks.len()].client().await;
        let request = request.clone();
        answers.push(tokio::spawn(
            async move { generate(&mut client, request).await },
        ));
    }
    answers
}

pub async fn assert_all(answers: Vec<Generated>, expected: &[Vec<wire::Token>]) {
    for (i, (answer, expected)) in answers.into_iter().zip(expected).enumerate() {
        let said = tokens(&answer.await.unwrap().unwrap());
        // Two whole outputs side by side tell nobody anything.
        let differ = said.iter().zip(expected).position(|(a, b)| a != b);
        if let Some(at) = differ {
            assert_eq!(said[at], expected[at], "request {i}, token {at}");
        }
        assert_eq!(said.len(), expected.len(), "request {i}");
    }
}
