//! Keeps a store in step with the API server, and tells of every change.
//!
//! A watch that silently stops delivering is the failure that a controller cannot see by itself. So
//! each lasts three minutes at most and goes on where the last ended, which delivers whatever was
//! held back; and after an hour everything is listed again, which also tells of deletions that were
//! missed.

use std::collections::HashSet;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, pin_mut};
use kube::api::Api;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch};
use kube::{Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use tokio::sync::watch as flag;
use tokio::time::Instant;

use super::store::{Cached, Key, Store};

/// How long a watch lasts before it is renewed.
const RENEWED_AFTER: u32 = 180;
/// How long until everything is listed anew.
const LISTED_AFTER: Duration = Duration::from_secs(3600);

/// Follows all objects that `labels` select, for ever.
///
/// `keep` says what is remembered of an object; `changed` is called after the store has it (or, with
/// `false`, after it is gone). `synced` turns true with the first complete list.
pub async fn follow<K, V>(
    api: Api<K>,
    labels: Option<&str>,
    store: Store<V>,
    keep: impl Fn(K) -> V + Send,
    changed: impl Fn(&Arc<V>, bool) + Send,
    synced: flag::Sender<bool>,
) where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
    V: Cached,
{
    loop {
        let mut config = watcher::Config::default().timeout(RENEWED_AFTER);
        if let Some(labels) = labels {
            config = config.labels(labels);
        }
        let events = watch(api.clone(), config).backoff(Pauses::default());
        pin_mut!(events);
        let list_again = tokio::time::sleep_until(Instant::now() + LISTED_AFTER);
        pin_mut!(list_again);
        let mut listed = HashSet::new();
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = &mut list_again => None,
            };
            match event {
                None => break,
                Some(Err(error)) => tell(&error),
                Some(Ok(Event::Init)) => listed.clear(),
                Some(Ok(Event::InitApply(object))) => {
                    let value = store.put(keep(object));
                    listed.insert(value.key());
                    changed(&value, true);
                }
                Some(Ok(Event::InitDone)) => {
                    for gone in store.retain(&std::mem::take(&mut listed)) {
                        changed(&gone, false);
                    }
                    synced.send_replace(true);
                }
                Some(Ok(Event::Apply(object))) => changed(&store.put(keep(object)), true),
                Some(Ok(Event::Delete(object))) => {
                    let namespace = object.namespace().unwrap_or_default();
                    if let Some(gone) = store.remove(&Key::new(&namespace, &object.name_any())) {
                        changed(&gone, false);
                    }
                }
            }
        }
    }
}

/// From 0.2 s to 15 s, and from the beginning after half a minute without an error: an API server that
/// comes back is noticed soon, and one that is overloaded is left alone.
struct Pauses {
    next: Duration,
    last: Option<Instant>,
}

impl Pauses {
    const FIRST: Duration = Duration::from_millis(200);
    const LONGEST: Duration = Duration::from_secs(15);
    const FORGET: Duration = Duration::from_secs(30);
}

impl Default for Pauses {
    fn default() -> Self {
        Pauses {
            next: Pauses::FIRST,
            last: None,
        }
    }
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        if self
            .last
            .is_some_and(|last| last.elapsed() > Pauses::FORGET)
        {
            self.next = Pauses::FIRST;
        }
        self.last = Some(Instant::now());
        let pause = self.next;
        self.next = (pause * 2).min(Pauses::LONGEST);
        Some(pause)
    }
}

impl Backoff for Pauses {
    // Not at every event: a watch begins each attempt with one, before it knows whether it succeeds.
    fn reset(&mut self) {}
}

fn tell(error: &watcher::Error) {
    let status = match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => Some(status),
        _ => None,
    };
    if status.is_some_and(|status| status.is_forbidden()) {
        tracing::error!(%error, "the operator's role lacks a rule to list and watch; install the chart of this version");
    } else if status.is_some_and(|status| status.code == 404) {
        tracing::error!(%error, "a definition is missing; install the chart of this version, or what `millrace crds` prints");
    } else {
        tracing::debug!(%error, "a watch broke off; it goes on");
    }
}
