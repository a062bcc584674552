use std::time::Duration;

use super::super::{Store, Term};
use super::*;
use crate::experts::config::ExpertsConfig;

#[path = "../../../../tests/common/etcd.rs"]
mod server;

const PREFIX: &str = "/test";

fn open(server: &server::Etcd) -> Store {
    open_for(server, 2)
}

fn open_for(server: &server::Etcd, ttl_seconds: u64) -> Store {
    let config = ExpertsConfig {
        etcd: vec![server.url()],
        etcd_prefix: PREFIX.into(),
        leader_ttl: Duration::from_secs(ttl_seconds),
        ..ExpertsConfig::default()
    };
    Store::open(&config).unwrap()
}

async fn until<T>(store: &Store, what: impl Fn(&State) -> Option<T>) -> T {
    let mut states = store.states();
    loop {
        if let Some(found) = what(&states.borrow_and_update()) {
            return found;
        }
        // A term's end is no change of the state.
        let _ = tokio::time::timeout(Duration::from_millis(50), states.changed()).await;
    }
}

async fn until_leads(store: &Store) -> Term {
    until(store, |state| state.term(Instant::now())).await
}

fn base(term: Term, state: &State) -> Base {
    let slots = state.slots("g");
    Base {
        term,
        epoch: slots.epoch.revision,
        plan: slots.plan.revision,
    }
}

fn epoch_of(state: &State) -> Option<String> {
    let bytes = state.slots("g").epoch.bytes?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn commit(what: &str) -> Change {
    Change::Commit(what.as_bytes().to_vec())
}

async fn until_epoch(store: &Store, what: &str) {
    until(store, |state| {
        (epoch_of(state).as_deref() == Some(what)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_leads_and_both_see_what_it_writes() {
    let Some(server) = server::Etcd::start().await else {
        return;
    };
    let first = open(&server);
    let term = until_leads(&first).await;
    let second = open(&server);
    until(&second, |state| state.up.then_some(())).await;
    let ids = [&first, &second].map(|store| store.states().borrow().id.clone().unwrap());
    assert_eq!(ids[0], ids[1]);

    let publish = Change::Publish(b"plan".to_vec());
    let based = base(term, &first.states().borrow());
    first.write("g", publish.clone(), based).await.unwrap();
    until(&second, |state| state.slots("g").plan.bytes).await;
    let stale = first.write("g", publish, based).await;
    assert!(matches!(stale, Err(WriteError::Conflict)), "{stale:?}");
    let based = base(term, &first.states().borrow());
    first.write("g", commit("one"), based).await.unwrap();
    // An epoch and the end of its plan are seen together.
    let slots = until(&second, |state| {
        let slots = state.slots("g");
        slots.epoch.bytes.is_some().then_some(slots)
    });
    assert_eq!(slots.await.plan.bytes, None);

    // The second has read everything that the first has, and is refused for not leading alone.
    let pretended = Term {
        revision: term.revision + 1,
        until: None,
    };
    let based = base(pretended, &second.states().borrow());
    let fenced = second.write("g", commit("two"), based).await;
    assert!(matches!(fenced, Err(WriteError::Conflict)), "{fenced:?}");
    assert_eq!(epoch_of(&first.states().borrow()).as_deref(), Some("one"));
    assert_eq!(second.states().borrow().term(Instant::now()), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_steps_down_is_followed_at_once() {
    let Some(server) = server::Etcd::start().await else {
        return;
    };
    // So long that the lease cannot be what ends in this test.
    let first = open_for(&server, 600);
    let old = until_leads(&first).await;
    let second = open_for(&server, 600);
    until(&second, |state| state.up.then_some(())).await;
    first.close().await;
    let new = until_leads(&second).await;
    assert!(new.revision > old.revision);
    assert_eq!(first.states().borrow().term(Instant::now()), None);
    let late = first
        .write("g", commit("late"), base(old, &State::default()))
        .await;
    assert!(matches!(late, Err(WriteError::Unavailable(_))), "{late:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_ran_out_ends_the_term_and_another_begins() {
    let Some(server) = server::Etcd::start().await else {
        return;
    };
    let store = open_for(&server, 600);
    let old = until_leads(&store).await;
    let mut client = server.client().await;
    let key = client
        .get(format!("{PREFIX}/balancer"), None)
        .await
        .unwrap();
    client.lease_revoke(key.kvs()[0].lease()).await.unwrap();
    // It takes part again, under a lease and in a term of its own.
    let new = until(&store, |state| {
        state
            .term(Instant::now())
            .filter(|term| term.revision != old.revision)
    });
    let new = new.await;
    let state = store.states().borrow().clone();
    let old = store.write("g", commit("old"), base(old, &state)).await;
    assert!(matches!(old, Err(WriteError::Conflict)), "{old:?}");
    store
        .write("g", commit("new"), base(new, &state))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_that_is_cut_off_stops_leading_by_its_own_clock() {
    let Some(mut server) = server::Etcd::start().await else {
        return;
    };
    let store = open(&server);
    let term = until_leads(&store).await;
    let based = base(term, &store.states().borrow());
    store.write("g", commit("one"), based).await.unwrap();
    server.kill();
    until(&store, |state| {
        state.term(Instant::now()).is_none().then_some(())
    })
    .await;
    let state = store.states().borrow().clone();
    assert_eq!(
        epoch_of(&state).as_deref(),
        Some("one"),
        "the last epoch stays known"
    );
    let away = store.write("g", commit("two"), base(term, &state)).await;
    assert!(matches!(away, Err(WriteError::Unavailable(_))), "{away:?}");

    assert!(server.restart().await);
    let term = until_leads(&store).await;
    let state = store.states().borrow().clone();
    assert_eq!(epoch_of(&state).as_deref(), Some("one"));
    store
        .write("g", commit("two"), base(term, &state))
        .await
        .unwrap();
    until_epoch(&store, "two").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_etcd_is_another_store() {
    let Some(mut server) = server::Etcd::start().await else {
        return;
    };
    let store = open(&server);
    let term = until_leads(&store).await;
    let based = base(term, &store.states().borrow());
    store.write("g", commit("one"), based).await.unwrap();
    let id = store.states().borrow().id.clone();
    assert!(server.wipe().await);
    until(&store, |state| (state.up && state.id != id).then_some(())).await;
    assert_eq!(epoch_of(&store.states().borrow()), None);
    // Its revisions begin anew, and are no obstacle.
    let term = until_leads(&store).await;
    let based = base(term, &store.states().borrow());
    store.write("g", commit("two"), based).await.unwrap();
    until_epoch(&store, "two").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happened_while_away_is_read_even_if_its_revisions_are_gone() {
    let Some(mut server) = server::Etcd::start().await else {
        return;
    };
    let store = open(&server);
    until(&store, |state| state.up.then_some(())).await;
    let key = format!("{PREFIX}/groups/g/epoch");
    let mut client = server.client().await;
    client.put(key.clone(), "one", None).await.unwrap();
    until_epoch(&store, "one").await;
    // Compaction under a watch that keeps up takes nothing from it.
    let put = client.put(key.clone(), "two", None).await.unwrap();
    let now = put.header().unwrap().revision();
    client.compact(now, None).await.unwrap();
    client.put(key.clone(), "three", None).await.unwrap();
    until_epoch(&store, "three").await;
    // One that asks for what was thrown away is told so, and the session reads anew.
    let Store::Etcd(etcd) = &store else {
        panic!("it is etcd")
    };
    let ended = session::follow(&etcd.shared, client.clone(), 1).await;
    assert!(
        matches!(ended, Err(Failed::Compacted(at)) if at == now),
        "{ended:?}"
    );
    // Away while a record is replaced, another removed, and all history compacted.
    client
        .put(format!("{PREFIX}/groups/g/plan"), "plan", None)
        .await
        .unwrap();
    until(&store, |state| state.slots("g").plan.bytes).await;
    server.kill();
    until(&store, |state| (!state.up).then_some(())).await;
    assert!(server.restart().await);
    let mut client = server.client().await;
    client.put(key, "four", None).await.unwrap();
    let gone = client
        .delete(format!("{PREFIX}/groups/g/plan"), None)
        .await
        .unwrap();
    let now = gone.header().unwrap().revision();
    client.compact(now, None).await.unwrap();
    until_epoch(&store, "four").await;
    until(&store, |state| {
        state.slots("g").plan.bytes.is_none().then_some(())
    })
    .await;
}
