//! How busy workers were, added up over looks.

use crate::Role;
use crate::observation::{Observation, Worker};

/// Tokens of a page of the cache.
const PAGE_TOKENS: f64 = 64.0;

/// Sums over looks and over the workers that took requests then.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Fleet {
    /// Prefill workers seen, and how many of these had something to do.
    pub prefill_seen: f64,
    pub prefill_busy: f64,
    pub decode_seen: f64,
    /// Sequences that decode. Workers count those that a peer prefills for them among the running ones.
    pub decoding: f64,
    /// Tokens in caches that are in use, and the sequences that use or wait for them.
    pub kv_tokens: f64,
    pub kv_sequences: f64,
    /// Of all looks the least that waited: what piled up and stays.
    /// Sequences without a turn, at routers and at decode workers.
    pub turns_waiting: Option<f64>,
    /// Prompt tokens at prefill workers.
    pub prompts_waiting: Option<f64>,
}

impl Fleet {
    pub fn of(observation: &Observation) -> Fleet {
        let mut fleet = Fleet::default();
        let (mut prompt_tokens, mut prefilling) = (0.0, 0.0);
        let mut turns: f64 = observation.routers.iter().map(|r| r.waiting as f64).sum();
        for worker in observation.workers.iter().filter(|w| serves(w)) {
            let running = f64::from(worker.running);
            match worker.role {
                Role::Prefill => {
                    fleet.prefill_seen += 1.0;
                    if worker.running > 0 || worker.waiting > 0 {
                        fleet.prefill_busy += 1.0;
                    }
                    prompt_tokens += worker.waiting_tokens as f64;
                    prefilling += running + f64::from(worker.waiting);
                }
                Role::Decode => {
                    fleet.decode_seen += 1.0;
                    fleet.decoding += running;
                    turns += f64::from(worker.waiting);
                    if worker.kv_pages > 0 {
                        let used = worker.kv_pages.saturating_sub(worker.free_pages);
                        fleet.kv_tokens += used as f64 * PAGE_TOKENS;
                        fleet.kv_sequences += running;
                    }
                }
            }
        }
        fleet.decoding = (fleet.decoding - prefilling).max(0.0);
        fleet.turns_waiting = Some(turns);
        fleet.prompts_waiting = Some(prompt_tokens);
        fleet
    }

    pub fn add(&mut self, other: &Fleet) {
        self.prefill_seen += other.prefill_seen;
        self.prefill_busy += other.prefill_busy;
        self.decode_seen += other.decode_seen;
        self.decoding += other.decoding;
        self.kv_tokens += other.kv_tokens;
        self.kv_sequences += other.kv_sequences;
        self.turns_waiting = least(self.turns_waiting, other.turns_waiting);
        self.prompts_waiting = least(self.prompts_waiting, other.prompts_waiting);
    }
}

fn least(one: Option<f64>, two: Option<f64>) -> Option<f64> {
    match (one, two) {
        (Some(one), Some(two)) => Some(one.min(two)),
        _ => one.or(two),
    }
}

fn serves(worker: &Worker) -> bool {
    worker.available && !worker.draining
}

/// What one decode worker can hold, mean over those that say so: sequences a step, tokens of cache.
pub fn capacity(observation: &Observation) -> (Option<f64>, Option<f64>) {
    let decode = || {
        let workers = observation.workers.iter();
        workers.filter(|w| w.role == Role::Decode && serves(w))
    };
    let mean = |of: fn(&Worker) -> f64| {
        let told: Vec<f64> = decode().map(of).filter(|&value| value > 0.0).collect();
        (!told.is_empty()).then(|| told.iter().sum::<f64>() / told.len() as f64)
    };
    (
        mean(|worker| f64::from(worker.max_running)),
        mean(|worker| worker.kv_pages as f64 * PAGE_TOKENS),
    )
}
