//! The service that an operator watches: the fleet as this router sees it.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{Stream, stream};
use millrace_proto::worker::v1 as proto;
use proto::fleet_server::{Fleet, FleetServer};
use tonic::{Request, Response, Status};

use crate::dispatch::pairing::Reasons;
use crate::experts::{Groups, Summary};
use crate::fleet::roster::Roster;
use crate::fleet::{RefusedWorker, Role, Worker};
use crate::frontend::Frontend;
use crate::metrics::{self, Metrics};

/// The least time between two views.
const PAUSE: Duration = Duration::from_millis(250);
/// The most: a watcher that hears nothing for longer takes the router for dead.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// `millrace.worker.v1.Fleet`.
pub fn service(
    frontend: Frontend,
    roster: Arc<Roster>,
    groups: Arc<Groups>,
    metrics: Arc<Metrics>,
) -> FleetServer<impl Fleet> {
    let names = frontend.models().into_iter().map(|card| card.name);
    let view = View {
        served_name: names.into_iter().next().unwrap_or_default(),
        frontend,
        roster,
        groups,
        metrics,
        incarnation: rand::random(),
        started: Instant::now(),
    };
    FleetServer::new(FleetService {
        view: Arc::new(view),
    })
}

struct FleetService {
    view: Arc<View>,
}

#[tonic::async_trait]
impl Fleet for FleetService {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<proto::FleetView, Status>> + Send>>;

    async fn watch(
        &self,
        _: Request<proto::WatchFleet>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let watcher = Watcher {
            view: Arc::clone(&self.view),
            last: None,
        };
        Ok(Response::new(Box::pin(stream::unfold(
            watcher,
            Watcher::next,
        ))))
    }
}

/// One stream.
struct Watcher {
    view: Arc<View>,
    /// What was shown last, and when; without the traffic, which is always news and seldom urgent.
    last: Option<(proto::FleetView, Instant)>,
}

impl Watcher {
    async fn next(mut self) -> Option<(Result<proto::FleetView, Status>, Watcher)> {
        loop {
            if self.last.is_some() {
                tokio::time::sleep(PAUSE).await;
            }
            let (view, now) = (self.view.now(), Instant::now());
            let is_news = |(last, at): &(proto::FleetView, Instant)| {
                *last != view || now.duration_since(*at) >= HEARTBEAT
            };
            if self.last.as_ref().is_none_or(is_news) {
                self.last = Some((view.clone(), now));
                let traffic = Some(self.view.traffic());
                return Some((Ok(proto::FleetView { traffic, ..view }), self));
            }
        }
    }
}

struct View {
    frontend: Frontend,
    roster: Arc<Roster>,
    groups: Arc<Groups>,
    metrics: Arc<Metrics>,
    served_name: String,
    /// Random for each life of a router.
    incarnation: u64,
    started: Instant,
}

impl View {
    /// All but the traffic.
    fn now(&self) -> proto::FleetView {
        let (workers, refused) = {
            let state = self.roster.lock();
            let reasons = Reasons::of(&state.fleet);
            let all = Role::ALL
                .into_iter()
                .flat_map(|role| state.fleet.workers(role));
            let workers = all.map(|(_, w)| worker(w, reasons.against(w))).collect();
            let refused = state.refused.recent(Instant::now()).map(refused).collect();
            (workers, refused)
        };
        proto::FleetView {
            workers,
            refused,
            groups: self.groups.summaries().into_iter().map(group).collect(),
            waiting: self.frontend.waiting().into(),
            leading: self.groups.is_leading(),
            served_name: self.served_name.clone(),
            traffic: None,
        }
    }

    fn traffic(&self) -> proto::Traffic {
        let seconds = self.started.elapsed().as_secs_f64();
        let sums = self.metrics.traffic();
        proto::Traffic {
            incarnation: self.incarnation,
            seconds,
            arrived: sums.arrived,
            refused: sums.refused,
            prompt_tokens: sums.prompt_tokens,
            cached_prompt_tokens: sums.cached_prompt_tokens,
            generated_tokens: sums.generated_tokens,
            updates: sums.updates,
            queue_seconds: Some(distribution(sums.queue_seconds)),
            first_token_seconds: Some(distribution(sums.first_token_seconds)),
            inter_token_seconds: Some(distribution(sums.inter_token_seconds)),
            prompt_length: Some(distribution(sums.prompt_length)),
            generation_length: Some(distribution(sums.generation_length)),
        }
    }
}

fn distribution(seen: metrics::Distribution) -> proto::Distribution {
    proto::Distribution {
        bounds: seen.bounds,
        counts: seen.counts,
        sum: seen.sum,
    }
}

fn role(role: Role) -> proto::Role {
    match role {
        Role::Prefill => proto::Role::Prefill,
        Role::Decode => proto::Role::Decode,
    }
}

fn worker(worker: &Worker, reason: Option<String>) -> proto::FleetWorker {
    let (description, load) = (&worker.description, worker.load());
    let place = description.group.as_ref();
    proto::FleetWorker {
        worker_id: description.worker_id.clone(),
        role: role(description.role).into(),
        revision: description.revision.clone(),
        address: description.address.clone(),
        available: reason.is_none(),
        draining: worker.draining,
        unavailable_reason: reason.unwrap_or_default(),
        running: load.running,
        waiting: load.waiting,
        group: place.map(|place| place.group.clone()).unwrap_or_default(),
        rank: place.map_or(0, |place| place.member.id.rank as u32),
        max_running: description.max_running,
        waiting_tokens: load.waiting_tokens,
        kv_pages: description.kv_pages,
        free_pages: load.free_pages,
    }
}

fn refused(worker: &RefusedWorker) -> proto::RefusedWorker {
    proto::RefusedWorker {
        worker_id: worker.worker_id.clone(),
        role: worker.role.map_or(proto::Role::Unspecified, role).into(),
        reason: worker.reason.clone(),
    }
}

fn group(summary: Summary) -> proto::FleetGroup {
    proto::FleetGroup {
        group: summary.group,
        epoch: summary.epoch.unwrap_or(0),
        state: summary.state.as_str().into(),
        ranks: summary.ranks as u32,
        members: summary.members as u32,
        redundant_slots: summary.redundant_slots as u64,
        balancedness: summary.balancedness.map(|b| b as f32),
        staging_plan: summary.staging.unwrap_or(0),
    }
}
