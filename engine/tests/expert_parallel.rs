//! The same tokens and log-probs, bit for bit, whether a model's experts are on one rank or spread
//! over several, wherever they are, while they move, and when steps are dropped on the way.

mod common;

use std::{collections::HashMap, path::Path, sync::Arc};

use common::{
    TestBackend, backend,
    group::{Group, members, random_loads, random_placement},
    mesh::{Fault, PHASES, Phase},
    *,
};
use millrace_engine::{Engine, EngineConfig, Request, SamplingParams};
use millrace_experts::Epoch;
use millrace_model::checkpoint::Checkpoint;
use rand::{Rng, SeedableRng, rngs::SmallRng};

const MOE_FAMILIES: [&str; 6] = [
    "deepseek_v2_lite",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v3_fp8",
    "deepseek_v3_fp8_whole",
    "deepseek_v31",
];
const OUTPUT: usize = 20;

struct Model {
    name: &'static str,
    checkpoint: Arc<Checkpoint>,
    requests: Vec<Request>,
}

impl Model {
    fn golden(family: &'static str) -> Model {
        let golden = Golden::open(family);
        // The long one is cut: what it is for, chunks, shows with 300 tokens as well.
        let prompts = PROMPTS.iter().map(|prompt| {
            let mut tokens = golden.ids(&format!("{prompt}.tokens"));
            tokens.truncate(300);
            tokens
        });
        Model::new(family, &golden_dir(family), prompts.collect())
    }

    fn tiny_r1() -> Model {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny-r1");
        let mut rng = SmallRng::seed_from_u64(5);
        let prompts = [1, 40, 64, 65, 300].map(|len| {
            (0..len)
                .map(|_| rng.random_range(10..2000))
                .collect::<Vec<u32>>()
        });
        Model::new("tiny-r1", &dir, prompts.to_vec())
    }

    fn all() -> impl Iterator<Item = Model> {
        let goldens = MOE_FAMILIES.into_iter().map(Model::golden);
        goldens.chain([Model::tiny_r1()])
    }

    fn new(name: &'static str, dir: &Path, prompts: Vec<Vec<u32>>) -> Model {
        let requests = prompts.iter().cycle().take(7).enumerate();
        Model {
            name,
            checkpoint: Arc::new(Checkpoint::open(dir).expect("a checkpoint")),
            requests: requests
                .map(|(id, prompt)| request(id as u64, prompt, params(id)))
                .collect(),
        }
    }

    /// One engine on its own.
    fn alone(&self, config: &EngineConfig) -> (HashMap<u64, Answer>, Engine<TestBackend>) {
        let backend = backend(2);
        let mut engine =
            Engine::load(backend, &self.checkpoint, config.clone(), &mut |_| {}).expect("it loads");
        for request in &self.requests {
            engine.submit(request.clone()).expect("accepted");
        }
        (run(&mut engine), engine)
    }

    fn experts(&self, mtp: bool) -> usize {
        let shape = millrace_engine::experts::shape(self.checkpoint.config(), mtp, 1, 0);
        shape.expect("experts").experts
    }
}

/// Greedy and sampled in turn, with log-probs: equal only if every logit is.
fn params(number: usize) -> SamplingParams {
    let params = SamplingParams {
        logprobs: Some(3),
        ..greedy(OUTPUT)
    };
    if number.is_multiple_of(2) {
        return params;
    }
    SamplingParams {
        temperature: 0.8,
        top_p: 0.95,
        seed: number as u64,
        ..params
    }
}

fn config(mtp: bool) -> EngineConfig {
    EngineConfig {
        mtp,
        max_batch_tokens: 128,
        max_running: 16,
        kv_pages: 64,
        // A prefix hit would be rows that one engine computes and another does not.
        prefix_cache: false,
        ..float_config()
    }
}

/// What happens while a group computes.
#[derive(Default)]
struct Weather {
    /// Steps from one change of placement to the next.
    changes_every: Option<usize>,
    /// One of that many steps is dropped somewhere.
    drops: Option<u32>,
    /// Drops come where no rank can have finished the main layers, so that none loses its drafts alone.
    drops_keep_drafts: bool,
    /// Every other placement does without one of the ranks.
    masks: bool,
}

struct Outcome {
    group: Group,
    changes: usize,
}

fn play(model: &Model, mtp: bool, ranks: usize, redundant: usize, weather: &Weather) -> Outcome {
    let mut rng = SmallRng::seed_from_u64(ranks as u64);
    let mut group = Group::load(&model.checkpoint, &config(mtp), ranks, redundant);
    let shape = group.shape();
    let main_layers = shape.layers - usize::from(group.engines[0].drafts());
    // Unevenly: the last rank has nothing of its own, unless it is the only one.
    let homes = (ranks - 1).max(1);
    let mut waiting: Vec<_> = model.requests.iter().rev().cloned().collect();
    let mut changes = 0;
    for step in 0.. {
        if step % 2 == 0
            && let Some(request) = waiting.pop()
        {
            let home = (request.id.0 as usize).min(rng.random_range(0..homes));
            group.submit(home, request);
        }
        if weather
            .changes_every
            .is_some_and(|every| step % every == every - 1)
        {
            changes += 1;
            let without = (weather.masks && changes % 2 == 1).then(|| changes / 2 % ranks);
            let epoch = Epoch {
                number: group.epoch.number + 1,
                reset: group.epoch.reset,
                members: members(ranks, without),
                placement: Arc::new(random_placement(shape, without, &mut rng)),
                expected: Arc::new(random_loads(shape, &mut rng)),
            };
            group.adopt(epoch);
        }
        let drops = weather
            .drops
            .is_some_and(|one_of| rng.random_ratio(1, one_of));
        let fault = drops.then(|| Fault {
            rank: rng.random_range(0..ranks),
            layer: rng.random_range(
                0..if weather.drops_keep_drafts {
                    main_layers
                } else {
                    shape.layers
                },
            ),
            phase: if weather.drops_keep_drafts {
                Phase::Dispatch
            } else {
                PHASES[rng.random_range(0..4)]
            },
        });
        group.step(fault);
        assert!(step < 2000, "{}: it never ends", model.name);
        let masked = group.epoch.members.len() < ranks;
        if waiting.is_empty() && !masked && !group.pending() {
            break;
        }
    }
    group.assert_all_pages_are_back();
    Outcome { group, changes }
}

#[track_caller]
fn assert_same(what: &str, expected: &HashMap<u64, Answer>, found: &HashMap<u64, Answer>) {
    assert_eq!(expected.len(), found.len(), "{what}");
    for (id, expected) in expected {
        let found = &found[id];
        assert_eq!(expected.tokens, found.tokens, "{what}, request {id}");
        assert_eq!(expected.finish, found.finish, "{what}, request {id}");
    }
}

/// Every row counts once, wherever it was computed and however often that was tried.
#[track_caller]
fn assert_same_counts(what: &str, alone: &Engine<TestBackend>, group: &Group) {
    let counts = alone.expert_counts().expect("experts");
    assert_eq!(counts.chosen().counts, group.chosen(), "{what}");
    assert_eq!(counts.computed(), group.computed(), "{what}");
    assert_eq!(group.sent(), group.computed_by_rank(), "{what}");
    assert_eq!(counts.sent(), counts.computed(), "{what}: alone");
    let loads = counts.chosen();
    for (layer, computed) in counts.computed().into_iter().enumerate() {
        assert_eq!(loads.layer(layer).iter().sum::<u64>(), computed, "{what}");
    }
}

#[test]
fn on_one_two_and_four_ranks() {
    for model in Model::all() {
        for mtp in [false, true] {
            let (expected, alone) = model.alone(&config(mtp));
            if mtp && alone.drafts() {
                assert!(alone.counters().drafts > 0);
            }
            for ranks in [1, 2, 4] {
                let what = format!("{}, mtp {mtp}, {ranks} ranks", model.name);
                let outcome = play(&model, mtp, ranks, 0, &Weather::default());
                assert_same(&what, &expected, &outcome.group.answers);
                assert_same_counts(&what, &alone, &outcome.group);
            }
        }
    }
}

#[test]
fn while_placements_change_and_steps_are_dropped() {
    let (mut changes, mut dropped) = (0, 0);
    let weather = Weather {
        changes_every: Some(3),
        drops: Some(3),
        drops_keep_drafts: true,
        masks: false,
    };
    for model in Model::all() {
        let (expected, alone) = model.alone(&config(true));
        for ranks in [1, 2, 4] {
            let what = format!("{}, {ranks} ranks, changes", model.name);
            let outcome = play(&model, true, ranks, ranks, &weather);
            assert_same(&what, &expected, &outcome.group.answers);
            assert_same_counts(&what, &alone, &outcome.group);
            changes += outcome.changes;
            dropped += outcome.group.dropped;
        }
    }
    assert!(changes >= 50, "only {changes} changes");
    assert!(dropped >= 50, "only {dropped} steps were dropped");
}

/// Drops come anywhere now, also between a step's tokens and its drafts; ranks leave and come back.
#[test]
fn while_ranks_leave_and_steps_are_dropped_anywhere() {
    let (mut changes, mut dropped) = (0, 0);
    let weather = Weather {
        changes_every: Some(4),
        drops: Some(2),
        drops_keep_drafts: false,
        masks: true,
    };
    for model in Model::all() {
        for (ranks, mtp) in [(2, true), (4, true), (4, false)] {
            let (expected, alone) = model.alone(&config(mtp));
            let what = format!("{}, mtp {mtp}, {ranks} ranks, some leave", model.name);
            let outcome = play(&model, mtp, ranks, model.experts(mtp), &weather);
            assert_same(&what, &expected, &outcome.group.answers);
            if !alone.drafts() {
                let chosen = alone.expert_counts().expect("experts").chosen();
                assert_eq!(chosen.counts, outcome.group.chosen(), "{what}");
            }
            changes += outcome.changes;
            dropped += outcome.group.dropped;
        }
    }
    assert!(changes >= 50, "only {changes} changes");
    assert!(dropped >= 50, "only {dropped} steps were dropped");
}
