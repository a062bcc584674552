//! Pods of a StatefulSet whose node is gone stay `Terminating` for ever, because nobody there can say
//! that they ended, and their ranks start nowhere else. What is surely dead is taken away by force.
//!
//! A pod counts as dead if it was told to go, should be gone by now (or its node is lost), and no
//! router has had its worker attached for a while. A worker that a router still has is left alone, even
//! if the API server cannot reach its node.

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::cache::PodView;
use crate::fleet::DeploymentView;

/// How much longer than it was given a pod may take.
const LATE: SignedDuration = SignedDuration::from_secs(10);
/// How long no router must have had its worker.
const DETACHED: Duration = Duration::from_secs(10);

/// By uid: since when no router has the worker of a pod that was told to go.
#[derive(Debug, Default)]
pub struct Detached(Mutex<HashMap<String, Instant>>);

#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Alive,
    /// Perhaps dead: look again after this.
    LookAgain(Duration),
    Dead,
}

impl Detached {
    /// `view` is `None` while no router can be asked: then nothing is dead.
    pub fn judge(
        &self,
        pod: &PodView,
        view: Option<&DeploymentView>,
        now: (Instant, Timestamp),
    ) -> Verdict {
        let (Some(gone_by), Some(view)) = (pod.gone_by, view) else {
            return Verdict::Alive;
        };
        let mut since = self.0.lock();
        if view.attached(pod.name()) {
            since.remove(&pod.meta.uid);
            return Verdict::LookAgain(DETACHED);
        }
        let detached = *since.entry(pod.meta.uid.clone()).or_insert(now.0);
        let late = now.1.duration_since(gone_by + LATE);
        let wait = DETACHED.saturating_sub(now.0.duration_since(detached));
        if !wait.is_zero() {
            return Verdict::LookAgain(wait);
        }
        if late.is_negative() && !pod.node_lost {
            return Verdict::LookAgain(late.unsigned_abs());
        }
        Verdict::Dead
    }

    /// Keeps what is still of interest.
    pub fn gone(&self, uid: &str) {
        self.0.lock().remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn pod(gone_by: &str, taint: bool) -> PodView {
        let conditions = match taint {
            true => serde_json::json!([
                {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}]),
            false => serde_json::json!([]),
        };
        let pod = serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "deletionTimestamp": gone_by},
            "status": {"conditions": conditions}});
        PodView::of(&serde_json::from_value(pod).unwrap())
    }

    fn at(seconds: u64) -> (Instant, Timestamp) {
        thread_local!(static START: Instant = Instant::now());
        let start = START.with(|start| *start);
        let clock: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        (
            start + seconds as u32 * SECOND,
            clock + SignedDuration::from_secs(seconds as i64),
        )
    }

    #[test]
    fn what_should_be_gone_and_is_detached_is_dead() {
        let (detached, pod) = (Detached::default(), pod("2026-01-01T00:00:05Z", false));
        let view = DeploymentView::default();
        assert_eq!(
            detached.judge(&pod, Some(&view), at(0)),
            Verdict::LookAgain(10 * SECOND)
        );
        assert_eq!(
            detached.judge(&pod, Some(&view), at(10)),
            Verdict::LookAgain(5 * SECOND)
        );
        assert_eq!(detached.judge(&pod, Some(&view), at(15)), Verdict::Dead);
        assert_eq!(detached.judge(&pod, None, at(15)), Verdict::Alive);
    }

    #[test]
    fn a_lost_node_is_not_waited_for() {
        let (detached, pod) = (Detached::default(), pod("2026-01-01T01:00:00Z", true));
        let view = DeploymentView::default();
        detached.judge(&pod, Some(&view), at(0));
        assert_eq!(detached.judge(&pod, Some(&view), at(10)), Verdict::Dead);
    }
}
