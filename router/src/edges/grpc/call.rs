//! What a gRPC call says besides its message: its id and its deadline.

use std::time::{Duration, Instant};

use millrace_telemetry::traces::Parent;
use tonic::metadata::MetadataMap;

use super::super::request_id;
use crate::api::RequestOptions;

/// The caller's metadata, read once.
#[derive(Debug, Clone)]
pub(in super::super) struct Caller {
    /// `x-request-id` if it is usable, otherwise a new one.
    pub(in super::super) request_id: String,
    /// From `grpc-timeout`.
    pub(in super::super) deadline: Option<Instant>,
    pub(in super::super) trace: Parent,
}

impl Caller {
    pub(in super::super) fn of(metadata: &MetadataMap) -> Caller {
        let text = |key: &str| metadata.get(key).and_then(|value| value.to_str().ok());
        let timeout = text("grpc-timeout").and_then(parse_timeout);
        Caller {
            request_id: request_id::choose(text("x-request-id")),
            // A timeout of centuries is none.
            deadline: timeout.and_then(|timeout| Instant::now().checked_add(timeout)),
            trace: Parent::of(metadata.as_ref()),
        }
    }

    /// Options of one request. An id in the message wins over one in the metadata.
    pub(in super::super) fn options(&self, request_id: &str, cache_salt: String) -> RequestOptions {
        let request_id = if request_id::acceptable(request_id) {
            request_id.to_owned()
        } else {
            self.request_id.clone()
        };
        RequestOptions {
            request_id,
            cache_salt,
            deadline: self.deadline,
            trace: self.trace.clone(),
        }
    }
}

/// `grpc-timeout`: at most 8 digits and a unit (gRPC over HTTP/2).
fn parse_timeout(value: &str) -> Option<Duration> {
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|it| it.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 3600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts() {
        assert_eq!(parse_timeout("5S"), Some(Duration::from_secs(5)));
        assert_eq!(
            parse_timeout("99999999H"),
            Some(Duration::from_secs(99_999_999 * 3600))
        );
        assert_eq!(parse_timeout("20m"), Some(Duration::from_millis(20)));
        for bad in ["", "S", "5", "5s", "-5S", "+5S", "123456789S", "5é", "é"] {
            assert_eq!(parse_timeout(bad), None, "{bad}");
        }
    }

    #[test]
    fn ids() {
        let mut metadata = MetadataMap::new();
        metadata.insert("x-request-id", "from-header".parse().unwrap());
        metadata.insert("grpc-timeout", "1S".parse().unwrap());
        let caller = Caller::of(&metadata);
        assert_eq!(caller.options("own", String::new()).request_id, "own");
        assert_eq!(caller.options("", String::new()).request_id, "from-header");
        assert_eq!(
            caller.options("not usable", String::new()).request_id,
            "from-header"
        );
        assert!(caller.deadline.is_some());
        assert!(
            Caller::of(&MetadataMap::new())
                .request_id
                .starts_with("req-")
        );
    }
}
