//! What a failed attempt means for the sequence: whose fault it was, and who should try next.

use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::api::RequestError;

/// Decode workers say so in `google.rpc.ErrorInfo` (domain [`ERROR_DOMAIN`]) when not they but
/// the prefill worker they were given has failed.
pub const PREFILL_FAILED: &str = "PREFILL_FAILED";
pub const ERROR_DOMAIN: &str = "millrace";

/// Why an attempt ended without finishing its sequence.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Failure {
    /// The prefill worker failed; the decode worker is fine.
    #[error("{message}")]
    Prefill { message: String },
    /// The decode worker failed, and another may succeed.
    #[error("{}: {message}", reason.label())]
    Decode { reason: Reason, message: String },
    /// No worker would answer otherwise.
    #[error(transparent)]
    Final(RequestError),
}

impl Failure {
    /// For traces.
    pub fn label(&self) -> &'static str {
        match self {
            Failure::Prefill { .. } => "prefill",
            Failure::Decode { reason, .. } => reason.label(),
            Failure::Final(error) => error.label(),
        }
    }

    /// The same failure, of a call that was never accepted.
    pub fn before_start(self) -> Failure {
        match self {
            Failure::Decode {
                reason: Reason::Unavailable,
                message,
            } => Failure::Decode {
                reason: Reason::Refused,
                message,
            },
            other => other,
        }
    }

    /// What the client is told when this was the last of too many attempts.
    pub fn after(self, attempts: u32) -> RequestError {
        match self {
            Failure::Final(error) => error,
            Failure::Decode {
                reason: Reason::Overloaded,
                ..
            } => RequestError::Overloaded {
                what: "all workers are full",
                retry_after_seconds: 1,
            },
            last => RequestError::Unavailable {
                message: format!("{attempts} attempts failed; the last: {last}"),
            },
        }
    }
}

/// A label of `router_replays_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It could not be reached or is shutting down: it never had the sequence.
    Refused,
    /// Its connection broke, or it shut down, while it had the sequence.
    Unavailable,
    /// It is a rank that hangs or was cut off: its group goes on without it.
    Evicted,
    /// The stream ended before the sequence did.
    Truncated,
    /// It has no room.
    Overloaded,
    /// It reported an error of its own.
    Error,
}

impl Reason {
    pub const ALL: [Reason; 6] = [
        Reason::Refused,
        Reason::Unavailable,
        Reason::Evicted,
        Reason::Truncated,
        Reason::Overloaded,
        Reason::Error,
    ];

    pub fn label(self) -> &'static str {
        match self {
            Reason::Refused => "decode_refused",
            Reason::Unavailable => "decode_unavailable",
            Reason::Evicted => "decode_evicted",
            Reason::Truncated => "decode_truncated",
            Reason::Overloaded => "decode_overloaded",
            Reason::Error => "decode_error",
        }
    }
}

/// Reads a decode worker's status.
pub fn classify(status: &Status) -> Failure {
    let message = status.message().to_owned();
    let decode = |reason| Failure::Decode {
        reason,
        message: message.clone(),
    };
    match status.code() {
        Code::Unavailable if is_prefill_failure(status) => Failure::Prefill { message },
        Code::Unavailable => decode(Reason::Unavailable),
        // The router never cancels an attempt it still listens to: the worker's side did, as it
        // does when it shuts down.
        Code::Cancelled => decode(Reason::Unavailable),
        Code::ResourceExhausted => decode(Reason::Overloaded),
        Code::InvalidArgument | Code::OutOfRange => Failure::Final(RequestError::Invalid {
            message,
            param: None,
        }),
        // Our own deadline, which the worker was told: it was a little faster.
        Code::DeadlineExceeded => Failure::Final(RequestError::Deadline {
            stage: "at the workers",
        }),
        // Only what failed on this side has a source: the connection broke, whatever code that got.
        _ if std::error::Error::source(status).is_some() => decode(Reason::Unavailable),
        _ => decode(Reason::Error),
    }
}

fn is_prefill_failure(status: &Status) -> bool {
    let info = status.get_details_error_info();
    info.is_some_and(|info| info.domain == ERROR_DOMAIN && info.reason == PREFILL_FAILED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use tonic_types::ErrorDetails;

    #[test]
    fn only_the_marked_unavailable_is_the_prefill_workers() {
        let with = |reason: &str, domain: &str| {
            let details = ErrorDetails::with_error_info(reason, domain, HashMap::new());
            Status::with_error_details(Code::Unavailable, "gone", details)
        };
        assert!(matches!(
            classify(&with(PREFILL_FAILED, ERROR_DOMAIN)),
            Failure::Prefill { .. }
        ));
        for other in [
            with("OTHER", ERROR_DOMAIN),
            with(PREFILL_FAILED, "x"),
            Status::unavailable(""),
        ] {
            let failure = classify(&other);
            assert!(
                matches!(
                    failure,
                    Failure::Decode {
                        reason: Reason::Unavailable,
                        ..
                    }
                ),
                "{failure:?}"
            );
        }
    }

    #[test]
    fn a_requests_own_fault_is_final() {
        let failure = classify(&Status::invalid_argument("token id 9 is too large"));
        let Failure::Final(RequestError::Invalid { message, .. }) = failure else {
            panic!()
        };
        assert_eq!(message, "token id 9 is too large");
    }
}
