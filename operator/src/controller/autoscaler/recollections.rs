//! What is remembered of a PoolAutoscaler between two looks. All of it can be lost: then nothing is
//! decided until enough was seen again.

use std::collections::HashMap;
use std::time::Duration;

use kube::ResourceExt as _;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::profile::Read;
use crate::api::{AutoscalerStatus, PoolAutoscaler};
use crate::cache::Key;

pub struct Recollections {
    began: Instant,
    of: Mutex<HashMap<Key, Recollection>>,
}

#[derive(Default)]
pub struct Recollection {
    uid: String,
    /// The status that was written last, which a watch may not show yet.
    pub said: AutoscalerStatus,
    /// When it was looked at last, on the clock of [`Recollections::now`].
    pub looked: Option<Duration>,
    /// What the ConfigMap with the profile said, if there is one.
    pub profile: Option<Read>,
    /// What was seen of a ModelDeployment, by its uid.
    seen: Option<(String, millrace_autoscaler::Memory)>,
}

impl Default for Recollections {
    fn default() -> Self {
        Recollections {
            began: Instant::now(),
            of: Mutex::default(),
        }
    }
}

impl Recollections {
    /// On a clock that never goes back.
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// To be given back with [`Recollections::keep`]. Nothing is looked at twice at the same time.
    pub fn take(&self, key: &Key, autoscaler: &PoolAutoscaler) -> Recollection {
        let uid = autoscaler.uid().unwrap_or_default();
        let known = self.of.lock().remove(key);
        known
            .filter(|known| known.uid == uid)
            .unwrap_or_else(|| Recollection {
                uid,
                said: autoscaler.status.clone().unwrap_or_default(),
                ..Recollection::default()
            })
    }

    pub fn keep(&self, key: &Key, recollection: Recollection) {
        self.of.lock().insert(key.clone(), recollection);
    }

    pub fn forget(&self, key: &Key) {
        self.of.lock().remove(key);
    }
}

impl Recollection {
    /// What was seen of this ModelDeployment, and of no other.
    pub fn of(&mut self, uid: &str) -> &mut millrace_autoscaler::Memory {
        if self.seen.as_ref().is_none_or(|(of, _)| of != uid) {
            self.seen = None;
        }
        let (_, memory) = self
            .seen
            .get_or_insert_with(|| (uid.to_owned(), Default::default()));
        memory
    }

    /// Nothing that was seen before is to count any more.
    pub fn start_anew(&mut self) {
        self.seen = None;
    }
}
