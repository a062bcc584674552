//! What an autoscaler is told, as the operator would have it from the router's stream and the pools.

use millrace_autoscaler::observation::{Observation, Pool, Router, Worker};
use millrace_autoscaler::{ByRole, Role};
use millrace_router::fleet;

use super::World;
use crate::clock::seconds;

/// Midnight of a Monday.
const START_OF_RUN: u64 = 1_767_571_200;

impl World {
    pub(super) fn observe(&mut self) -> Observation {
        let now = self.now();
        let heard = self.router_up && now >= self.gap_until;
        self.tally.traffic.seconds = seconds(now - self.router_since);
        let router = Router {
            name: "router-0".to_owned(),
            waiting: u64::from(self.queue.waiting()),
            traffic: self.tally.traffic.clone(),
        };
        Observation {
            now: seconds(now),
            unix_seconds: START_OF_RUN + seconds(now) as u64,
            routers: if heard { vec![router] } else { Vec::new() },
            routers_expected: 1,
            workers: if heard { self.attached() } else { Vec::new() },
            pools: self.pools(),
            rollout: false,
        }
    }

    fn attached(&self) -> Vec<Worker> {
        let of = |role, as_seen: fleet::Role| {
            self.fleet.workers(as_seen).map(move |(_, worker)| {
                let load = worker.load();
                Worker {
                    role,
                    available: worker.is_available(),
                    draining: worker.draining,
                    running: load.running,
                    waiting: load.waiting,
                    max_running: worker.description.max_running,
                    waiting_tokens: load.waiting_tokens,
                    kv_pages: worker.description.kv_pages,
                    free_pages: load.free_pages,
                }
            })
        };
        let prefill = of(Role::Prefill, fleet::Role::Prefill);
        prefill
            .chain(of(Role::Decode, fleet::Role::Decode))
            .collect()
    }

    /// A replica is ready when all of its workers are attached.
    fn pools(&self) -> ByRole<Pool> {
        let mut pools = self.wanted.map(|_, &wanted| Pool {
            wanted,
            ..Pool::default()
        });
        for replica in self.replicas.iter().filter(|replica| !replica.gone) {
            let pool = pools.of_mut(replica.role);
            pool.existing += 1;
            let workers = &self.workers[replica.workers.clone()];
            let attached = workers.iter().all(|worker| worker.key.is_some());
            pool.ready += u32::from(attached && !replica.draining);
        }
        pools
    }
}
