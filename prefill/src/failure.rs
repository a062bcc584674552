//! Why a prefill failed, and what the decode worker is told.

use tonic::Status;

use millrace_engine::Reject;
use millrace_transfer::{OpenError, RegionError, WriteError};
use millrace_worker::{
    Mismatch,
    engine::SubmitError,
    wire::{InvalidField, Problem},
};

#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Invalid(#[from] InvalidField),
    #[error(transparent)]
    Incompatible(#[from] Mismatch),
    #[error("this worker is shutting down")]
    Stopped,
    #[error("the expert-parallel group goes on without this rank")]
    Evicted,
    #[error("this rank is not in its expert-parallel group's epoch; another rank may be")]
    Outside,
    #[error("the decode worker's pages cannot be reached: {0}")]
    Open(#[from] OpenError),
    #[error("pages could not be delivered: {0}")]
    Write(#[from] WriteError),
    /// Logits that are not finite.
    #[error("{0}")]
    Computation(String),
    #[error("the engine broke its contract: {0}")]
    Engine(&'static str),
    #[error(transparent)]
    Page(#[from] RegionError),
    #[error("a transfer thread is gone; the log says why")]
    TransferGone,
}

impl From<SubmitError> for Failure {
    fn from(error: SubmitError) -> Failure {
        match error {
            SubmitError::Stopped => Failure::Stopped,
            SubmitError::Outside => Failure::Outside,
            SubmitError::Rejected(reject) => {
                let field = match reject {
                    Reject::NothingToGenerate { .. } => "sampling.max_tokens",
                    _ => "token_ids",
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
            Failure::Incompatible(_) | Failure::Open(OpenError::Mismatch { .. }) => {
                Status::failed_precondition(message)
            }
            Failure::Stopped
            | Failure::Evicted
            | Failure::Outside
            | Failure::Open(_)
            | Failure::Write(_) => Status::unavailable(message),
            Failure::Computation(_)
            | Failure::Engine(_)
            | Failure::Page(_)
            | Failure::TransferGone => Status::internal(message),
        }
    }
}
