//! Which of several operators acts: the one that holds a Lease, as Kubernetes' own controllers do it.
//!
//! Nobody's clock is trusted but one's own. A Lease is another's as long as it changed within its
//! duration, counted from when the change was *seen*; what time the holder wrote into it is for people.
//! The holder gives up `renew` after it last *began* a renewal that succeeded, which is sooner than
//! anybody else may take over, and then the process ends: while it does not lead, it writes nothing.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};
use tokio::time::{Instant, sleep, timeout};

use crate::error::Error;

#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// How long a Lease is its holder's after it changed.
    pub lease: Duration,
    /// How long a holder goes on without a renewal.
    pub renew: Duration,
    /// Between two attempts.
    pub retry: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            lease: Duration::from_secs(15),
            renew: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }
}

pub struct Elector {
    api: Api<Lease>,
    namespace: String,
    name: String,
    identity: String,
    timing: Timing,
    seen: Option<Seen>,
    /// As it was last written by this process.
    held: Option<Lease>,
    /// When the last write of it that succeeded began.
    renewed: Instant,
}

/// A Lease that is not ours, and since when it looks like this.
struct Seen {
    resource_version: Option<String>,
    since: Instant,
}

impl Elector {
    /// `identity` is unique among all that compete for the Lease `name`.
    pub fn new(
        client: Client,
        namespace: &str,
        name: &str,
        identity: &str,
        timing: Timing,
    ) -> Elector {
        Elector {
            api: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            identity: identity.to_owned(),
            timing,
            seen: None,
            held: None,
            renewed: Instant::now(),
        }
    }

    /// Returns once the Lease is ours.
    pub async fn acquire(&mut self) {
        let mut told = None;
        loop {
            let began = Instant::now();
            match timeout(self.timing.renew, self.attempt()).await {
                Ok(Ok(None)) if began.elapsed() < self.timing.renew => {
                    tracing::info!(lease = self.name, identity = self.identity, "leading");
                    self.renewed = began;
                    return;
                }
                // An answer so late that the Lease may be another's by now.
                Ok(Ok(None)) => {}
                Ok(Ok(Some(holder))) if told.as_ref() != Some(&holder) => {
                    tracing::info!(lease = self.name, holder, "standing by");
                    told = Some(holder);
                }
                Ok(Ok(Some(_))) => {}
                Ok(Err(error)) if error.is_transient() => {}
                Ok(Err(error)) => tracing::warn!(%error, "cannot compete for the Lease"),
                Err(_) => tracing::warn!("the API server does not answer"),
            }
            sleep(self.timing.retry).await;
        }
    }

    /// Renews the Lease as long as that succeeds; returns why it is ours no longer.
    pub async fn hold(&mut self) -> Error {
        loop {
            sleep(self.timing.retry).await;
            let began = Instant::now();
            let left = self.timing.renew.saturating_sub(self.renewed.elapsed());
            match timeout(left, self.attempt()).await {
                Ok(Ok(None)) => self.renewed = began,
                Ok(Ok(Some(holder))) => {
                    tracing::error!(holder, "another operator has the Lease");
                    return self.lost();
                }
                Ok(Err(error)) => tracing::warn!(%error, "the Lease was not renewed"),
                Err(_) => return self.lost(),
            }
            if self.renewed.elapsed() >= self.timing.renew {
                return self.lost();
            }
        }
    }

    /// Gives the Lease up, so that another takes over at once.
    pub async fn release(&mut self) -> Result<(), Error> {
        let Some(mut lease) = self.held.take() else {
            return Ok(());
        };
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        spec.renew_time = Some(MicroTime(Timestamp::now()));
        self.replace(lease).await?;
        tracing::info!(lease = self.name, "released");
        Ok(())
    }

    fn lost(&self) -> Error {
        Error::LeaseLost {
            lease: format!("{}/{}", self.namespace, self.name),
        }
    }

    /// `None`: it is ours, and was renewed. Otherwise, who has it.
    async fn attempt(&mut self) -> Result<Option<String>, Error> {
        // The holder need not read it: if anybody else wrote it, this fails.
        if let Some(held) = self.held.take() {
            match self
                .replace(renewal(&held, &self.identity, self.timing))
                .await
            {
                Ok(lease) => {
                    self.held = Some(lease);
                    return Ok(None);
                }
                Err(Error::Conflict { .. } | Error::NotFound { .. }) => {}
                Err(error) => {
                    self.held = Some(held);
                    return Err(error);
                }
            }
        }
        let found = self
            .api
            .get_opt(&self.name)
            .await
            .map_err(|error| Error::api("get", self.what(), error))?;
        let Some(lease) = found else {
            self.held = Some(self.create().await?);
            return Ok(None);
        };
        let version = &lease.metadata.resource_version;
        if self
            .seen
            .as_ref()
            .is_none_or(|seen| seen.resource_version != *version)
        {
            self.seen = Some(Seen {
                resource_version: version.clone(),
                since: Instant::now(),
            });
        }
        let since = self.seen.as_ref().map(|seen| seen.since.elapsed());
        if let Some(holder) = held_by(&lease, &self.identity, since.unwrap_or_default()) {
            return Ok(Some(holder));
        }
        let ours = renewal(&lease, &self.identity, self.timing);
        self.held = Some(self.replace(ours).await?);
        Ok(None)
    }

    async fn create(&self) -> Result<Lease, Error> {
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                namespace: Some(self.namespace.clone()),
                ..ObjectMeta::default()
            },
            spec: None,
        };
        let lease = renewal(&lease, &self.identity, self.timing);
        self.api
            .create(&PostParams::default(), &lease)
            .await
            .map_err(|error| Error::api("create", self.what(), error))
    }

    async fn replace(&self, lease: Lease) -> Result<Lease, Error> {
        self.api
            .replace(&self.name, &PostParams::default(), &lease)
            .await
            .map_err(|error| Error::api("update", self.what(), error))
    }

    fn what(&self) -> String {
        format!(
            "leases.coordination.k8s.io {}/{}",
            self.namespace, self.name
        )
    }
}

/// Who else has a Lease that has looked the same for `unchanged`.
fn held_by(lease: &Lease, me: &str, unchanged: Duration) -> Option<String> {
    let spec = lease.spec.as_ref()?;
    let holder = spec.holder_identity.as_deref().unwrap_or_default();
    let seconds = spec.lease_duration_seconds.unwrap_or_default();
    let lasts = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
    let another = !holder.is_empty() && holder != me && unchanged < lasts;
    another.then(|| holder.to_owned())
}

/// The same Lease, ours.
fn renewal(lease: &Lease, me: &str, timing: Timing) -> Lease {
    let now = || Some(MicroTime(Timestamp::now()));
    let before = lease.spec.clone().unwrap_or_default();
    let mine = before.holder_identity.as_deref() == Some(me);
    let transitions = before.lease_transitions.unwrap_or_default();
    let first = before.holder_identity.is_none();
    Lease {
        metadata: lease.metadata.clone(),
        spec: Some(LeaseSpec {
            holder_identity: Some(me.to_owned()),
            lease_duration_seconds: i32::try_from(timing.lease.as_secs()).ok(),
            acquire_time: if mine { before.acquire_time } else { now() },
            renew_time: now(),
            lease_transitions: Some(transitions + i32::from(!mine && !first)),
            ..before
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: &str) -> Lease {
        Lease {
            metadata: ObjectMeta::default(),
            spec: Some(LeaseSpec {
                holder_identity: Some(holder.to_owned()),
                lease_duration_seconds: Some(15),
                lease_transitions: Some(4),
                // A clock that is far ahead changes nothing.
                renew_time: Some(MicroTime(Timestamp::from_second(4_000_000_000).unwrap())),
                ..LeaseSpec::default()
            }),
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_lease_is_anothers_until_it_was_seen_unchanged_for_its_duration() {
        let other = lease("other");
        assert_eq!(held_by(&other, "me", 14 * SECOND).as_deref(), Some("other"));
        assert_eq!(held_by(&other, "me", 15 * SECOND), None);
        assert_eq!(held_by(&lease("me"), "me", Duration::ZERO), None);
        assert_eq!(held_by(&lease(""), "me", Duration::ZERO), None);
        assert_eq!(held_by(&Lease::default(), "me", Duration::ZERO), None);
    }

    #[test]
    fn transitions_count_changes_of_the_holder() {
        let transitions = |lease: &Lease| lease.spec.as_ref().unwrap().lease_transitions;
        let taken = renewal(&lease("other"), "me", Timing::default());
        assert_eq!(transitions(&taken), Some(5));
        let again = renewal(&taken, "me", Timing::default());
        assert_eq!(transitions(&again), Some(5));
        assert_eq!(
            again.spec.as_ref().unwrap().acquire_time,
            taken.spec.unwrap().acquire_time
        );
        assert_eq!(
            transitions(&renewal(&Lease::default(), "me", Timing::default())),
            Some(0)
        );
    }

    #[test]
    fn a_holder_gives_up_before_others_may_take_over() {
        let timing = Timing::default();
        assert!(timing.renew + timing.retry < timing.lease);
    }
}
