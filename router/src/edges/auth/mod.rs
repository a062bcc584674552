//! Who may send requests: whoever has an API key, if any are configured.
//!
//! One middleware in front of each port. It lets pass what it is told is open, and nothing else without
//! a key, so that a route added later is guarded until somebody decides otherwise.

mod keys;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Version, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use futures::StreamExt as _;

pub use keys::{ApiKeys, KeyError};

use crate::metrics::{Edge, Metrics};

/// How much of a refused request's body is read, and for how long.
const DRAINED: usize = 1 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// Checks requests of one port. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Guard {
    keys: Arc<ApiKeys>,
    metrics: Arc<Metrics>,
}

/// Why a request may not pass. What a client is told is the port's to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("this server needs an API key; send it as `Authorization: Bearer KEY`")]
    Missing,
    #[error("the Authorization header is not of the form `Bearer KEY`")]
    Malformed,
    #[error("the API key is not one of this server's; ask its operator for another")]
    Unknown,
}

impl Refused {
    fn label(self) -> &'static str {
        match self {
            Refused::Missing => "missing",
            Refused::Malformed => "malformed",
            Refused::Unknown => "unknown",
        }
    }
}

/// How a port is guarded.
#[derive(Clone, Copy)]
pub(super) struct Policy {
    pub(super) edge: Edge,
    /// Paths that need no key.
    pub(super) is_open: fn(&str) -> bool,
    pub(super) refuse: fn(Refused) -> Response,
}

impl Guard {
    pub fn new(keys: Arc<ApiKeys>, metrics: Arc<Metrics>) -> Guard {
        Guard { keys, metrics }
    }

    /// `routes`, unknown paths included, behind this guard.
    pub(super) fn protect(self, routes: axum::Router, policy: Policy) -> axum::Router {
        routes.layer(middleware::from_fn_with_state((self, policy), check))
    }

    fn admits(&self, headers: &HeaderMap) -> Result<(), Refused> {
        let Some(value) = headers.get(header::AUTHORIZATION) else {
            return Err(Refused::Missing);
        };
        let key = value.to_str().ok().and_then(bearer);
        match self.keys.owner(key.ok_or(Refused::Malformed)?) {
            Some(owner) => {
                tracing::debug!(%owner, "the API key is known");
                Ok(())
            }
            None => Err(Refused::Unknown),
        }
    }
}

async fn check(
    State((guard, policy)): State<(Guard, Policy)>,
    request: Request,
    next: Next,
) -> Response {
    if (policy.is_open)(request.uri().path()) {
        return next.run(request).await;
    }
    match guard.admits(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refused) => {
            guard.metrics.unauthorized(policy.edge, refused.label());
            let mut response = (policy.refuse)(refused);
            // A connection of HTTP/1 is of no use with half a body in it, and closing it could cost the
            // client this answer, or its next request, which it may have sent already.
            if request.version() < Version::HTTP_2 && !drain(request.into_body()).await {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(header::CONNECTION, close);
            }
            response
        }
    }
}

/// Reads and forgets; false if not all of it came.
async fn drain(body: Body) -> bool {
    let mut pieces = body.into_data_stream();
    let all = async {
        let mut left = DRAINED;
        while let Some(piece) = pieces.next().await {
            match piece.ok().and_then(|piece| left.checked_sub(piece.len())) {
                Some(rest) => left = rest,
                None => return false,
            }
        }
        true
    };
    tokio::time::timeout(DRAIN_TIME, all).await.unwrap_or(false)
}

/// The key in `Bearer KEY`. The scheme may be in any case (RFC 9110).
fn bearer(value: &str) -> Option<&str> {
    let (scheme, key) = value.split_once(' ')?;
    let key = key.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !key.is_empty()).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bearers() {
        assert_eq!(bearer("Bearer key"), Some("key"));
        assert_eq!(bearer("bearer  key "), Some("key"));
        for bad in ["", "key", "Bearer", "Bearer ", "Basic key", "Bearerkey"] {
            assert_eq!(bearer(bad), None, "{bad}");
        }
    }
}
