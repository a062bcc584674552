//! Errors as gRPC statuses, with the details that clients can act on (google.rpc).

use std::collections::HashMap;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::super::auth::Refused;
use crate::api::RequestError;

/// The `domain` of every ErrorInfo.
const DOMAIN: &str = "millrace";

/// Code, message, ErrorInfo, and what helps with it: the field to mend, or when to try again.
pub(in super::super) fn from_error(error: RequestError) -> Status {
    let message = error.to_string();
    let mut details = ErrorDetails::new();
    let mut metadata = HashMap::new();
    let (code, reason) = match error {
        RequestError::Invalid { param, .. } => {
            if let Some(field) = param {
                details.add_bad_request_violation(field, message.as_str());
            }
            (Code::InvalidArgument, "INVALID_REQUEST")
        }
        RequestError::UnknownModel { model, served } => {
            metadata.extend([("model".to_owned(), model), ("served".to_owned(), served)]);
            (Code::NotFound, "MODEL_NOT_FOUND")
        }
        RequestError::Overloaded {
            retry_after_seconds,
            ..
        } => {
            details.set_retry_info(Some(Duration::from_secs(retry_after_seconds.into())));
            (Code::ResourceExhausted, "OVERLOADED")
        }
        RequestError::Unavailable { .. } => (Code::Unavailable, "NO_WORKERS"),
        RequestError::Deadline { .. } => (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"),
        RequestError::Internal { .. } => (Code::Internal, "INTERNAL"),
    };
    details.set_error_info(reason, DOMAIN, metadata);
    Status::with_error_details(code, message, details)
}

/// INVALID_ARGUMENT for something that is wrong on the wire already.
pub(in super::super) fn invalid(field: &str, message: impl Into<String>) -> Status {
    let message = message.into();
    let mut details = ErrorDetails::with_bad_request_violation(field, message.as_str());
    details.set_error_info("INVALID_REQUEST", DOMAIN, HashMap::new());
    Status::with_error_details(Code::InvalidArgument, message, details)
}

/// UNAUTHENTICATED: no API key, or a wrong one.
pub(super) fn unauthenticated(refused: Refused) -> Status {
    let reason = match refused {
        Refused::Missing => "API_KEY_MISSING",
        Refused::Malformed | Refused::Unknown => "API_KEY_INVALID",
    };
    let details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
    Status::with_error_details(Code::Unauthenticated, refused.to_string(), details)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_details() {
        let status = from_error(RequestError::Invalid {
            message: "n must be at least 1".into(),
            param: Some("n"),
        });
        assert_eq!(
            (status.code(), status.message()),
            (Code::InvalidArgument, "n must be at least 1")
        );
        assert_eq!(
            status.get_details_bad_request().unwrap().field_violations[0].field,
            "n"
        );
        let status = from_error(RequestError::Overloaded {
            what: "the queue is full",
            retry_after_seconds: 2,
        });
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(
            status.get_details_retry_info().unwrap().retry_delay,
            Some(Duration::from_secs(2))
        );
        assert_eq!(
            status.get_details_error_info().unwrap().reason,
            "OVERLOADED"
        );
        let status = from_error(RequestError::UnknownModel {
            model: "x".into(),
            served: "y".into(),
        });
        assert_eq!(status.code(), Code::NotFound);
        assert_eq!(
            status.get_details_error_info().unwrap().metadata["served"],
            "y"
        );
        for (error, code) in [
            (
                RequestError::Unavailable {
                    message: String::new(),
                },
                Code::Unavailable,
            ),
            (
                RequestError::Deadline {
                    stage: "while decoding",
                },
                Code::DeadlineExceeded,
            ),
            (
                RequestError::Internal {
                    message: String::new(),
                },
                Code::Internal,
            ),
        ] {
            assert_eq!(from_error(error).code(), code);
        }
    }
}
