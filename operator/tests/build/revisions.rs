//! What a revision is a name of.

use millrace_operator::api::Role;
use millrace_operator::build::{Defaults, resolve, revision};

use crate::cases::{AGGREGATED, SPLIT, defaults, deployment, resolved, spec};

/// If this fails, an upgrade of the operator alone would roll every deployment: leave out new fields
/// where they are not set, and do not change how those there are serialized.
#[test]
fn revisions_do_not_change_with_the_operator() {
    let golden = [
        ("aggregated", "65c05ef9"),
        ("split", "ad585fc1"),
        ("groups", "85194738"),
        ("claim", "c827ecb8"),
        ("image", "be29eb9e"),
        ("http", "40636cac"),
        ("s3", "f1107e65"),
        ("overrides", "bd4e83d0"),
        ("rdma", "aaf177fd"),
    ];
    let now = golden.map(|(case, _)| (case, resolved(spec(case)).revision));
    let now = now
        .each_ref()
        .map(|(case, revision)| (*case, revision.as_str()));
    assert_eq!(now, golden);
}

#[test]
fn revisions_are_names_of_workers() {
    let split = resolved(SPLIT);
    let same = |changed: &str| resolved(changed).revision == split.revision;
    // How many there are, and what is around them, is not what they are.
    for more in [
        "router: {replicas: 3, maxWaiting: 5}",
        "rollout: {maxSurge: 2}",
        "monitoring: {podMonitor: true}",
        "networkPolicy: false",
        "etcd: {endpoints: ['etcd:2379']}",
    ] {
        assert!(same(&format!("{SPLIT}{more}\n")), "{more}");
    }
    assert!(same(&SPLIT.replace("replicas: 2", "replicas: 5")));
    for more in [
        "image: other",
        "imagePullPolicy: Always",
        "drain: {deadlineSeconds: 1}",
        "transfer: {transport: tcp}",
    ] {
        assert!(!same(&format!("{SPLIT}{more}\n")), "{more}");
    }
    assert!(!same(AGGREGATED));
    assert!(!same(&SPLIT.replace("replicas: 2", "engine: {kvPages: 9}")));
    let again = SPLIT.replace("{builtin: tiny-r1}", "{builtin: tiny-r1}, revision: again");
    assert!(!same(&again));
}

#[test]
fn a_revision_has_eight_digits_and_depends_on_which_pool_is_which() {
    let resolved = resolved(SPLIT);
    let (prefill, decode) = (resolved.prefill.unwrap().worker, resolved.decode.worker);
    let mut changed = prefill.clone();
    changed.engine.kv_pages = Some(1);
    let one = revision(Some(&changed), &decode);
    let other = revision(Some(&decode), &changed);
    assert_ne!(one, other);
    assert_eq!(one.len(), 8);
    assert!(
        one.bytes()
            .all(|byte| byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase())
    );
}

#[test]
fn names_are_of_the_namespace_and_the_image_is_the_operators() {
    let of = |image: &str| {
        let defaults = Defaults {
            image: image.to_owned(),
            ..defaults()
        };
        resolve(&deployment("m", SPLIT), &defaults).unwrap()
    };
    // An operator of another version brings another image, and so another revision.
    assert_ne!(of("a").revision, of("b").revision);
    assert_eq!(of("a").pool(Role::Prefill).unwrap().worker.image, "a");
    assert_eq!(of("a").served_name(), "m");
}
