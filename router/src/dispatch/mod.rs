//! From a tokenised sequence to its generated tokens: admission, pairing, calling the workers, and
//! hiding their failures.
//!
//! [`pairing`] and the admission queue are plain functions over plain state; [`replay`] is the one
//! place that decides what happens next to a sequence.

pub mod admission;
mod attempt;
mod failure;
mod job;
pub mod pairing;
mod patience;
mod placement;
mod replay;
mod wire;

use std::sync::Arc;

use futures::Stream;

pub use admission::{Admission, Full as AdmissionFull, Permit, Turn};
pub use failure::{ERROR_DOMAIN, PREFILL_FAILED, Reason as ReplayReason};
pub use job::{Candidate, End, First, Job, PromptToken, Sampling, Timing, Token, Update};

use crate::api::RequestError;
use crate::config::RetryLimits;
use crate::fleet::roster::Roster;
use crate::metrics::Metrics;

/// Runs sequences on the workers of a roster.
pub struct Dispatcher {
    roster: Arc<Roster>,
    limits: RetryLimits,
    metrics: Arc<Metrics>,
}

impl Dispatcher {
    pub fn new(roster: Arc<Roster>, limits: RetryLimits, metrics: Arc<Metrics>) -> Arc<Dispatcher> {
        Arc::new(Dispatcher {
            roster,
            limits,
            metrics,
        })
    }

    /// The updates of one sequence, to the one with an `end` or to an error. Nothing is sent before
    /// the stream is polled; dropping it cancels the sequence on the workers.
    pub fn run(
        self: &Arc<Self>,
        job: Job,
    ) -> impl Stream<Item = Result<Update, RequestError>> + Send + use<> {
        replay::run(Arc::clone(self), job)
    }

    /// A sequence would find workers.
    pub fn is_ready(&self) -> bool {
        self.roster.is_ready()
    }
}
