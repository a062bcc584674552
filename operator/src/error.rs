//! What can go wrong between the operator and the cluster, sorted by what to do about it.

use std::net::SocketAddr;

use kube::core::Status;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "may not {verb} {what}: the operator's role lacks that rule. Install the chart of this version, or add the rule. The API server says: {message}"
    )]
    Forbidden {
        verb: &'static str,
        what: String,
        message: String,
    },
    /// Somebody else was faster. What is there now is looked at again.
    #[error("could not {verb} {what}, which changed meanwhile; trying again")]
    Conflict { verb: &'static str, what: String },
    #[error("could not {verb} {what}, which is not there (any more)")]
    NotFound { verb: &'static str, what: String },
    /// The API server, or a webhook, does not take an object. Nothing but another spec helps.
    #[error("could not {verb} {what}, which the API server refuses: {message}")]
    Invalid {
        verb: &'static str,
        what: String,
        message: String,
    },
    /// Any other answer of the API server, or none. Tried again.
    #[error("could not {verb} {what}: {source}")]
    Api {
        verb: &'static str,
        what: String,
        source: Box<kube::Error>,
    },
    #[error("{what} took longer than {seconds} s; trying again")]
    TimedOut { what: String, seconds: u64 },
    #[error(
        "no Kubernetes API: {0}. Set KUBECONFIG, or run in a pod with a service account's token"
    )]
    NoCluster(Box<kube::config::InferConfigError>),
    #[error("cannot listen on {address} for metrics and probes: {source}")]
    Listen {
        address: SocketAddr,
        source: std::io::Error,
    },
    #[error("cannot register a metric: {0}")]
    Metrics(#[from] prometheus::Error),
    #[error(
        "the Lease {lease} was lost: another operator may be leading. Ending at once; a restart waits for the Lease again"
    )]
    LeaseLost { lease: String },
    /// What the operator does besides, such as forgetting epochs in etcd.
    #[error("{0}")]
    Other(Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// `verb` and `what` as in "could not apply statefulsets.apps default/m-1-decode-0".
    pub fn api(verb: &'static str, what: impl Into<String>, source: kube::Error) -> Error {
        let what = what.into();
        match source {
            kube::Error::Api(status) => Error::answer(verb, what, status),
            source => Error::Api {
                verb,
                what,
                source: Box::new(source),
            },
        }
    }

    fn answer(verb: &'static str, what: String, status: Box<Status>) -> Error {
        let message = status.message.clone();
        if status.is_conflict() || status.is_already_exists() {
            Error::Conflict { verb, what }
        } else if status.is_not_found() {
            Error::NotFound { verb, what }
        } else if status.is_invalid() || status.code == 400 {
            Error::Invalid {
                verb,
                what,
                message,
            }
        } else if status.is_forbidden() && denied_by_role(&message) {
            Error::Forbidden {
                verb,
                what,
                message,
            }
        } else if status.is_forbidden() {
            // Quota, Pod Security, an admission policy: nothing that a role could change.
            Error::Invalid {
                verb,
                what,
                message,
            }
        } else {
            Error::Api {
                verb,
                what,
                source: Box::new(kube::Error::Api(status)),
            }
        }
    }

    /// For the label of a metric.
    pub fn label(&self) -> &'static str {
        match self {
            Error::Forbidden { .. } => "forbidden",
            Error::Conflict { .. } => "conflict",
            Error::NotFound { .. } => "not_found",
            Error::Invalid { .. } => "invalid",
            Error::TimedOut { .. } => "timeout",
            _ => "error",
        }
    }

    /// It goes away by looking again; nobody needs to be told.
    pub fn is_transient(&self) -> bool {
        matches!(self, Error::Conflict { .. } | Error::NotFound { .. })
    }
}

/// RBAC names the user and what it may not do; admission says something else.
fn denied_by_role(message: &str) -> bool {
    message.contains("User \"") && message.contains(" cannot ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(code: u16, reason: &str, message: &str) -> Error {
        let status = Status::failure(message, reason).with_code(code);
        Error::api("apply", "pods a/b", kube::Error::Api(status.boxed()))
    }

    #[test]
    fn answers_are_sorted_by_what_to_do() {
        let role = r#"pods is forbidden: User "system:serviceaccount:a:b" cannot patch resource "pods/status""#;
        assert_eq!(answer(403, "Forbidden", role).label(), "forbidden");
        let quota = "pods \"x\" is forbidden: exceeded quota: q";
        assert_eq!(answer(403, "Forbidden", quota).label(), "invalid");
        assert_eq!(answer(409, "Conflict", "").label(), "conflict");
        assert_eq!(answer(404, "NotFound", "").label(), "not_found");
        assert_eq!(answer(422, "Invalid", "").label(), "invalid");
        assert_eq!(answer(503, "ServiceUnavailable", "").label(), "error");
    }

    #[test]
    fn a_missing_rule_is_named() {
        let text = answer(403, "Forbidden", r#"User "o" cannot patch x"#).to_string();
        assert!(
            text.contains("may not apply pods a/b") && text.contains("cannot patch x"),
            "{text}"
        );
    }
}
