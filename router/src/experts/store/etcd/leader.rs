//! Leading: one key under a lease.

use std::convert::Infallible;
use std::time::Instant;

use etcd_client::{Client, Compare, CompareOp, GetOptions, PutOptions, Txn, TxnOp};
use tokio::time::timeout;

use super::{Failed, Lease, Shared, call};

/// Keeps a lease, and puts the leader's key whenever there is none.
pub async fn seek(shared: &Shared, mut client: Client) -> Result<Infallible, Failed> {
    let mut changes = shared.leader_changed.subscribe();
    loop {
        let lease = keep(shared, &mut client).await?;
        changes.mark_unchanged();
        let vacant = shared.link.lock().leader.is_none();
        if vacant {
            campaign(shared, &mut client, lease).await?;
        }
        // Two keepalives may fail before the lease runs out. A timeout is the usual end of this.
        let _ = timeout(shared.ttl / 3, changes.changed()).await;
    }
}

/// Prolongs the lease, or takes a new one if it ran out meanwhile.
async fn keep(shared: &Shared, client: &mut Client) -> Result<Lease, Failed> {
    let held = shared.link.lock().lease;
    // The lease runs from when etcd heard of it, which is later than this.
    let asked = Instant::now();
    let kept = match held {
        Some(lease) => prolonged(client, lease.id).await?,
        None => None,
    };
    let (id, ttl) = match kept {
        Some(kept) => kept,
        None => {
            let ttl = i64::try_from(shared.ttl.as_secs()).unwrap_or(i64::MAX);
            let granted = call(client.lease_grant(ttl, None)).await?;
            (granted.id(), granted.ttl())
        }
    };
    // What etcd grants may be longer than what was asked for. The shorter one is safe.
    let ttl = shared
        .ttl
        .min(std::time::Duration::from_secs(ttl.max(0).unsigned_abs()));
    let lease = Lease {
        id,
        until: asked + ttl,
    };
    shared.link.lock().lease = Some(lease);
    shared.settle_term();
    Ok(lease)
}

/// `None`: etcd has no such lease any more.
async fn prolonged(client: &mut Client, id: i64) -> Result<Option<(i64, i64)>, Failed> {
    // One question and one answer on a stream of its own: there is no state to get out of step.
    match call(client.lease_keep_alive(id)).await {
        Ok(_) => {
            let left = call(client.lease_time_to_live(id, None)).await?;
            Ok((left.ttl() > 0).then(|| (id, left.granted_ttl())))
        }
        Err(Failed::Etcd(etcd_client::Error::LeaseKeepAliveError(reason))) => {
            tracing::warn!(reason, "the lease of this router ran out");
            Ok(None)
        }
        Err(failed) => Err(failed),
    }
}

/// Puts the leader's key if there is none, and learns whose it is.
async fn campaign(shared: &Shared, client: &mut Client, lease: Lease) -> Result<(), Failed> {
    let key = shared.keys.leader();
    let vacant = Compare::create_revision(key.clone(), CompareOp::Equal, 0);
    let put = TxnOp::put(
        key.clone(),
        shared.name.clone(),
        Some(PutOptions::new().with_lease(lease.id)),
    );
    let campaign = Txn::new().when([vacant]).and_then([put]);
    let won = call(client.txn(campaign)).await?.succeeded();
    let found = call(client.get(key, None::<GetOptions>)).await?;
    shared.learn_leader(found.kvs().first());
    if won {
        tracing::info!(
            router = shared.name,
            "this router leads the balancing of experts"
        );
    }
    Ok(())
}
