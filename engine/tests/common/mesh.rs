//! An exchange between engines of one process: a channel from every rank to every other. A rank that
//! drops a step lets go of its ends, and whoever waits for it drops the step as well.

use std::sync::mpsc::{Receiver, Sender, channel};

use millrace_engine::{ExpertExchange, Parcel, StepDropped};
use millrace_kernels::Backend;

use super::{TestBackend, TestTensor};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Share,
    Dispatch,
    Collect,
    Respond,
    Combine,
}

pub const PHASES: [Phase; 4] = [
    Phase::Dispatch,
    Phase::Collect,
    Phase::Respond,
    Phase::Combine,
];

/// Where a rank gives a step up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    pub rank: usize,
    pub layer: usize,
    pub phase: Phase,
}

struct Message {
    layer: usize,
    phase: Phase,
    parcel: Parcel,
    rows: Vec<f32>,
    shared: Vec<u8>,
}

/// One rank's ends, for one step.
pub struct Link {
    rank: usize,
    fault: Option<Fault>,
    /// By rank; `None` for those that are no members.
    to: Vec<Option<Sender<Message>>>,
    from: Vec<Option<Receiver<Message>>>,
    /// Calls so far: every rank must make the same ones.
    pub calls: Vec<(usize, Phase)>,
}

/// The links of one step between the ranks of `live`.
pub fn links(live: &[bool], fault: Option<Fault>) -> Vec<Link> {
    let ranks = live.len();
    let mut links: Vec<Link> = (0..ranks)
        .map(|rank| Link {
            rank,
            fault,
            to: (0..ranks).map(|_| None).collect(),
            from: (0..ranks).map(|_| None).collect(),
            calls: Vec::new(),
        })
        .collect();
    let members = || (0..ranks).filter(|&rank| live[rank]);
    for (from, to) in members().flat_map(|from| members().map(move |to| (from, to))) {
        let (sender, receiver) = channel();
        links[from].to[to] = Some(sender);
        links[to].from[from] = Some(receiver);
    }
    links
}

impl Link {
    fn call(&mut self, layer: usize, phase: Phase) -> Result<(), StepDropped> {
        self.calls.push((layer, phase));
        let here = Fault {
            rank: self.rank,
            layer,
            phase,
        };
        if self.fault == Some(here) {
            return Err(StepDropped);
        }
        Ok(())
    }

    /// Sends every rank its part of `rows`: as many as `len` says of its parcel.
    fn send(
        &self,
        backend: &TestBackend,
        layer: usize,
        phase: Phase,
        parcels: &[Parcel],
        rows: &TestTensor,
        len: impl Fn(&Parcel) -> usize,
    ) -> Result<(), StepDropped> {
        let mut values = Vec::new();
        backend.read(rows, &mut values);
        let mut rest = &values[..];
        for (to, parcel) in self.to.iter().zip(parcels) {
            let (part, left) = rest.split_at(len(parcel) * rows.cols());
            rest = left;
            let Some(to) = to else {
                assert_eq!((parcel.rows, parcel.work.len()), (0, 0), "nobody is there");
                continue;
            };
            let message = Message {
                layer,
                phase,
                parcel: parcel.clone(),
                rows: part.to_vec(),
                shared: Vec::new(),
            };
            to.send(message).map_err(|_| StepDropped)?;
        }
        assert!(rest.is_empty(), "rows that are nobody's");
        Ok(())
    }

    fn receive(
        &self,
        layer: usize,
        phase: Phase,
        rank: usize,
    ) -> Result<Option<Message>, StepDropped> {
        let Some(from) = &self.from[rank] else {
            return Ok(None);
        };
        let message = from.recv().map_err(|_| StepDropped)?;
        assert_eq!((message.layer, message.phase), (layer, phase), "in step");
        Ok(Some(message))
    }
}

impl ExpertExchange<TestBackend> for Link {
    fn share(&mut self, round: usize, mine: &[u8]) -> Result<Vec<Option<Vec<u8>>>, StepDropped> {
        for to in self.to.iter().flatten() {
            let message = Message {
                layer: round,
                phase: Phase::Share,
                parcel: Parcel::default(),
                rows: Vec::new(),
                shared: mine.to_vec(),
            };
            to.send(message).map_err(|_| StepDropped)?;
        }
        (0..self.from.len())
            .map(|rank| {
                let message = self.receive(round, Phase::Share, rank)?;
                Ok(message.map(|message| message.shared))
            })
            .collect()
    }

    fn is_over(&self) -> bool {
        false
    }

    fn dispatch(
        &mut self,
        backend: &TestBackend,
        layer: usize,
        parcels: &[Parcel],
        sent: &TestTensor,
    ) -> Result<(), StepDropped> {
        self.call(layer, Phase::Dispatch)?;
        self.send(backend, layer, Phase::Dispatch, parcels, sent, |parcel| {
            parcel.rows
        })
    }

    fn collect(
        &mut self,
        backend: &TestBackend,
        layer: usize,
        parcels: &mut [Parcel],
        received: &mut TestTensor,
    ) -> Result<(), StepDropped> {
        self.call(layer, Phase::Collect)?;
        let mut all = Vec::new();
        for (rank, parcel) in parcels.iter_mut().enumerate() {
            *parcel = Parcel::default();
            if let Some(message) = self.receive(layer, Phase::Dispatch, rank)? {
                *parcel = message.parcel;
                all.extend(message.rows);
            }
        }
        backend.write(&all, received);
        Ok(())
    }

    fn respond(
        &mut self,
        backend: &TestBackend,
        layer: usize,
        parcels: &[Parcel],
        results: &TestTensor,
    ) -> Result<(), StepDropped> {
        self.call(layer, Phase::Respond)?;
        self.send(backend, layer, Phase::Respond, parcels, results, |parcel| {
            parcel.work.len()
        })
    }

    fn combine(
        &mut self,
        backend: &TestBackend,
        layer: usize,
        _: &[Parcel],
        returned: &mut TestTensor,
    ) -> Result<(), StepDropped> {
        self.call(layer, Phase::Combine)?;
        let mut all = Vec::new();
        for rank in 0..self.from.len() {
            let message = self.receive(layer, Phase::Respond, rank)?;
            all.extend(message.into_iter().flat_map(|message| message.rows));
        }
        backend.write(&all, returned);
        Ok(())
    }
}
