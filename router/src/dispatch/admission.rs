//! How many sequences are with the workers at once, and who waits for a turn.
//!
//! First come, first served: a request that does not fit yet is not overtaken by a smaller one, so
//! none starves. What cannot even wait is refused at once, with a guess of when to come back.

pub mod queue;
mod rate;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::api::RequestError;
use crate::config::AdmissionLimits;
use crate::metrics::Metrics;
pub use queue::Full;
use queue::{Decision, Entry, Queue, WaiterId};

/// The gate that all requests pass. Cheap to clone.
#[derive(Clone)]
pub struct Admission {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    metrics: Arc<Metrics>,
}

struct State {
    queue: Queue,
    waiters: HashMap<WaiterId, oneshot::Sender<Permit>>,
}

impl Admission {
    pub fn new(limits: AdmissionLimits, metrics: Arc<Metrics>) -> Admission {
        metrics.limits(&limits);
        let state = Mutex::new(State {
            queue: Queue::new(limits),
            waiters: HashMap::new(),
        });
        Admission {
            shared: Arc::new(Shared { state, metrics }),
        }
    }

    /// Sequences that wait for a turn.
    pub fn waiting(&self) -> u32 {
        self.shared.state.lock().queue.waiting()
    }

    /// Asks for a turn for `sequences` of `prompt_tokens` in all.
    ///
    /// # Errors
    /// `Overloaded`, at once, if the queue is full.
    pub fn ask(&self, sequences: u32, prompt_tokens: u64) -> Result<Turn, RequestError> {
        self.shared.metrics.asked(sequences);
        let mut state = self.shared.state.lock();
        let turn = match state.queue.ask(
            Entry {
                sequences,
                prompt_tokens,
            },
            Instant::now(),
        ) {
            Decision::Admitted { weight } => Turn::Now(Permit {
                weight,
                shared: Arc::clone(&self.shared),
            }),
            Decision::Queued(id) => {
                let (sender, permit) = oneshot::channel();
                state.waiters.insert(id, sender);
                Turn::Later {
                    permit,
                    _place: Place {
                        id,
                        shared: Arc::clone(&self.shared),
                    },
                }
            }
            Decision::Refused {
                full,
                retry_after_seconds,
            } => {
                self.shared.metrics.admission_refused(full);
                return Err(RequestError::Overloaded {
                    what: full.as_str(),
                    retry_after_seconds,
                });
            }
        };
        self.shared.publish(&state);
        Ok(turn)
    }
}

/// A place in the queue, or a turn that has come. Dropping it gives either up.
pub enum Turn {
    Now(Permit),
    Later {
        permit: oneshot::Receiver<Permit>,
        _place: Place,
    },
}

impl Turn {
    /// Waits for the turn.
    ///
    /// # Errors
    /// `Deadline` if it did not come in time.
    pub async fn come(self, deadline: Option<Instant>) -> Result<Permit, RequestError> {
        let (permit, _place) = match self {
            Turn::Now(permit) => return Ok(permit),
            Turn::Later { permit, _place } => (permit, _place),
        };
        let lost = |_| RequestError::Internal {
            message: "the admission queue lost a place".into(),
        };
        match deadline {
            None => permit.await.map_err(lost),
            Some(at) => match tokio::time::timeout_at(at.into(), permit).await {
                Ok(permit) => permit.map_err(lost),
                Err(_) => Err(RequestError::Deadline {
                    stage: "while the request waited for a turn",
                }),
            },
        }
    }
}

impl Shared {
    /// Hands turns to those whose turn it is. A waiter that is gone by now drops its permit, which
    /// comes back here: never called with the lock held.
    fn grant(self: &Arc<Self>, granted: Vec<(WaiterId, u32)>) {
        for (id, weight) in granted {
            let waiter = self.state.lock().waiters.remove(&id);
            let permit = Permit {
                weight,
                shared: Arc::clone(self),
            };
            if let Some(waiter) = waiter {
                drop(waiter.send(permit));
            }
        }
    }

    fn publish(&self, state: &State) {
        self.metrics
            .admission(state.queue.running(), state.queue.waiting());
    }
}

/// A turn. Dropping it lets others in.
pub struct Permit {
    weight: u32,
    shared: Arc<Shared>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let granted = {
            let mut state = self.shared.state.lock();
            let granted = state.queue.leave(self.weight, Instant::now());
            self.shared.publish(&state);
            granted
        };
        self.shared.grant(granted);
    }
}

/// Dropping it gives up a place in the queue, if the turn has not come.
pub struct Place {
    id: WaiterId,
    shared: Arc<Shared>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let granted = {
            let mut state = self.shared.state.lock();
            state.waiters.remove(&self.id);
            let granted = state.queue.abandon(self.id);
            self.shared.publish(&state);
            granted
        };
        self.shared.grant(granted);
    }
}

#[cfg(test)]
mod tests;
