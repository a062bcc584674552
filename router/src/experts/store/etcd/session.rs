//! Keeps in touch with etcd, and what is known of it true.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, EventType, GetOptions, Txn, TxnOp, WatchOptions,
};

use super::keys::Key;
use super::{Failed, Shared, call, leader};

/// An idle connection is tried this often, and given up when there is no answer for as long.
const KEEPALIVE: Duration = Duration::from_secs(2);
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// One session after the other, for ever.
pub async fn keep(shared: Arc<Shared>) {
    let mut wait = FIRST_WAIT;
    let mut told = false;
    loop {
        let ended = match session(&shared).await {
            Ok(never) => match never {},
            Err(ended) => ended,
        };
        let was_up = shared.state.borrow().up;
        if let Failed::Compacted(_) = ended {
            tracing::info!(%ended, "reading the epoch store anew");
            continue;
        }
        shared.link.lock().client = None;
        shared.set_up(false);
        if was_up || !told {
            told = true;
            tracing::warn!(
                error = %ended,
                endpoints = shared.endpoints.join(","),
                "etcd is out of reach; groups serve on under their last epochs, changes wait"
            );
        }
        wait = if was_up {
            FIRST_WAIT
        } else {
            LONGEST_WAIT.min(wait * 2)
        };
        // Routers that lost the same etcd do not come back all at once.
        tokio::time::sleep(wait.mul_f64(rand::random_range(0.5..1.0))).await;
    }
}

async fn session(shared: &Shared) -> Result<Infallible, Failed> {
    let options = ConnectOptions::new()
        .with_connect_timeout(KEEPALIVE)
        .with_keep_alive(KEEPALIVE, KEEPALIVE)
        .with_keep_alive_while_idle(true)
        // A member that lost its peers says so instead of staying silent.
        .with_require_leader(true);
    let mut client = call(Client::connect(&shared.endpoints, Some(options))).await?;
    // Before the state says that etcd is up, for whoever writes then.
    shared.link.lock().client = Some(client.clone());
    let read = read(shared, &mut client).await?;
    tracing::info!(revision = read, "the epoch store is up");
    let lead = leader::seek(shared, client.clone());
    let sweep = sweep(shared, client.clone());
    tokio::try_join!(follow(shared, client, read + 1), lead, sweep).map(|(never, ..)| never)
}

/// Takes in everything, and returns the revision it is of.
async fn read(shared: &Shared, client: &mut Client) -> Result<i64, Failed> {
    let store = shared.keys.store();
    let unnamed = Compare::create_revision(store.clone(), CompareOp::Equal, 0);
    let name = TxnOp::put(store, format!("{:016x}", rand::random::<u64>()), None);
    let named = Txn::new().when([unnamed]).and_then([name]);
    call(client.txn(named)).await?;

    let everything = GetOptions::new().with_prefix();
    let all = call(client.get(shared.keys.all(), Some(everything))).await?;
    let revision = all.header().map_or(0, |header| header.revision());
    shared.replace(all.kvs(), revision);
    Ok(revision)
}

/// Watches everything from a revision on.
pub(super) async fn follow(
    shared: &Shared,
    mut client: Client,
    from: i64,
) -> Result<Infallible, Failed> {
    let options = WatchOptions::new().with_prefix().with_start_revision(from);
    let watch = client.watch(shared.keys.all(), Some(options));
    let mut watch = call(watch).await?;
    loop {
        let Some(message) = watch.message().await? else {
            return Err(Failed::Watch("no reason given".into()));
        };
        if message.compact_revision() > 0 {
            return Err(Failed::Compacted(message.compact_revision()));
        }
        if message.canceled() {
            return Err(Failed::Watch(message.cancel_reason().to_owned()));
        }
        let news = message.events().iter().filter_map(|event| {
            let kv = event.kv()?;
            let key = shared.keys.parse(kv.key())?;
            // A deletion is told of with the revision that it happened at.
            let value = (event.event_type() == EventType::Put).then_some(kv);
            Some((key, value, kv.mod_revision()))
        });
        shared.learn(&news.collect::<Vec<_>>());
    }
}

/// Looks for removals that the watch did not tell of: etcd (3.4.23 at least) loses one that happened
/// at the very revision that history is then compacted to, if the watch had not got there.
async fn sweep(shared: &Shared, mut client: Client) -> Result<Infallible, Failed> {
    loop {
        tokio::time::sleep(shared.ttl).await;
        let names = GetOptions::new().with_prefix().with_keys_only();
        let there = call(client.get(shared.keys.all(), Some(names))).await?;
        let revision = there.header().map_or(0, |header| header.revision());
        let keys: HashSet<Key> = there
            .kvs()
            .iter()
            .filter_map(|kv| shared.keys.parse(kv.key()))
            .collect();
        let known = super::records(&shared.state.borrow());
        let gone = known.into_iter().filter(|key| !keys.contains(key));
        let news: Vec<_> = gone.map(|key| (key, None, revision)).collect();
        shared.learn(&news);
    }
}
