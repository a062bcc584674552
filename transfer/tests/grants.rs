//! What can be granted, and what a grant's bytes must be.

mod common;

use std::time::Duration;

use common::Pool;
use common::sides::{PAGE, layout, loopback, target};
use millrace_transfer::{
    BindError, DecodeError, Grant, GrantError, Layout, LeaseTable, PageTarget, Target, TargetConfig,
};

#[test]
fn grants_that_cannot_be_are_refused() {
    let pool = Pool::new(PAGE, 4);
    let target = target(&pool);
    let refused = |pages: &[u32]| target.grant(pages, None).err().unwrap();
    assert_eq!(refused(&[]), GrantError::NoPages);
    assert_eq!(
        refused(&[1, 4]),
        GrantError::OutOfRange { page: 4, pages: 4 }
    );
    assert_eq!(refused(&[1, 2, 1]), GrantError::AlreadyLeased { page: 1 });
    let (lease, _) = target.grant(&[0, 2], None).unwrap();
    assert_eq!(refused(&[1, 2]), GrantError::AlreadyLeased { page: 2 });
    // What was refused has taken nothing.
    let (rest, _) = target.grant(&[1, 3], None).unwrap();
    assert_eq!(target.stats().leases.active_pages, 4);
    let _ = (lease.revoke(), rest.revoke());
    assert_eq!(target.stats().leases.active_pages, 0);
    let unspecified = "0.0.0.0:0".parse().unwrap();
    let refused = Target::bind(
        unspecified,
        pool.region.clone(),
        layout(),
        TargetConfig::default(),
    )
    .err();
    assert!(matches!(refused, Some(BindError::Unspecified { .. })));
    let refused = Target::bind(
        loopback(),
        pool.region,
        Layout::new(7),
        TargetConfig::default(),
    )
    .err();
    assert!(matches!(
        refused,
        Some(BindError::PageBytes {
            region: PAGE,
            layout: 7
        })
    ));
}

#[test]
fn a_dropped_lease_is_ended_and_counted() {
    let pool = Pool::new(PAGE, 2);
    let table = LeaseTable::new(pool.region.clone());
    drop(table.lease(&[0], None).unwrap());
    let lease = table.lease(&[0, 1], None).unwrap();
    assert_eq!((lease.wait(Duration::ZERO), lease.landed()), (None, 0));
    assert_eq!(lease.revoke().into_pages(), [0, 1]);
    let stats = table.stats();
    assert_eq!(
        (stats.granted, stats.dropped, stats.revoked, stats.active),
        (2, 1, 1, 0)
    );
}

#[test]
fn grants_decode_strictly() {
    let pool = Pool::new(PAGE, 4);
    let config = TargetConfig {
        advertise: vec![
            "192.0.2.7:9".parse().unwrap(),
            "[2001:db8::7]:10".parse().unwrap(),
        ],
        ..TargetConfig::default()
    };
    let target = Target::bind("0.0.0.0:0".parse().unwrap(), pool.region, layout(), config).unwrap();
    let (lease, grant) = target.grant(&[3, 1], None).unwrap();
    let bytes = grant.to_bytes();
    assert_eq!(Grant::from_bytes(&bytes).unwrap(), grant);
    for cut in 0..bytes.len() {
        assert_eq!(
            Grant::from_bytes(&bytes[..cut]),
            Err(DecodeError::Truncated),
            "cut at {cut}"
        );
    }
    let longer = [bytes.as_slice(), &[0]].concat();
    assert_eq!(Grant::from_bytes(&longer), Err(DecodeError::Trailing(1)));
    let mut other = bytes.clone();
    other[0] ^= 1;
    assert_eq!(Grant::from_bytes(&other), Err(DecodeError::Magic));
    let mut other = bytes;
    other[4] += 1;
    assert_eq!(
        Grant::from_bytes(&other),
        Err(DecodeError::Version { ours: 2, theirs: 3 })
    );
    // The key is a secret.
    assert!(!format!("{grant:?}").contains("key"));
    let _ = lease.revoke();
}
