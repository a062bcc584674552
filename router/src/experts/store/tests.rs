use super::*;

fn config(etcd: &str, prefix: &str) -> ExpertsConfig {
    ExpertsConfig {
        etcd: vec![etcd.into()],
        etcd_prefix: prefix.into(),
        ..ExpertsConfig::default()
    }
}

fn refused(etcd: &str, prefix: &str) -> String {
    match Store::open(&config(etcd, prefix)) {
        Ok(_) => panic!("{etcd} {prefix} was taken"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_wrong_endpoint_or_prefix_is_named() {
    for endpoint in [
        "localhost:2379",
        "https://a:1",
        "http://a",
        "http://:1",
        "http://a:b",
    ] {
        assert!(refused(endpoint, "/m").contains(endpoint), "{endpoint}");
    }
    for prefix in ["", "/", "m"] {
        assert!(
            refused("http://a:1", prefix).contains("give /NAME"),
            "{prefix}"
        );
    }
}

#[cfg(not(feature = "etcd"))]
#[test]
fn without_etcd_the_error_says_how_to_build_it() {
    assert!(refused("http://127.0.0.1:2379", "/m").contains("--features etcd"));
}

fn base(state: &State, group: &str) -> Base {
    let slots = state.slots(group);
    Base {
        term: state.term(Instant::now()).unwrap(),
        epoch: slots.epoch.revision,
        plan: slots.plan.revision,
    }
}

#[tokio::test]
async fn a_write_on_what_is_gone_fails() {
    let store = Store::open(&ExpertsConfig::default()).unwrap();
    let states = store.states();
    let first = base(&states.borrow(), "g");
    let publish = || Change::Publish(b"plan".to_vec());
    store.write("g", publish(), first).await.unwrap();
    let again = store.write("g", publish(), first).await;
    assert!(matches!(again, Err(WriteError::Conflict)));
    // Another group's records are others.
    store.write("h", publish(), first).await.unwrap();
    let second = base(&states.borrow(), "g");
    let commit = Change::Commit(b"epoch".to_vec());
    store.write("g", commit, second).await.unwrap();
    let slots = states.borrow().slots("g");
    assert_eq!(slots.epoch.bytes.as_deref(), Some(&b"epoch"[..]));
    assert_eq!((slots.plan.bytes, slots.plan.revision), (None, 0));
    let stale = store.write("g", Change::Withdraw, second).await;
    assert!(matches!(stale, Err(WriteError::Conflict)));
}

#[test]
fn a_term_ends_by_itself_and_with_the_connection() {
    let now = Instant::now();
    let mut state = State {
        up: true,
        term: Some(Term {
            revision: 7,
            until: Some(now),
        }),
        ..State::default()
    };
    assert_eq!(state.term(now), None);
    state.term = Some(Term {
        revision: 7,
        until: Some(now + std::time::Duration::from_secs(1)),
    });
    assert!(state.term(now).is_some());
    state.up = false;
    assert_eq!(state.term(now), None);
}
