//! The ranks of a group on devices that reach each other's memory: how they come to know each other.
//!
//! In the first step of an epoch all members tell each other where their memory is, connect, and tell each other whether
//! that was possible. Rows go from device to device where all could, and otherwise by way of the host, under that
//! epoch: all members decide on the same words.

use std::collections::BTreeSet;

use millrace_experts::{Choice, Epoch, Loads, Member, RankId};
use millrace_kernels::{Backend, ExchangeShape, KernelError, ReplicaTable};
use millrace_model::config::ModelConfig;

use crate::{
    EngineConfig, EngineError, ExpertExchange, ExpertPath, GroupRank, StepDropped,
    experts::moe_layers, forward::Ranks,
};

/// Rounds of [`ExpertExchange::share`].
const OFFERS: usize = 0;
const VERDICTS: usize = 1;

/// This rank's device among others.
pub(super) struct Devices<B: Backend> {
    exchange: B::Exchange,
    path: ExpertPath,
    /// Lives that know where its memory is.
    told: BTreeSet<RankId>,
    /// Whether the members of the adopted epoch reach each other; `None` until they have met.
    met: Option<bool>,
}

impl<B: Backend> Devices<B> {
    /// `None` where rows go by way of the host: because that is asked for, or there is no other way.
    pub fn new(
        backend: &B,
        model: &ModelConfig,
        config: &EngineConfig,
        rank: &GroupRank,
    ) -> Result<Option<Devices<B>>, EngineError> {
        let (moe, _) = moe_layers(model, config.mtp).expect("looked at when the rank was");
        let experts = rank.placement.shape();
        if rank.path == ExpertPath::Host || experts.ranks == 1 {
            return Ok(None);
        }
        let shape = ExchangeShape {
            layers: experts.layers,
            experts: experts.experts,
            ranks: experts.ranks,
            slots: experts.slots,
            rows: config.most_rows(),
            per_token: moe.experts_per_token,
            hidden: model.common.hidden_size,
        };
        // Until it meets others, for finding room.
        let table = table(&Choice::new(&everyone(rank), rank.rank));
        let exchange = match backend.exchange(shape, &table) {
            Err(why @ KernelError::Sharing(_)) if rank.path == ExpertPath::Auto => {
                tracing::warn!(%why, "experts' rows go by way of the host");
                None
            }
            exchange => exchange?,
        };
        Ok(exchange.map(|exchange| Devices {
            exchange,
            path: rank.path,
            told: BTreeSet::new(),
            met: None,
        }))
    }

    pub fn ranks<'a>(&'a mut self, is_over: &'a dyn Fn() -> bool) -> Ranks<'a, B> {
        Ranks::Devices {
            exchange: &mut self.exchange,
            is_over,
        }
    }

    /// Another epoch was adopted: its members have to meet.
    pub fn part(&mut self) {
        self.met = None;
    }

    /// Starts a step whose first row has this number.
    pub fn begin(&mut self, backend: &B, first_row: u32) {
        backend.exchange_begin(first_row, &mut self.exchange);
    }

    /// Whether all members' devices reach each other. In the first step of an epoch that has to be found out, by all of
    /// them together.
    pub fn meet(
        &mut self,
        backend: &B,
        me: usize,
        members: &[RankId],
        choice: &Choice,
        links: &mut dyn ExpertExchange<B>,
    ) -> Result<bool, StepDropped> {
        if let Some(met) = self.met {
            return Ok(met);
        }
        let offer = self.offer(backend, members);
        let told = match &offer {
            Ok(offer) => links.share(OFFERS, offer)?,
            // Nobody offers nothing.
            Err(_) => links.share(OFFERS, &[])?,
        };
        let connected = offer.and_then(|_| self.connect(backend, me, &told, choice));
        let verdicts = links.share(VERDICTS, &[u8::from(connected.is_ok())])?;
        backend.exchange_met(&mut self.exchange);
        let all = verdicts.iter().flatten().all(|verdict| verdict == &[1]);
        match (&connected, all) {
            (Ok(()), true) => tracing::info!("experts' rows go from device to device"),
            (Ok(()), false) => {
                tracing::info!("experts' rows go by way of the host: a rank cannot do otherwise");
            }
            (Err(why), _) => tracing::info!(%why, "experts' rows go by way of the host"),
        }
        self.met = Some(all);
        Ok(all)
    }

    fn offer(&mut self, backend: &B, members: &[RankId]) -> Result<Vec<u8>, KernelError> {
        let fresh = !self.told.iter().all(|id| members.contains(id));
        let offer = backend.exchange_offer(&mut self.exchange, fresh)?;
        if fresh {
            self.told.clear();
        }
        self.told.extend(members);
        Ok(offer)
    }

    fn connect(
        &mut self,
        backend: &B,
        me: usize,
        told: &[Option<Vec<u8>>],
        choice: &Choice,
    ) -> Result<(), KernelError> {
        let offers: Vec<Option<&[u8]>> = told.iter().map(Option::as_deref).collect();
        if offers.iter().flatten().any(|offer| offer.is_empty()) {
            return Err(KernelError::Sharing("a rank has no room for others".into()));
        }
        let apart = self.path != ExpertPath::Devices;
        let table = table(choice);
        backend.exchange_connect(&mut self.exchange, me, &offers, &table, apart)
    }
}

/// Which replicas rows take, as devices look it up.
pub(crate) fn table(choice: &Choice) -> ReplicaTable {
    let (entries, replicas) = choice.words();
    ReplicaTable { entries, replicas }
}

/// All ranks under the placement that a rank loads at start, every expert asked for alike.
pub(crate) fn everyone(rank: &GroupRank) -> Epoch {
    let shape = rank.placement.shape();
    let member = |rank| Member {
        id: RankId {
            rank,
            incarnation: 1,
        },
        exchange: String::new(),
        grpc: String::new(),
    };
    Epoch {
        number: 1,
        reset: 1,
        members: (0..shape.ranks).map(member).collect(),
        expected: std::sync::Arc::new(Loads {
            experts: shape.experts,
            counts: vec![1; shape.layers * shape.experts],
        }),
        placement: rank.placement.clone(),
    }
}
