//! Groups of engines in one process, each rank's part of a step on a thread of its own.

use std::{collections::HashMap, sync::Arc, thread};

use millrace_engine::{
    Engine, EngineConfig, Event, ExpertPath, GroupRank, Request, StepDropped, engine::Pending,
    experts::shape,
};
use millrace_experts::{Epoch, Loads, Member, Placement, RankId, Shape};
use millrace_model::checkpoint::Checkpoint;
use rand::{Rng, rngs::SmallRng, seq::SliceRandom};

use super::{
    Answer, TestBackend, backend,
    mesh::{Fault, Phase, links},
};

pub struct Group {
    pub engines: Vec<Engine<TestBackend>>,
    pub epoch: Epoch,
    pub answers: HashMap<u64, Answer>,
    /// Steps that were dropped by some rank.
    pub dropped: usize,
}

/// `[ranks]`: all of them, or all but one.
pub fn members(ranks: usize, without: Option<usize>) -> Vec<Member> {
    (0..ranks)
        .filter(|rank| Some(*rank) != without)
        .map(|rank| Member {
            id: RankId {
                rank,
                incarnation: 1,
            },
            exchange: String::new(),
            grpc: String::new(),
        })
        .collect()
}

/// Any placement in which the members have every expert.
pub fn random_placement(shape: Shape, without: Option<usize>, rng: &mut SmallRng) -> Placement {
    let mut table = Vec::new();
    for _ in 0..shape.layers {
        let mut places: Vec<usize> = (0..shape.layer_slots()).collect();
        places.shuffle(rng);
        // Members' slots first, so that each expert is in one.
        places.sort_by_key(|place| Some(place / shape.slots) == without);
        let mut layer = vec![0; shape.layer_slots()];
        for (number, place) in places.into_iter().enumerate() {
            layer[place] = if number < shape.experts {
                number as u32
            } else {
                rng.random_range(0..shape.experts as u32)
            };
        }
        table.extend(layer);
    }
    Placement::new(shape, table).expect("every expert has a slot")
}

pub fn random_loads(shape: Shape, rng: &mut SmallRng) -> Loads {
    let mut loads = Loads::zero(shape.layers, shape.experts);
    loads.counts.fill_with(|| rng.random_range(0..100));
    loads
}

impl Group {
    pub fn load(
        checkpoint: &Arc<Checkpoint>,
        config: &EngineConfig,
        ranks: usize,
        redundant: usize,
    ) -> Group {
        let shape = shape(checkpoint.config(), config.mtp, ranks, redundant).expect("experts");
        let placement = Arc::new(Placement::initial(shape).expect("a placement"));
        let engines = (0..ranks).map(|rank| {
            let place = GroupRank {
                placement: placement.clone(),
                rank,
                // One process cannot wait for itself on a device: e2e tests have devices exchange rows.
                path: ExpertPath::Host,
            };
            Engine::load_rank(
                backend(1),
                checkpoint.clone(),
                config.clone(),
                &place,
                &mut |_| {},
            )
            .expect("it loads")
        });
        let engines = engines.collect();
        let epoch = Epoch {
            number: 1,
            reset: 1,
            members: members(ranks, None),
            placement,
            expected: Arc::new(Loads::zero(shape.layers, shape.experts)),
        };
        let mut group = Group {
            engines,
            epoch: epoch.clone(),
            answers: HashMap::new(),
            dropped: 0,
        };
        group.adopt(epoch);
        group
    }

    pub fn shape(&self) -> Shape {
        self.epoch.placement.shape()
    }

    pub fn submit(&mut self, rank: usize, request: Request) {
        self.engines[rank].submit(request).expect("accepted");
    }

    /// Stages what the members lack, from another rank or the checkpoint, and adopts.
    pub fn adopt(&mut self, epoch: Epoch) {
        epoch.check().expect("an epoch to compute under");
        for Member { id, .. } in &epoch.members {
            self.stage(&epoch.placement, id.rank);
            self.engines[id.rank].adopt(&epoch).expect("it is staged");
        }
        for Member { id, .. } in &epoch.members {
            let shelf = self.engines[id.rank].shelf().expect("a rank");
            shelf.retain(|layer, expert| {
                let slots = epoch.placement.slots(layer, id.rank);
                slots.contains(&(expert as u32))
            });
        }
        self.epoch = epoch;
    }

    fn stage(&self, placement: &Placement, rank: usize) {
        let shelf = self.engines[rank].shelf().expect("a rank");
        for layer in 0..placement.shape().layers {
            for &expert in placement.slots(layer, rank) {
                let expert = expert as usize;
                if shelf.has(layer, expert) {
                    continue;
                }
                let others = self.engines.iter().filter_map(Engine::shelf);
                let exported = others
                    .filter_map(|other| other.export(layer, expert))
                    .next();
                match exported.filter(|_| expert.is_multiple_of(2)) {
                    Some(sent) => shelf.import(layer, expert, &sent.bytes, &sent.digest),
                    None => shelf.load_from_checkpoint(layer, expert),
                }
                .expect("it is staged");
            }
        }
    }

    /// Whether any member has something to compute.
    pub fn pending(&self) -> bool {
        self.live().any(|engine| engine.demand() > 0)
    }

    fn live(&self) -> impl Iterator<Item = &Engine<TestBackend>> {
        let members = self.epoch.members.iter();
        members.map(|member| &self.engines[member.id.rank])
    }

    /// One step of all members.
    pub fn step(&mut self, fault: Option<Fault>) {
        let live = self.epoch.live();
        let ranks = self.engines.iter_mut().zip(links(&live, fault));
        let members = ranks.zip(&live).filter(|(_, live)| **live);
        let ended: Vec<_> = thread::scope(|scope| {
            let running: Vec<_> = members
                .map(|((engine, mut link), _)| {
                    scope.spawn(move || {
                        let mut events = Vec::new();
                        let limit = engine.demand();
                        let result =
                            engine.step_in_group(limit, &mut link, &mut |event| events.push(event));
                        (result, events, std::mem::take(&mut link.calls))
                    })
                })
                .collect();
            let ended = running
                .into_iter()
                .map(|rank| rank.join().expect("no panic"));
            ended.collect()
        });
        if ended.iter().any(|(result, ..)| *result == Err(StepDropped)) {
            self.dropped += 1;
        } else {
            self.check_calls(ended.iter().map(|(_, _, calls)| calls));
        }
        for (_, events, _) in ended {
            for event in events {
                match event {
                    Event::Output { id, output } => {
                        self.answers.entry(id.0).or_default().add(output);
                    }
                    Event::Started { .. } => {}
                    event => panic!("not for a whole request: {event:?}"),
                }
            }
        }
    }

    /// Every rank takes part in every layer, in order, once.
    fn check_calls<'a>(&self, ranks: impl Iterator<Item = &'a Vec<(usize, Phase)>>) {
        let layers = 0..self.shape().layers;
        let expected: Vec<_> = layers
            .flat_map(|layer| super::mesh::PHASES.map(|phase| (layer, phase)))
            .collect();
        ranks.for_each(|calls| assert_eq!(*calls, expected));
    }

    /// Rows that chose each expert, over all ranks.
    pub fn chosen(&self) -> Vec<u64> {
        let counts = self.engines.iter().filter_map(Engine::expert_counts);
        sum(counts.map(|counts| counts.chosen().counts))
    }

    pub fn computed(&self) -> Vec<u64> {
        let counts = self.engines.iter().filter_map(Engine::expert_counts);
        sum(counts.map(|counts| counts.computed()))
    }

    /// `[layer][rank]`, by those whose rows they were.
    pub fn sent(&self) -> Vec<u64> {
        let counts = self.engines.iter().filter_map(Engine::expert_counts);
        sum(counts.map(|counts| counts.sent()))
    }

    /// `[layer][rank]`, by those who computed them.
    pub fn computed_by_rank(&self) -> Vec<u64> {
        let counts = self.engines.iter().filter_map(Engine::expert_counts);
        let by_rank: Vec<_> = counts.map(|counts| counts.computed()).collect();
        let layers = 0..self.shape().layers;
        layers
            .flat_map(|layer| by_rank.iter().map(move |rank| rank[layer]))
            .collect()
    }

    pub fn assert_all_pages_are_back(&self) {
        for engine in &self.engines {
            assert_eq!(engine.pending(), Pending::Idle);
            assert_eq!(engine.status().free_pages, engine.status().total_pages);
        }
    }
}

fn sum(counts: impl Iterator<Item = Vec<u64>>) -> Vec<u64> {
    counts
        .reduce(|a, b| a.iter().zip(&b).map(|(a, b)| a + b).collect())
        .expect("there are ranks")
}
