//! The service that an operator watches: the fleet as this router sees it.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{Stream, stream};
use millrace_proto::worker::v1 as proto;
use proto::fleet_server::{Fleet, FleetServer};
use tonic::{Request, Response, Status};

use crate::experts::view::Summary;
use crate::fleet::Role;
use crate::metrics::Distribution;
use crate::overview::Overview;
use crate::overview::view::{FleetView, RefusedView, WorkerView};

/// The least time between two views.
const PAUSE: Duration = Duration::from_millis(250);
/// The most: a watcher that hears nothing for longer takes the router for dead.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// `millrace.worker.v1.Fleet`.
pub fn service(overview: Arc<Overview>) -> FleetServer<impl Fleet> {
    FleetServer::new(FleetService { overview })
}

struct FleetService {
    overview: Arc<Overview>,
}

#[tonic::async_trait]
impl Fleet for FleetService {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<proto::FleetView, Status>> + Send>>;

    async fn watch(
        &self,
        _: Request<proto::WatchFleet>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let watcher = Watcher {
            overview: Arc::clone(&self.overview),
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
    overview: Arc<Overview>,
    /// What was shown last, and when; without the traffic, which is always news and seldom urgent.
    last: Option<(FleetView, Instant)>,
}

impl Watcher {
    async fn next(mut self) -> Option<(Result<proto::FleetView, Status>, Watcher)> {
        loop {
            if self.last.is_some() {
                tokio::time::sleep(PAUSE).await;
            }
            let (fleet, now) = (self.overview.fleet(), Instant::now());
            let is_news = |(last, at): &(FleetView, Instant)| {
                *last != fleet || now.duration_since(*at) >= HEARTBEAT
            };
            if self.last.as_ref().is_none_or(is_news) {
                self.last = Some((fleet.clone(), now));
                let view = view(fleet, traffic(&self.overview));
                return Some((Ok(view), self));
            }
        }
    }
}

fn view(fleet: FleetView, traffic: proto::Traffic) -> proto::FleetView {
    proto::FleetView {
        workers: fleet.workers.into_iter().map(worker).collect(),
        refused: fleet.refused.into_iter().map(refused).collect(),
        groups: fleet.groups.into_iter().map(group).collect(),
        waiting: fleet.waiting.into(),
        leading: fleet.leading,
        served_name: fleet.model,
        traffic: Some(traffic),
    }
}

fn traffic(overview: &Overview) -> proto::Traffic {
    let (incarnation, seconds, sums) = overview.traffic();
    proto::Traffic {
        incarnation,
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

fn distribution(seen: Distribution) -> proto::Distribution {
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

fn worker(worker: WorkerView) -> proto::FleetWorker {
    let (group, rank) = worker.group.unwrap_or_default();
    proto::FleetWorker {
        worker_id: worker.worker_id,
        role: role(worker.role).into(),
        revision: worker.revision,
        address: worker.address,
        available: worker.unavailable.is_none(),
        draining: worker.draining,
        unavailable_reason: worker.unavailable.unwrap_or_default(),
        running: worker.running,
        waiting: worker.waiting,
        group,
        rank: rank as u32,
        max_running: worker.max_running,
        waiting_tokens: worker.waiting_tokens,
        kv_pages: worker.kv_pages,
        free_pages: worker.free_pages,
    }
}

fn refused(worker: RefusedView) -> proto::RefusedWorker {
    proto::RefusedWorker {
        worker_id: worker.worker_id,
        role: worker.role.map_or(proto::Role::Unspecified, role).into(),
        reason: worker.reason,
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
