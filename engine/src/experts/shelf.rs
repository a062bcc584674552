//! The experts a rank has in memory.

use std::{collections::HashMap, sync::Arc};

use millrace_kernels::{Backend, Pace};
use millrace_model::checkpoint::Checkpoint;
use parking_lot::RwLock;

use super::{ExpertError, ExpertSource};

/// Experts by (MoE layer, expert), shared between the engine, which takes slots from it, and the
/// threads that stage weights and give them to peers while the engine runs.
///
/// An expert's digest is made from the bytes that were loaded, before anything is computed with
/// them. So memory that went bad later is noticed by the peer that fetches it.
pub struct ExpertShelf<B: Backend> {
    backend: Arc<B>,
    checkpoint: Arc<Checkpoint>,
    source: ExpertSource,
    held: RwLock<HashMap<(usize, usize), Held<B>>>,
}

struct Held<B: Backend> {
    expert: Arc<B::Expert>,
    digest: Digest,
    /// Length of its exported bytes.
    bytes: usize,
}

impl<B: Backend> Clone for Held<B> {
    fn clone(&self) -> Held<B> {
        Held {
            expert: self.expert.clone(),
            digest: self.digest,
            bytes: self.bytes,
        }
    }
}

/// blake3 over revision, layer, expert and bytes.
type Digest = [u8; 32];

/// An expert's weights for another rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    pub bytes: Vec<u8>,
    pub digest: [u8; 32],
}

impl<B: Backend> ExpertShelf<B> {
    pub(crate) fn new(
        backend: Arc<B>,
        checkpoint: Arc<Checkpoint>,
        source: ExpertSource,
    ) -> ExpertShelf<B> {
        ExpertShelf {
            backend,
            checkpoint,
            source,
            held: RwLock::default(),
        }
    }

    pub fn has(&self, layer: usize, expert: usize) -> bool {
        self.held.read().contains_key(&(layer, expert))
    }

    /// The experts of a layer's slots.
    pub(crate) fn slots(
        &self,
        layer: usize,
        experts: &[u32],
    ) -> Result<Vec<Arc<B::Expert>>, ExpertError> {
        let held = self.held.read();
        let slot = |&expert: &u32| {
            let expert = expert as usize;
            held.get(&(layer, expert))
                .map(|held| held.expert.clone())
                .ok_or(ExpertError::Missing { layer, expert })
        };
        experts.iter().map(slot).collect()
    }

    /// Bytes of an expert as [`export`](Self::export) gives them: the largest of those held.
    pub fn expert_bytes(&self) -> u64 {
        let held = self.held.read();
        held.values()
            .map(|held| held.bytes as u64)
            .max()
            .unwrap_or(0)
    }

    /// Reads and packs an expert beside the steps of the engine, unless it is there already.
    pub fn load_from_checkpoint(&self, layer: usize, expert: usize) -> Result<(), ExpertError> {
        self.load(layer, expert, Pace::Background, &mut |_| {})
    }

    pub(crate) fn load(
        &self,
        layer: usize,
        expert: usize,
        pace: Pace,
        read: &mut dyn FnMut(usize),
    ) -> Result<(), ExpertError> {
        if self.has(layer, expert) {
            return Ok(());
        }
        let place = (layer, expert);
        let packed = self
            .source
            .load(&*self.backend, &self.checkpoint, place, pace, read)?;
        let bytes = self.backend.expert_bytes(&packed);
        let digest = self.digest(layer, expert, &bytes);
        self.put(layer, expert, packed, digest, bytes.len());
        Ok(())
    }

    /// An expert's weights with the digest that was made when they were loaded; `None` if it is not
    /// here.
    pub fn export(&self, layer: usize, expert: usize) -> Option<Exported> {
        let held = self.held.read().get(&(layer, expert)).cloned()?;
        Some(Exported {
            bytes: self.backend.expert_bytes(&held.expert),
            digest: held.digest,
        })
    }

    /// Takes in what another rank exported, once it is known to be what that rank loaded for this
    /// very layer and expert of this very checkpoint.
    pub fn import(
        &self,
        layer: usize,
        expert: usize,
        bytes: &[u8],
        digest: &[u8],
    ) -> Result<(), ExpertError> {
        self.source.check(layer, expert)?;
        let found = self.digest(layer, expert, bytes);
        if found.as_slice() != digest {
            return Err(ExpertError::WrongDigest { layer, expert });
        }
        let (hidden, inter) = (self.source.hidden, self.source.inter);
        let packed = self
            .backend
            .expert_from_bytes(bytes, hidden, inter)
            .map_err(|source| ExpertError::Weights {
                layer,
                expert,
                source,
            })?;
        self.put(layer, expert, packed, found, bytes.len());
        Ok(())
    }

    /// Lets go of all experts but those that `keep(layer, expert)`. What the engine computes with
    /// stays in memory until it has adopted something else.
    pub fn retain(&self, mut keep: impl FnMut(usize, usize) -> bool) {
        let kept = |&(layer, expert): &(usize, usize), _: &mut Held<B>| keep(layer, expert);
        self.held.write().retain(kept);
    }

    fn put(&self, layer: usize, expert: usize, packed: B::Expert, digest: Digest, bytes: usize) {
        let held = Held {
            expert: Arc::new(packed),
            digest,
            bytes,
        };
        // The first one stays: slots of one expert then share their weights.
        self.held.write().entry((layer, expert)).or_insert(held);
    }

    /// Says whose weights they are, too: right bytes in a wrong place are wrong weights.
    fn digest(&self, layer: usize, expert: usize, bytes: &[u8]) -> Digest {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.checkpoint.revision().as_bytes());
        hasher.update(&(layer as u64).to_le_bytes());
        hasher.update(&(expert as u64).to_le_bytes());
        hasher.update(bytes);
        *hasher.finalize().as_bytes()
    }
}
