//! Why a request ended without its last token, and what the router is told.
//!
//! UNAVAILABLE with the reason [`PREFILL_FAILED`]: another prefill worker may do, here. UNAVAILABLE
//! without it: this decode worker cannot go on, another can, from the tokens delivered so far.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use millrace_engine::Reject;
use millrace_transfer::GrantError;
use millrace_worker::{
    engine::SubmitError,
    wire::{InvalidField, Problem},
};

use crate::{lease::Incomplete, request::PrefillWorker};

/// `ErrorInfo.reason` of a request whose prefill worker failed. Nothing was generated: the router
/// tries another one (`metadata.worker_id` says which failed).
pub const PREFILL_FAILED: &str = "PREFILL_FAILED";
/// `ErrorInfo.domain`.
pub const DOMAIN: &str = "millrace";

#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Invalid(#[from] InvalidField),
    #[error("prefill worker {} at {}: {failure}", worker.id, worker.address)]
    Prefill {
        worker: PrefillWorker,
        failure: PrefillFailure,
    },
    #[error("the caller's deadline has passed")]
    Deadline,
    #[error("this worker is shutting down")]
    Stopped,
    #[error("the expert-parallel group goes on without this rank")]
    Evicted,
    #[error("this rank is not in its expert-parallel group's epoch; another rank may be")]
    Outside,
    #[error("pages cannot be put under a lease: {0}")]
    Lease(#[from] GrantError),
    /// Logits that are not finite.
    #[error("{0}")]
    Computation(String),
    #[error("the engine broke its contract: {0}")]
    Engine(&'static str),
}

#[derive(Debug, thiserror::Error)]
pub enum PrefillFailure {
    #[error("`{0}` is not a host:port")]
    Address(String),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("{:?}: {}", .0.code(), .0.message())]
    Call(Box<Status>),
    #[error("it answered without a first token")]
    NoToken,
    #[error("its first token {token} is not in the vocabulary of {vocab_size}")]
    UnknownToken { token: u32, vocab_size: usize },
    #[error(transparent)]
    Incomplete(#[from] Incomplete),
}

impl PrefillFailure {
    /// All of [`PrefillFailure::label`].
    pub const LABELS: [&str; 7] = [
        "address",
        "unavailable",
        "incompatible",
        "timeout",
        "error",
        "malformed",
        "incomplete",
    ];

    /// As a metric label.
    pub fn label(&self) -> &'static str {
        match self {
            PrefillFailure::Address(_) => "address",
            PrefillFailure::Timeout(_) => "timeout",
            PrefillFailure::Call(status) => match status.code() {
                Code::Unavailable => "unavailable",
                Code::FailedPrecondition => "incompatible",
                Code::DeadlineExceeded => "timeout",
                _ => "error",
            },
            PrefillFailure::NoToken | PrefillFailure::UnknownToken { .. } => "malformed",
            PrefillFailure::Incomplete(_) => "incomplete",
        }
    }
}

impl From<SubmitError> for Failure {
    fn from(error: SubmitError) -> Failure {
        match error {
            SubmitError::Stopped => Failure::Stopped,
            SubmitError::Outside => Failure::Outside,
            SubmitError::Rejected(reject) => {
                let field = match reject {
                    Reject::NothingToGenerate { .. } => "output_token_ids",
                    _ => "prompt_token_ids",
                };
                let problem = Problem::Rejected(reject);
                Failure::Invalid(InvalidField { field, problem })
            }
        }
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Status {
        let message = failure.to_string();
        match failure {
            Failure::Invalid(invalid) => invalid.into(),
            Failure::Prefill { worker, .. } => {
                let metadata = [("worker_id".to_string(), worker.id)];
                let details = ErrorDetails::with_error_info(PREFILL_FAILED, DOMAIN, metadata);
                Status::with_error_details(Code::Unavailable, message, details)
            }
            Failure::Deadline => Status::deadline_exceeded(message),
            Failure::Stopped | Failure::Evicted | Failure::Outside | Failure::Lease(_) => {
                Status::unavailable(message)
            }
            Failure::Computation(_) | Failure::Engine(_) => Status::internal(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_router_learns_which_prefill_worker_failed() {
        let worker = PrefillWorker {
            id: "prefill-1".to_string(),
            address: "10.0.0.1:9001".to_string(),
        };
        let failure = PrefillFailure::Timeout(Duration::from_secs(60));
        let status = Status::from(Failure::Prefill { worker, failure });
        assert_eq!(status.code(), Code::Unavailable);
        assert!(
            status.message().contains("prefill-1"),
            "{}",
            status.message()
        );
        let details = status.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!(
            (info.reason.as_str(), info.domain.as_str()),
            (PREFILL_FAILED, DOMAIN)
        );
        assert_eq!(info.metadata["worker_id"], "prefill-1");
    }

    #[test]
    fn a_rejected_request_is_the_callers_fault() {
        let reject = SubmitError::Rejected(Reject::TooLong {
            tokens: 9,
            max_model_len: 8,
        });
        let status = Status::from(Failure::from(reject));
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(
            status.message().starts_with("prompt_token_ids"),
            "{}",
            status.message()
        );
    }
}
