//! A sequence's place on its workers: chosen, counted into their load, released when dropped.

use std::sync::Arc;
use std::time::Instant;

use tonic::transport::Channel;

use super::pairing::{self, Ask, Chosen};
use crate::fleet::roster::{Evicted, Roster};
use crate::fleet::{Fleet, Ticket, WorkerKey};
use crate::metrics::Metrics;

/// The workers of one attempt.
pub struct Placement {
    pub decode: Placed,
    pub channel: Channel,
    pub evicted: Evicted,
    /// Of both.
    pub model_revision: String,
    /// `None`: the decode worker prefills by itself, or the prefill is done.
    pub prefill: Option<Placed>,
}

/// A sequence counted into one worker's load until this is dropped.
pub struct Placed {
    pub worker: WorkerKey,
    pub worker_id: String,
    pub address: String,
    ticket: Ticket,
    roster: Arc<Roster>,
}

impl Drop for Placed {
    fn drop(&mut self) {
        self.roster.lock().fleet.release(self.worker, self.ticket);
    }
}

/// Finds workers and takes a place on them. `None` if no decode worker is available.
pub fn place(
    roster: &Arc<Roster>,
    ask: &Ask,
    metrics: &Metrics,
    now: Instant,
) -> Option<Placement> {
    let mut state = roster.lock();
    let pair = pairing::choose(&state.fleet, ask)?;
    let (channel, evicted) = state.link(pair.decode.worker)?;
    let model_revision = state
        .fleet
        .get(pair.decode.worker)?
        .model_revision()
        .to_owned();
    let mut take = |chosen: Chosen| taken(&mut state.fleet, roster, chosen, now);
    let decode = take(pair.decode)?;
    let prefill = pair.prefill.and_then(take);
    drop(state);
    metrics.paired(
        ask.tokens,
        pair.decode.overlap,
        pair.prefill.map(|p| p.overlap),
    );
    Some(Placement {
        decode,
        channel,
        evicted,
        model_revision,
        prefill,
    })
}

fn taken(fleet: &mut Fleet, roster: &Arc<Roster>, chosen: Chosen, now: Instant) -> Option<Placed> {
    let Chosen { worker, demand, .. } = chosen;
    let description = &fleet.get(worker)?.description;
    let (worker_id, address) = (description.worker_id.clone(), description.address.clone());
    let ticket = fleet.assign(worker, demand, now);
    Some(Placed {
        worker,
        worker_id,
        address,
        ticket,
        roster: Arc::clone(roster),
    })
}
