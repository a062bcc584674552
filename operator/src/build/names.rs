//! What objects are called.

use super::ports;
use crate::api::Role;

/// The longest name of a ModelDeployment, in characters. StatefulSets are called
/// `<name>-<revision>-<role>-<ordinal>`, and Kubernetes makes a label's value (at most 63) of that and
/// a hash of ten digits: 52 are left, of which 17 go to revision and role and 5 to an ordinal.
pub const LONGEST: usize = 30;
/// A deployment of this ending would be called as another one's router.
pub const ROUTER_ENDING: &str = "-router";

/// Of a WorkerPool, its headless Service and its disruption budget.
pub fn pool(deployment: &str, revision: &str, role: Role) -> String {
    format!("{deployment}-{revision}-{role}")
}

/// Of a StatefulSet, which is one group, and of its PodGroup.
pub fn group(pool: &str, ordinal: i32) -> String {
    format!("{pool}-{ordinal}")
}

/// The inverse of [`group`]. `None`: it is no group of this pool.
pub fn ordinal(pool: &str, group: &str) -> Option<i32> {
    let digits = group.strip_prefix(pool)?.strip_prefix('-')?;
    let ordinal = digits.parse().ok()?;
    (self::group(pool, ordinal) == group && ordinal >= 0).then_some(ordinal)
}

/// Of the pod that is a rank of a group.
pub fn pod(group: &str, rank: i32) -> String {
    format!("{group}-{rank}")
}

/// Of the routers' Deployment, headless Service, disruption budget and policy.
pub fn router(deployment: &str) -> String {
    format!("{deployment}{ROUTER_ENDING}")
}

/// Of the Service for clients, and of routes to it.
pub fn service(deployment: &str) -> String {
    deployment.to_owned()
}

/// Of the NetworkPolicy of all workers.
pub fn workers(deployment: &str) -> String {
    format!("{deployment}-workers")
}

/// Where workers attach: it resolves to every router's pod.
pub fn router_address(deployment: &str, namespace: &str) -> String {
    let port = ports::router::WORKERS.number;
    format!("{}.{namespace}.svc:{port}", router(deployment))
}

/// `host:port` of a port for clients.
pub fn client_address(deployment: &str, namespace: &str, port: ports::Port) -> String {
    let number = port.number;
    format!("{}.{namespace}.svc:{number}", service(deployment))
}

/// What a deployment's keys in etcd begin with. Another deployment's prefix may begin with this one
/// too: who deletes appends a slash.
pub fn etcd_prefix(deployment: &str, namespace: &str) -> String {
    format!("/millrace/{namespace}/{deployment}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_names_are_names() {
        let deployment = "m".repeat(LONGEST);
        let pool = pool(&deployment, "01234567", Role::Prefill);
        let group = group(&pool, 9999);
        // `controller-revision-hash` is the name, a dash and up to ten digits.
        assert!(group.len() + 11 <= 63, "{}", group.len());
        assert!(pod(&group, 1023).len() <= 63);
        let rule =
            serde_json::to_string(&<crate::api::ModelDeployment as kube::CustomResourceExt>::crd());
        assert!(
            rule.unwrap()
                .contains(&format!("size(self.metadata.name) <= {LONGEST}"))
        );
    }

    #[test]
    fn ordinals_come_back() {
        assert_eq!(
            ordinal("m-01234567-decode", "m-01234567-decode-12"),
            Some(12)
        );
        for other in [
            "m-01234567-decode",
            "m-01234567-decode-",
            "m-01234567-decode-01",
            "m-01234567-decode--1",
            "x-1",
        ] {
            assert_eq!(ordinal("m-01234567-decode", other), None, "{other}");
        }
    }
}
