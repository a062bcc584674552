//! One change, one transaction.

use etcd_client::{Compare, CompareOp, Error, Txn, TxnOp, TxnOpResponse};

use super::super::{Base, Change, Kind, WriteError};
use super::keys::Key;
use super::{Failed, Shared, call};

pub async fn write(
    shared: &Shared,
    group: &str,
    change: Change,
    base: Base,
) -> Result<(), WriteError> {
    let unavailable = |failed: Failed| WriteError::Unavailable(failed.to_string());
    let client = shared.link.lock().client.clone();
    let Some(mut client) = client else {
        return Err(WriteError::Unavailable("there is no connection".into()));
    };
    let records = [
        (Kind::Epoch, shared.keys.epoch(group)),
        (Kind::Plan, shared.keys.plan(group)),
    ];
    let leader = shared.keys.leader();
    let as_decided_on = [
        // The key was created by this router, in this term: had it gone meanwhile, whoever put it
        // again would have created it at a later revision. A wiped etcd counts anew, hence the name.
        Compare::create_revision(leader.clone(), CompareOp::Equal, base.term.revision),
        Compare::value(leader, CompareOp::Equal, shared.name.clone()),
        Compare::mod_revision(records[0].1.clone(), CompareOp::Equal, base.epoch),
        Compare::mod_revision(records[1].1.clone(), CompareOp::Equal, base.plan),
    ];
    let (epoch, plan) = change.parts();
    let mut ops = Vec::new();
    for (part, (_, key)) in [epoch.map(Some), plan].into_iter().zip(&records) {
        match part {
            Some(Some(bytes)) => ops.push(TxnOp::put(key.clone(), bytes, None)),
            Some(None) => ops.push(TxnOp::delete(key.clone(), None)),
            None => {}
        }
    }
    // Either way the answer ends with what is there now.
    let look = records
        .each_ref()
        .map(|(_, key)| TxnOp::get(key.clone(), None));
    ops.extend(look.clone());
    let txn = Txn::new().when(as_decided_on).and_then(ops).or_else(look);
    let answer = call(client.txn(txn)).await.map_err(|failed| match failed {
        // etcd gives the reason in its status: too large, no space, no leader.
        Failed::Etcd(Error::GRpcStatus(status)) => {
            WriteError::Unavailable(status.message().to_owned())
        }
        failed => unavailable(failed),
    })?;
    let revision = answer.header().map_or(0, |header| header.revision());
    let looks = answer.op_responses().into_iter().filter_map(|op| match op {
        TxnOpResponse::Get(get) => Some(get),
        _ => None,
    });
    let looks: Vec<_> = looks.collect();
    let news = records.iter().zip(&looks).map(|((kind, _), look)| {
        let key = Key::Record(group.to_owned(), *kind);
        (key, look.kvs().first(), revision)
    });
    shared.learn(&news.collect::<Vec<_>>());
    if answer.succeeded() {
        Ok(())
    } else {
        Err(WriteError::Conflict)
    }
}
