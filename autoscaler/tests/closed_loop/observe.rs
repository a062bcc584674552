//! The fleet as its router and an operator see it.

use millrace_autoscaler::observation::{Distribution, Observation, Pool, Router, Traffic, Worker};
use millrace_autoscaler::{ByRole, Role};

use crate::counters::Buckets;
use crate::fleet::Fleet;

impl Fleet {
    pub fn observe(&mut self) -> Observation {
        for i in 0..self.decode.len() {
            self.progress(i);
            self.schedule_end(i);
        }
        let now = self.now;
        let mut workers = Vec::new();
        for w in self.prefill.iter().filter(|w| w.ready_at <= now) {
            workers.push(Worker {
                role: Role::Prefill,
                available: !w.draining,
                draining: w.draining,
                running: u32::from(!w.queue.is_empty()),
                waiting: (w.queue.len() as u32).saturating_sub(1),
                max_running: 0,
                waiting_tokens: w.tokens.max(0.0) as u64,
                kv_pages: 0,
                free_pages: 0,
            });
        }
        let pages = self.truth.model.kv_tokens / 64;
        for w in self.decode.iter().filter(|w| w.ready_at <= now) {
            workers.push(Worker {
                role: Role::Decode,
                available: !w.draining,
                draining: w.draining,
                // Those that are prefilled hold a place.
                running: w.held,
                waiting: 0,
                max_running: self.truth.model.max_running,
                waiting_tokens: 0,
                kv_pages: pages,
                free_pages: pages.saturating_sub((w.context / 64.0) as u64),
            });
        }
        let pool = |wanted, ready: &mut dyn Iterator<Item = bool>| {
            let all: Vec<bool> = ready.collect();
            Pool {
                wanted,
                ready: all.iter().filter(|&&ready| ready).count() as u32,
                existing: all.len() as u32,
            }
        };
        Observation {
            now,
            unix_seconds: now as u64,
            routers: vec![Router {
                name: "router-0".to_owned(),
                waiting: self.waiting.len() as u64,
                traffic: self.traffic(),
            }],
            routers_expected: 1,
            workers,
            pools: ByRole {
                prefill: pool(
                    self.wanted.prefill,
                    &mut self
                        .prefill
                        .iter()
                        .map(|w| w.ready_at <= now && !w.draining),
                ),
                decode: pool(
                    self.wanted.decode,
                    &mut self.decode.iter().map(|w| w.ready_at <= now && !w.draining),
                ),
            },
            rollout: false,
        }
    }

    fn traffic(&self) -> Traffic {
        let seen = &self.counters;
        let told = |d: &Buckets| Distribution {
            bounds: d.bounds.to_vec(),
            counts: d.counts.iter().map(|&count| count as u64).collect(),
            sum: d.sum,
        };
        Traffic {
            incarnation: self.incarnation,
            seconds: self.now - self.router_since,
            arrived: seen.arrived,
            refused: 0,
            prompt_tokens: seen.prompt_tokens as u64,
            cached_prompt_tokens: seen.cached_prompt_tokens as u64,
            generated_tokens: seen.generated_tokens as u64,
            updates: seen.updates as u64,
            queue_seconds: told(&seen.queue),
            first_token_seconds: told(&seen.ttft),
            inter_token_seconds: told(&seen.itl),
            prompt_length: told(&seen.prompts),
            generation_length: told(&seen.generations),
        }
    }
}
