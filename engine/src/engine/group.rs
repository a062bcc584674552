//! An engine as one rank of a group.

use std::sync::Arc;

use millrace_experts::{Choice, Epoch};
use millrace_kernels::Backend;
use millrace_model::checkpoint::Checkpoint;

use super::{Engine, Pending};
use crate::{
    EngineConfig, EngineError, Event, ExpertError, ExpertExchange, ExpertShelf, GroupRank,
    StepDropped,
    config::LoadProgress,
    experts::ExpertSource,
    forward::{Ranks, Slots},
};

/// What a rank has besides an engine of its own.
pub(super) struct Group<B: Backend> {
    rank: GroupRank,
    pub shelf: Arc<ExpertShelf<B>>,
    /// Of the epoch that was adopted last; `None` before the first.
    choice: Option<Arc<Choice>>,
}

impl<B: Backend> Group<B> {
    pub fn new(
        backend: &Arc<B>,
        checkpoint: &Arc<Checkpoint>,
        mtp: bool,
        rank: &GroupRank,
    ) -> Result<Group<B>, ExpertError> {
        let source = ExpertSource::new(checkpoint.config(), mtp)?;
        let shelf = ExpertShelf::new(backend.clone(), checkpoint.clone(), source);
        Ok(Group {
            rank: rank.clone(),
            shelf: Arc::new(shelf),
            choice: None,
        })
    }
}

impl<B: Backend> Engine<B> {
    /// Reads the weights of one rank of a group, which is all but the experts of others' slots, and
    /// reserves its pages. Every rank of a group has the same `config`.
    pub fn load_rank(
        backend: B,
        checkpoint: Arc<Checkpoint>,
        config: EngineConfig,
        rank: &GroupRank,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Engine<B>, EngineError> {
        let backend = Arc::new(backend);
        rank.check(checkpoint.config(), config.mtp)?;
        let group = Group::new(&backend, &checkpoint, config.mtp, rank)?;
        let slots = Slots::OfRank(&group.shelf, rank);
        let engine = Engine::load_slots(backend, &checkpoint, config, slots, progress)?;
        Ok(Engine {
            group: Some(group),
            ..engine
        })
    }

    /// Experts in memory, to stage others and to give them to peers; `None` on its own.
    pub fn shelf(&self) -> Option<&Arc<ExpertShelf<B>>> {
        self.group.as_ref().map(|group| &group.shelf)
    }

    /// Rows that the next step would compute at most; 0 when it is idle or blocked.
    pub fn demand(&self) -> usize {
        match self.pending() {
            Pending::Runnable => self.scheduler.demand(),
            Pending::Blocked | Pending::Idle => 0,
        }
    }

    /// Computes under `epoch` from now on: all of this rank's slots are taken from the shelf, or none.
    /// The shelf may let go of what no slot wants any more, then.
    ///
    /// # Errors
    /// Weights are not staged, or the placement is not one of this group's. The epoch before stays.
    ///
    /// # Panics
    /// On an engine on its own.
    pub fn adopt(&mut self, epoch: &Epoch) -> Result<(), ExpertError> {
        let group = self.group.as_mut().expect("a rank of a group");
        let (rank, shape) = (group.rank.rank, epoch.placement.shape());
        if shape != group.rank.placement.shape() {
            return Err(ExpertError::OtherShape {
                found: shape,
                expected: group.rank.placement.shape(),
            });
        }
        let slots = |layer| group.shelf.slots(layer, epoch.placement.slots(layer, rank));
        let layers = (0..shape.layers).map(slots).collect::<Result<_, _>>()?;
        self.forward.set_experts(layers);
        group.choice = Some(Arc::new(Choice::new(epoch, rank)));
        Ok(())
    }

    /// Computes one batch of up to `limit` rows together with the other ranks. With 0, and where
    /// nothing can be computed, it still takes its part in the exchange of every MoE layer: the main
    /// layers in order, then the MTP layer if it drafts.
    ///
    /// # Errors
    /// The epoch cannot be completed. Either no sequence has changed (what was emitted before the
    /// computation stands, and pages that were taken stay), or all have, their tokens were emitted,
    /// and only drafts are missing. In both cases the next step goes on from there, under another
    /// epoch.
    pub fn step_in_group(
        &mut self,
        limit: usize,
        exchange: &mut dyn ExpertExchange<B>,
        emit: &mut dyn FnMut(Event),
    ) -> Result<(), StepDropped> {
        let choice = self.group.as_ref().and_then(|group| group.choice.clone());
        // Without an epoch there is nobody to compute with.
        let choice = choice.ok_or(StepDropped)?;
        let shares = self.plan(limit, emit);
        let mut ranks = Ranks::Group {
            choice: &choice,
            first_row: self.counters.step_tokens as u32,
            exchange,
        };
        self.compute(&shares, &mut ranks, emit)
    }
}
