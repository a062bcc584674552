use super::*;

fn meta(version: &str, owned: &str, deleting: bool) -> Meta {
    let mut json = serde_json::json!({
        "name": "a", "namespace": "n", "uid": "u", "resourceVersion": version,
        "managedFields": [{"manager": MANAGER, "operation": "Apply",
            "fieldsV1": {"f:spec": {owned: {}}}}]});
    if deleting {
        json["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    }
    Meta::of(&serde_json::from_value(json).unwrap())
}

fn record(at: Instant, before: Option<&str>) -> Record {
    Record {
        desired: 1,
        uid: "u".to_owned(),
        owned: meta("", "f:replicas", false).owned,
        before: before.map(str::to_owned),
        at,
        seen: false,
    }
}

#[test]
fn nothing_is_applied_twice() {
    let now = Instant::now();
    let mut record = record(now, Some("1"));
    // The watch is behind.
    assert!(record.holds(1, Some(&meta("1", "f:old", false)), now));
    // It caught up, and later a status changed.
    assert!(record.holds(1, Some(&meta("2", "f:replicas", false)), now));
    assert!(record.holds(1, Some(&meta("3", "f:replicas", false)), now));
    // Something else is wanted.
    assert!(!record.holds(2, Some(&meta("3", "f:replicas", false)), now));
}

#[test]
fn what_somebody_changed_or_deleted_is_put_back() {
    let now = Instant::now();
    let mut record = record(now, None);
    assert!(record.holds(1, None, now));
    assert!(record.holds(1, Some(&meta("2", "f:replicas", false)), now));
    assert!(!record.holds(1, Some(&meta("3", "f:other", false)), now));
    assert!(!record.holds(1, Some(&meta("3", "f:replicas", true)), now));
    assert!(!record.holds(1, None, now));
}

#[test]
fn a_watch_that_never_shows_it_is_not_believed_for_ever() {
    let now = Instant::now();
    let mut record = record(now, None);
    assert!(record.holds(1, None, now + WATCH_LAGS / 2));
    assert!(!record.holds(1, None, now + WATCH_LAGS));
}
