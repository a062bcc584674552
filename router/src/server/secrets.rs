//! The certificate and the API keys of a router, read at its start and again while it runs.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::ServeError;
use crate::config::AccessConfig;
use crate::edges::auth::{ApiKeys, Guard};
use crate::edges::listen::Identity;
use crate::edges::reload;
use crate::metrics::Metrics;

/// Certificate and API keys as they were at the start.
pub(super) struct Secrets {
    tls: Option<(Arc<Identity>, <Identity as reload::Source>::Value)>,
    keys: Option<(Arc<ApiKeys>, <ApiKeys as reload::Source>::Value)>,
}

impl Secrets {
    pub(super) async fn open(access: AccessConfig) -> Result<Secrets, ServeError> {
        let open = move || -> Result<Secrets, ServeError> {
            Ok(Secrets {
                tls: access.tls.map(Identity::open).transpose()?,
                keys: access.api_keys.map(ApiKeys::open).transpose()?,
            })
        };
        tokio::task::spawn_blocking(open).await?
    }

    /// Keeps both up to date for as long as the set of tasks lives.
    pub(super) fn follow(
        self,
        interval: Duration,
        metrics: &Arc<Metrics>,
    ) -> (Option<Guard>, Option<Arc<Identity>>, JoinSet<()>) {
        let mut followers = JoinSet::new();
        let tls = self.tls.map(|(identity, first)| {
            let (source, metrics) = (Arc::clone(&identity), Arc::clone(metrics));
            followers.spawn(reload::follow(source, first, interval, metrics));
            identity
        });
        let guard = self.keys.map(|(keys, first)| {
            let (source, counted) = (Arc::clone(&keys), Arc::clone(metrics));
            followers.spawn(reload::follow(source, first, interval, counted));
            Guard::new(keys, Arc::clone(metrics))
        });
        if guard.is_some() && tls.is_none() {
            tracing::warn!(
                "API keys come over plain connections; end TLS here (--tls-cert), or right in front"
            );
        }
        (guard, tls, followers)
    }
}
