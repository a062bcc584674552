//! The fleet and its traffic as this router sees them: what an operator watches (`Fleet.Watch`), and
//! what `GET /fleet` shows to people.

pub mod view;

use std::sync::Arc;
use std::time::Instant;

use view::{FleetAnswer, FleetView, RefusedView, TrafficView, WorkerView};

use crate::dispatch::pairing::Reasons;
use crate::experts::Groups;
use crate::fleet::roster::Roster;
use crate::fleet::{RefusedWorker, Role, Worker};
use crate::frontend::Frontend;
use crate::metrics::{Metrics, Traffic};

/// Looks at a router's parts. Nothing is kept here but what tells one life of a router from another.
pub struct Overview {
    frontend: Frontend,
    roster: Arc<Roster>,
    groups: Arc<Groups>,
    metrics: Arc<Metrics>,
    model: String,
    /// Random for each life of a router.
    incarnation: u64,
    started: Instant,
}

impl Overview {
    pub fn new(
        frontend: Frontend,
        roster: Arc<Roster>,
        groups: Arc<Groups>,
        metrics: Arc<Metrics>,
    ) -> Overview {
        let names = frontend.models().into_iter().map(|card| card.name);
        Overview {
            model: names.into_iter().next().unwrap_or_default(),
            frontend,
            roster,
            groups,
            metrics,
            incarnation: rand::random(),
            started: Instant::now(),
        }
    }

    pub fn fleet(&self) -> FleetView {
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
        FleetView {
            model: self.model.clone(),
            leading: self.groups.is_leading(),
            waiting: self.frontend.waiting(),
            workers,
            refused,
            groups: self.groups.summaries(),
        }
    }

    /// Which life of a router this is, for how many seconds it has lasted, and what came in.
    pub fn traffic(&self) -> (u64, f64, Traffic) {
        let seconds = self.started.elapsed().as_secs_f64();
        (self.incarnation, seconds, self.metrics.traffic())
    }

    /// `GET /fleet`.
    pub fn answer(&self) -> FleetAnswer {
        let (incarnation, seconds, sums) = self.traffic();
        FleetAnswer {
            fleet: self.fleet(),
            traffic: TrafficView {
                incarnation: format!("{incarnation:016x}"),
                seconds,
                sums,
            },
        }
    }
}

fn worker(worker: &Worker, unavailable: Option<String>) -> WorkerView {
    let (description, load) = (&worker.description, worker.load());
    let place = description.group.as_ref();
    WorkerView {
        worker_id: description.worker_id.clone(),
        role: description.role,
        revision: description.revision.clone(),
        address: description.address.clone(),
        draining: worker.draining,
        unavailable,
        group: place.map(|place| (place.group.clone(), place.member.id.rank)),
        running: load.running,
        waiting: load.waiting,
        max_running: description.max_running,
        waiting_tokens: load.waiting_tokens,
        kv_pages: description.kv_pages,
        free_pages: load.free_pages,
    }
}

fn refused(worker: &RefusedWorker) -> RefusedView {
    RefusedView {
        worker_id: worker.worker_id.clone(),
        role: worker.role,
        reason: worker.reason.clone(),
    }
}
