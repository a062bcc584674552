//! Counts every request to the API server where it leaves the process, so that what the operator's
//! role must allow can be read off its metrics, and tells of it in the trace of the look that it is
//! made in.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use kube::client::Body;
use millrace_telemetry::traces::Span;
use tonic::codegen::http::{Method, Request, Response};
use tower::{Layer, Service};

use crate::metrics::Metrics;

tokio::task_local! {
    /// That of the look.
    static TRACE: Span;
}

/// Requests of `work` are a part of `trace`.
pub fn part_of<W: Future>(trace: Span, work: W) -> impl Future<Output = W::Output> {
    TRACE.scope(trace, work)
}

#[derive(Clone)]
pub struct Counting(pub Metrics);

impl<S> Layer<S> for Counting {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted {
            inner,
            metrics: self.0.clone(),
        }
    }
}

pub struct Counted<S> {
    inner: S,
    metrics: Metrics,
}

impl<S, B> Service<Request<Body>> for Counted<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let uri = request.uri();
        let Asked {
            verb,
            group,
            resource,
        } = asked(
            request.method(),
            uri.path(),
            uri.query().unwrap_or_default(),
        );
        let metrics = self.metrics.clone();
        let answer = self.inner.call(request);
        Box::pin(async move {
            // Here, and not where the call is made: that is in a task of the client's.
            let span = TRACE.try_with(|trace| trace.call(verb)).unwrap_or_default();
            span.set_text("millrace.resource", &resource);
            let answer = answer.await;
            let code = match &answer {
                Ok(response) => response.status().as_u16().to_string(),
                Err(_) => "unreachable".to_owned(),
            };
            match &answer {
                Ok(response) if response.status().as_u16() < 400 => {}
                _ => span.failed(&code, &"the API server did not do it"),
            }
            metrics.requested(verb, &group, &resource, &code);
            answer
        })
    }
}

/// A request as RBAC sees it.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    verb: &'static str,
    group: String,
    /// Empty: discovery.
    resource: String,
}

fn asked(method: &Method, path: &str, query: &str) -> Asked {
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    let group = match parts.next() {
        Some("apis") => parts.next().unwrap_or_default(),
        _ => "",
    };
    let _version = parts.next();
    let mut rest: Vec<&str> = parts.collect();
    if rest.len() > 2 && rest[0] == "namespaces" {
        rest.drain(..2);
    }
    let (named, resource) = match rest[..] {
        [] => (true, String::new()),
        [resource] => (false, resource.to_owned()),
        [resource, _] => (true, resource.to_owned()),
        [resource, _, sub, ..] => (true, format!("{resource}/{sub}")),
    };
    let watches = query
        .split('&')
        .any(|pair| matches!(pair, "watch=true" | "watch=1"));
    let verb = match (method, named) {
        (&Method::GET, _) if watches => "watch",
        (&Method::GET, true) => "get",
        (&Method::GET, false) => "list",
        (&Method::POST, _) => "create",
        (&Method::PUT, _) => "update",
        (&Method::PATCH, _) => "patch",
        (&Method::DELETE, true) => "delete",
        (&Method::DELETE, false) => "deletecollection",
        _ => "other",
    };
    Asked {
        verb,
        group: group.to_owned(),
        resource,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_apart_as_rbac_does() {
        let check = |method: Method, path: &str, query: &str, verb, group, resource: &str| {
            let found = asked(&method, path, query);
            assert_eq!(
                (found.verb, found.group.as_str(), found.resource.as_str()),
                (verb, group, resource),
                "{path}"
            );
        };
        check(Method::GET, "/api/v1/pods", "limit=500", "list", "", "pods");
        check(
            Method::GET,
            "/api/v1/namespaces/a/pods",
            "watch=true&x=1",
            "watch",
            "",
            "pods",
        );
        check(
            Method::PATCH,
            "/api/v1/namespaces/a/pods/p/status",
            "",
            "patch",
            "",
            "pods/status",
        );
        let lease = "/apis/coordination.k8s.io/v1/namespaces/a/leases";
        check(
            Method::POST,
            lease,
            "",
            "create",
            "coordination.k8s.io",
            "leases",
        );
        let set = "/apis/apps/v1/namespaces/a/statefulsets/s";
        check(Method::DELETE, set, "", "delete", "apps", "statefulsets");
        check(
            Method::GET,
            "/apis/monitoring.coreos.com/v1",
            "",
            "get",
            "monitoring.coreos.com",
            "",
        );
    }
}
