//! An engine as one rank of a group.

use std::sync::Arc;

use millrace_experts::{Choice, Epoch, RankId};
use millrace_kernels::Backend;
use millrace_model::checkpoint::Checkpoint;

use super::devices::Devices;
use super::{Engine, Pending};
use crate::{
    EngineConfig, EngineError, Event, ExpertError, ExpertExchange, ExpertPath, ExpertShelf,
    GroupRank, StepDropped,
    config::LoadProgress,
    experts::ExpertSource,
    forward::{Ranks, Slots},
};

/// What a rank has besides an engine of its own.
pub(super) struct Group<B: Backend> {
    rank: GroupRank,
    pub shelf: Arc<ExpertShelf<B>>,
    /// Of the epoch that was adopted last; `None` before the first.
    adopted: Option<Adopted>,
    /// `None` where rows go by way of the host.
    devices: Option<Devices<B>>,
}

/// What a rank computes under.
#[derive(Clone)]
struct Adopted {
    choice: Arc<Choice>,
    members: Arc<[RankId]>,
}

impl<B: Backend> Group<B> {
    pub fn new(
        backend: &Arc<B>,
        checkpoint: &Arc<Checkpoint>,
        mtp: bool,
        rank: &GroupRank,
        devices: Option<Devices<B>>,
    ) -> Result<Group<B>, ExpertError> {
        let source = ExpertSource::new(checkpoint.config(), mtp)?;
        let shelf = ExpertShelf::new(backend.clone(), checkpoint.clone(), source);
        Ok(Group {
            rank: rank.clone(),
            shelf: Arc::new(shelf),
            adopted: None,
            devices,
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
        let devices = Devices::new(&*backend, checkpoint.config(), &config, rank)?;
        let group = Group::new(&backend, &checkpoint, config.mtp, rank, devices)?;
        let slots = Slots::OfRank(&group.shelf, rank);
        let mut engine = Engine::load_slots(backend, &checkpoint, config, slots, progress)?;
        engine.group = Some(group);
        engine.warm_up_devices();
        Ok(engine)
    }

    /// Computes the largest batch as a group of its own device does, so that there is room for what that takes.
    fn warm_up_devices(&mut self) {
        let devices = self.group.as_mut().and_then(|group| group.devices.as_mut());
        if let Some(devices) = devices {
            let memory = self.pool.memory().clone();
            let rows = self.config.most_rows();
            let ranks = &mut devices.ranks(&|| false);
            self.forward
                .warm_up(&memory, rows, self.max_model_len, ranks);
        }
    }

    /// How experts' rows go to other ranks, which has to be the same on all of a group; `None` on its own.
    pub fn expert_path(&self) -> Option<ExpertPath> {
        let group = self.group.as_ref()?;
        Some(match group.devices {
            None => ExpertPath::Host,
            Some(_) => group.rank.path,
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
        group.adopted = Some(Adopted {
            choice: Arc::new(Choice::new(epoch, rank)),
            members: epoch.members.iter().map(|member| member.id).collect(),
        });
        if let Some(devices) = &mut group.devices {
            devices.part();
        }
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
        // Without an epoch there is nobody to compute with.
        let group = self.group.as_mut().ok_or(StepDropped)?;
        let Adopted { choice, members } = group.adopted.clone().ok_or(StepDropped)?;
        let first_row = self.counters.step_tokens as u32;
        let rank = group.rank.rank;
        if let Some(mut devices) = group.devices.take() {
            // Out of the engine while it computes with them.
            let computed = devices
                .meet(self.forward.backend(), rank, &members, &choice, exchange)
                .and_then(|met| match met {
                    true => self.compute_on(&mut devices, first_row, limit, exchange, emit),
                    false => self.compute_by_host(&choice, first_row, limit, exchange, emit),
                });
            let group = self.group.as_mut().expect("it was there");
            group.devices = Some(devices);
            return computed;
        }
        self.compute_by_host(&choice, first_row, limit, exchange, emit)
    }

    fn compute_on(
        &mut self,
        devices: &mut Devices<B>,
        first_row: u32,
        limit: usize,
        exchange: &dyn ExpertExchange<B>,
        emit: &mut dyn FnMut(Event),
    ) -> Result<(), StepDropped> {
        devices.begin(self.forward.backend(), first_row);
        let is_over = || exchange.is_over();
        let shares = self.plan(limit, emit);
        self.compute(&shares, &mut devices.ranks(&is_over), emit)
    }

    fn compute_by_host(
        &mut self,
        choice: &Choice,
        first_row: u32,
        limit: usize,
        exchange: &mut dyn ExpertExchange<B>,
        emit: &mut dyn FnMut(Event),
    ) -> Result<(), StepDropped> {
        let shares = self.plan(limit, emit);
        let mut ranks = Ranks::Group {
            choice,
            first_row,
            exchange,
        };
        self.compute(&shares, &mut ranks, emit)
    }
}
