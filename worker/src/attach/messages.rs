//! Into wire messages, cut to fit.

use millrace_engine::{experts::ExpertCounts, pages::CacheChanges};
use millrace_model::blocks::BlockHash;
use millrace_proto::worker::v1::{self as wire, worker_message::Message};

use super::feed::{Load, Snapshot, Update};
use crate::{Compatibility, config::Role};

/// Block hashes a message: 1.2 MB, well below gRPC's usual limit of 4 MB.
const BLOCKS_A_MESSAGE: usize = 1 << 16;

/// What a worker says of itself to every router.
#[derive(Debug, Clone)]
pub struct Identity {
    pub worker_id: String,
    pub role: Role,
    /// `host:port` of its gRPC service, as others reach it.
    pub address: String,
    pub compatibility: Compatibility,
    pub served_name: String,
    pub architecture: String,
    pub max_model_len: usize,
    pub vocab_size: usize,
    pub mtp: bool,
    /// Of what text depends on; see [`millrace_model::text::revision`].
    pub text_revision: String,
    pub kv_pages: usize,
    pub max_running: usize,
    pub group: Option<wire::GroupRank>,
    /// Of the deployment.
    pub revision: String,
    /// No prefill worker of its revision is to come.
    pub aggregated: bool,
}

pub fn hello(identity: &Identity) -> wire::WorkerMessage {
    message(Message::Hello(wire::Hello {
        worker_id: identity.worker_id.clone(),
        role: match identity.role {
            Role::Prefill => wire::Role::Prefill,
            Role::Decode => wire::Role::Decode,
        }
        .into(),
        address: identity.address.clone(),
        compatibility: Some(identity.compatibility.clone().into()),
        model: Some(wire::ModelInfo {
            served_name: identity.served_name.clone(),
            architecture: identity.architecture.clone(),
            max_model_len: identity.max_model_len as u32,
            vocab_size: identity.vocab_size as u32,
            mtp: identity.mtp,
            text_revision: identity.text_revision.clone(),
        }),
        kv_pages: identity.kv_pages as u64,
        max_running: identity.max_running as u32,
        group: identity.group.clone(),
        revision: identity.revision.clone(),
        aggregated: identity.aggregated,
    }))
}

pub fn draining() -> wire::WorkerMessage {
    message(Message::Draining(wire::Draining {}))
}

/// How often experts were chosen, and which ranks computed them, since the start.
pub fn expert_counts(counts: &ExpertCounts) -> wire::ExpertCounts {
    wire::ExpertCounts {
        chosen: counts.chosen().counts,
        computed: counts.sent(),
    }
}

pub fn counts_message(counts: wire::ExpertCounts) -> wire::WorkerMessage {
    message(Message::ExpertCounts(counts))
}

/// Counts the deltas after a snapshot.
#[derive(Debug, Default)]
pub struct Sequencer {
    sequence: u64,
}

impl Sequencer {
    /// A snapshot; where it has too many blocks for one message, deltas bring the rest.
    pub fn snapshot(&mut self, snapshot: Snapshot) -> Vec<wire::WorkerMessage> {
        self.sequence = 0;
        let mut chunks = snapshot.blocks.chunks(BLOCKS_A_MESSAGE);
        let mut messages = vec![message(Message::Snapshot(wire::Snapshot {
            load: Some(load(snapshot.load)),
            blocks: hashes(chunks.next().unwrap_or(&[])),
        }))];
        messages.extend(chunks.map(|stored| self.delta(snapshot.load, stored, &[])));
        messages
    }

    /// One delta, or several for more changes than fit.
    pub fn update(&mut self, update: &Update) -> Vec<wire::WorkerMessage> {
        let CacheChanges { stored, removed } = &update.changes;
        let mut stored = stored.chunks(BLOCKS_A_MESSAGE / 2);
        let mut removed = removed.chunks(BLOCKS_A_MESSAGE / 2);
        let mut messages = Vec::with_capacity(1);
        loop {
            let (more, less) = (stored.next(), removed.next());
            if more.is_none() && less.is_none() && !messages.is_empty() {
                return messages;
            }
            let delta = self.delta(update.load, more.unwrap_or(&[]), less.unwrap_or(&[]));
            messages.push(delta);
        }
    }

    fn delta(
        &mut self,
        now: Load,
        stored: &[BlockHash],
        removed: &[BlockHash],
    ) -> wire::WorkerMessage {
        self.sequence += 1;
        message(Message::Delta(wire::Delta {
            sequence: self.sequence,
            load: Some(load(now)),
            stored: hashes(stored),
            removed: hashes(removed),
            cleared: false,
        }))
    }
}

fn message(message: Message) -> wire::WorkerMessage {
    wire::WorkerMessage {
        message: Some(message),
    }
}

fn hashes(blocks: &[BlockHash]) -> Vec<Vec<u8>> {
    blocks.iter().map(|hash| hash.to_bytes().to_vec()).collect()
}

fn load(load: Load) -> wire::Load {
    wire::Load {
        running: load.running as u32,
        waiting: load.waiting as u32,
        waiting_tokens: load.waiting_tokens as u64,
        free_pages: load.free_pages as u64,
        leased_pages: load.leased_pages as u64,
        outside: load.outside,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(stored: usize, removed: usize) -> Update {
        let blocks = |count: usize, from: u128| (from..).take(count).map(BlockHash).collect();
        let changes = CacheChanges {
            stored: blocks(stored, 0),
            removed: blocks(removed, 1 << 64),
        };
        Update {
            load: Load::default(),
            changes,
        }
    }

    fn deltas(messages: Vec<wire::WorkerMessage>) -> Vec<wire::Delta> {
        let delta = |message: wire::WorkerMessage| match message.message {
            Some(Message::Delta(delta)) => delta,
            other => panic!("{other:?}"),
        };
        messages.into_iter().map(delta).collect()
    }

    #[test]
    fn sequence_numbers_have_no_gaps_and_start_over_with_a_snapshot() {
        let mut sequencer = Sequencer::default();
        let heartbeat = deltas(sequencer.update(&update(0, 0)));
        assert_eq!(heartbeat.len(), 1);
        let many = deltas(sequencer.update(&update(BLOCKS_A_MESSAGE, 1)));
        assert_eq!(many.iter().map(|d| d.sequence).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(
            many.iter().map(|d| d.stored.len()).sum::<usize>(),
            BLOCKS_A_MESSAGE
        );
        assert_eq!(many.iter().map(|d| d.removed.len()).sum::<usize>(), 1);

        let snapshot = Snapshot {
            load: Load::default(),
            blocks: (0..2 * BLOCKS_A_MESSAGE as u128 + 1)
                .map(BlockHash)
                .collect(),
        };
        let mut messages = sequencer.snapshot(snapshot);
        let Some(Message::Snapshot(first)) = messages.remove(0).message else {
            panic!("a snapshot comes first");
        };
        assert_eq!(first.blocks.len(), BLOCKS_A_MESSAGE);
        let rest = deltas(messages);
        assert_eq!(rest.iter().map(|d| d.sequence).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(rest[1].stored.len(), 1);
    }
}
