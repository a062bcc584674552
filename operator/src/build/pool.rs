//! The pools of a deployment's revision.

use super::{Child, Resolved, kinds, meta, names};
use crate::api::{Role, WorkerPoolSpec};

/// The WorkerPool of one role. `replicas`: how many groups, or `None` to leave that to whoever scales
/// it; the field is then not applied. `None`: the deployment has no such workers.
pub fn pool(resolved: &Resolved, role: Role, replicas: Option<i32>) -> Option<Child> {
    let shape = resolved.pool(role)?;
    let (deployment, revision) = (&resolved.name, &resolved.revision);
    let name = names::pool(deployment, revision, role);
    let labels = meta::of_pool(deployment, revision, role, &name);
    let spec = WorkerPoolSpec {
        deployment: deployment.clone(),
        role,
        revision: revision.clone(),
        replicas: replicas.unwrap_or_default(),
        worker: shape.worker.clone(),
    };
    let mut spec = serde_json::json!(spec);
    if replicas.is_none()
        && let Some(fields) = spec.as_object_mut()
    {
        fields.shift_remove("replicas");
    }
    let metadata = meta::metadata(name, &resolved.namespace, labels, resolved.owner.clone());
    Some(Child::with_spec(&kinds::WORKER_POOL, metadata, &spec))
}
