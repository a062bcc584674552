//! The status that was written last. A watch may not show it yet, while another one already shows what
//! was done after it.

use std::collections::HashMap;

use kube::ResourceExt as _;
use parking_lot::Mutex;

use crate::api::{DeploymentStatus, ModelDeployment};
use crate::cache::Key;

#[derive(Debug, Default)]
pub struct Memory(Mutex<HashMap<Key, (String, DeploymentStatus)>>);

impl Memory {
    /// What was said of a ModelDeployment last, by this process or by an earlier one.
    pub fn status(&self, key: &Key, deployment: &ModelDeployment) -> DeploymentStatus {
        let written = self.0.lock();
        match written.get(key) {
            Some((uid, status)) if Some(uid) == deployment.uid().as_ref() => status.clone(),
            _ => deployment.status.clone().unwrap_or_default(),
        }
    }

    pub fn remember(&self, key: &Key, deployment: &ModelDeployment, status: &DeploymentStatus) {
        let uid = deployment.uid().unwrap_or_default();
        self.0.lock().insert(key.clone(), (uid, status.clone()));
    }

    pub fn forget(&self, key: &Key) {
        self.0.lock().remove(key);
    }
}
