//! Restricted Pod Security, but for the one capability that RDMA needs.

use k8s_openapi::api::core::v1::{
    Capabilities, PodSecurityContext, SeccompProfile, SecurityContext,
};

/// The user and the group of every process.
const NOBODY: i64 = 65532;

pub fn pod() -> PodSecurityContext {
    PodSecurityContext {
        // So that downloads can be written to fresh volumes, and Secrets read.
        fs_group: Some(NOBODY),
        fs_group_change_policy: Some("OnRootMismatch".to_owned()),
        run_as_group: Some(NOBODY),
        run_as_non_root: Some(true),
        run_as_user: Some(NOBODY),
        seccomp_profile: Some(SeccompProfile {
            type_: "RuntimeDefault".to_owned(),
            localhost_profile: None,
        }),
        ..PodSecurityContext::default()
    }
}

/// `lock_memory` needs a namespace whose Pod Security is privileged.
pub fn container(lock_memory: bool) -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities {
            drop: Some(vec!["ALL".to_owned()]),
            add: lock_memory.then(|| vec!["IPC_LOCK".to_owned()]),
        }),
        read_only_root_filesystem: Some(true),
        ..SecurityContext::default()
    }
}
