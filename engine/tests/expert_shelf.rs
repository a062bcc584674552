//! What a rank refuses: models that cannot be spread, weights that are not what they should be, epochs
//! whose weights are not here.

mod common;

use std::sync::Arc;

use common::{
    TestBackend, backend,
    group::{Group, members},
    *,
};
use millrace_engine::{
    Engine, EngineError, Event, ExpertError, GroupRank, Kind, Request, StepDropped,
    engine::Pending, experts::shape,
};
use millrace_experts::{Epoch, Loads, Placement, Shape};
use millrace_model::checkpoint::Checkpoint;

const FAMILY: &str = "deepseek_v3";

fn checkpoint(family: &str) -> Arc<Checkpoint> {
    Arc::new(Checkpoint::open(&golden_dir(family)).expect("a golden checkpoint opens"))
}

fn load(family: &str, shape: Shape, rank: usize) -> Result<Engine<TestBackend>, EngineError> {
    let placement = Arc::new(Placement::initial(shape).expect("a placement"));
    let place = GroupRank {
        placement,
        rank,
        path: Default::default(),
    };
    let backend = backend(1);
    Engine::load_rank(
        backend,
        checkpoint(family),
        float_config(),
        &place,
        &mut |_| {},
    )
}

fn group_shape(mtp: bool, ranks: usize) -> Shape {
    shape(checkpoint(FAMILY).config(), mtp, ranks, 0).expect("experts")
}

fn refusal(loaded: Result<Engine<TestBackend>, EngineError>) -> ExpertError {
    match loaded.err().expect("it is refused") {
        EngineError::Expert(error) => error,
        error => panic!("{error}"),
    }
}

#[test]
fn a_shape_counts_moe_layers_alone() {
    // Three layers, the first one dense, and an MTP layer; 12 experts.
    assert_eq!(group_shape(false, 4), Shape::new(2, 12, 4, 0).unwrap());
    assert_eq!(group_shape(true, 4), Shape::new(3, 12, 4, 0).unwrap());
    let dense = shape(checkpoint("qwen3").config(), true, 2, 0);
    assert!(matches!(dense, Err(ExpertError::NoExperts)));
    let nobody = shape(checkpoint(FAMILY).config(), true, 0, 0);
    assert!(matches!(nobody, Err(ExpertError::Shape(_))));
}

#[test]
fn what_does_not_fit_is_refused_at_start() {
    let right = group_shape(true, 2);
    assert!(matches!(
        refusal(load("qwen3", right, 0)),
        ExpertError::NoExperts
    ));
    assert!(matches!(
        refusal(load(FAMILY, right, 2)),
        ExpertError::Rank { rank: 2, ranks: 2 }
    ));
    assert!(matches!(
        refusal(load(FAMILY, group_shape(false, 2), 0)),
        ExpertError::Placement {
            layers: 2,
            model_layers: 3,
            ..
        }
    ));
}

#[test]
fn a_rank_loads_its_own_slots_alone() {
    let engine = load(FAMILY, group_shape(true, 4), 1).expect("it loads");
    let shelf = engine.shelf().expect("a rank");
    for layer in 0..3 {
        for expert in 0..12 {
            assert_eq!(shelf.has(layer, expert), expert % 4 == 1);
        }
    }
    assert!(shelf.export(0, 0).is_none());
    let exported = shelf.export(0, 1).expect("it is here");
    assert_eq!(exported.bytes.len() as u64, shelf.expert_bytes());
}

#[test]
fn weights_are_taken_only_with_their_own_digest() {
    let engine = load(FAMILY, group_shape(true, 2), 0).expect("it loads");
    let peer = load(FAMILY, group_shape(true, 2), 1).expect("it loads");
    let (shelf, peer) = (
        engine.shelf().expect("a rank"),
        peer.shelf().expect("a rank"),
    );
    let sent = peer.export(2, 1).expect("it is here");
    let refused = |layer, expert, bytes: &[u8], digest: &[u8]| {
        let refused = shelf.import(layer, expert, bytes, digest);
        assert!(!shelf.has(layer, expert));
        refused.expect_err("it is refused")
    };
    let mut damaged = sent.bytes.clone();
    *damaged.last_mut().expect("bytes") ^= 1;
    for error in [
        refused(2, 1, &damaged, &sent.digest),
        refused(2, 1, &sent.bytes[1..], &sent.digest),
        refused(2, 1, &sent.bytes, &sent.digest[1..]),
        refused(2, 1, &[], &[]),
        // The right bytes, but of another expert or layer.
        refused(2, 3, &sent.bytes, &sent.digest),
        refused(1, 1, &sent.bytes, &sent.digest),
    ] {
        assert!(matches!(error, ExpertError::WrongDigest { .. }), "{error}");
    }
    for (layer, expert) in [(3, 0), (0, 12)] {
        let error = refused(layer, expert, &sent.bytes, &sent.digest);
        assert!(matches!(error, ExpertError::Unknown { .. }), "{error}");
        assert!(shelf.load_from_checkpoint(layer, expert).is_err());
    }
    let taken = shelf.import(2, 1, &sent.bytes, &sent.digest);
    taken.expect("nothing is wrong with it");
    assert_eq!(shelf.export(2, 1), Some(sent));
    // The checkpoint gives the same, and the same digest.
    shelf.load_from_checkpoint(2, 3).expect("it is there");
    assert_eq!(shelf.export(2, 3), peer.export(2, 3));
}

#[test]
fn an_epoch_is_adopted_whole_or_not_at_all() {
    let mut group = Group::load(&checkpoint(FAMILY), &float_config(), 2, 0);
    let shape = group.shape();
    let mut table: Vec<u32> = (0..shape.layers)
        .flat_map(|layer| group.epoch.placement.layer(layer).to_vec())
        .collect();
    // In the last layer the ranks' first experts change places.
    let last = table.len() - shape.layer_slots();
    table.swap(last, last + shape.slots);
    let epoch = Epoch {
        number: 2,
        placement: Arc::new(Placement::new(shape, table).expect("a placement")),
        ..group.epoch.clone()
    };
    let missing = group.engines[0]
        .adopt(&epoch)
        .expect_err("it is not staged");
    assert!(matches!(
        missing,
        ExpertError::Missing {
            layer: 2,
            expert: 1
        }
    ));
    let prompt = Golden::open(FAMILY).ids("p65.tokens");
    let expected = run_one(&mut engine(FAMILY, float_config()), 0, &prompt, greedy(4));
    group.submit(0, request(0, &prompt, greedy(4)));
    group.step(None);
    group.adopt(epoch);
    while group.pending() {
        group.step(None);
    }
    assert_eq!(group.answers[&0].tokens, expected.tokens);

    let other = Shape::new(shape.layers, shape.experts, 2, 2).unwrap();
    let other = Epoch {
        number: 3,
        reset: 1,
        members: members(2, None),
        placement: Arc::new(Placement::initial(other).unwrap()),
        expected: Arc::new(Loads::zero(shape.layers, shape.experts)),
    };
    let refused = group.engines[0].adopt(&other).expect_err("another shape");
    assert!(matches!(refused, ExpertError::OtherShape { .. }));
}

#[test]
fn without_an_epoch_nothing_is_computed() {
    let mut engine = load(FAMILY, group_shape(true, 1), 0).expect("it loads");
    engine
        .submit(request(0, &[1, 2, 3], greedy(2)))
        .expect("accepted");
    let mut link = mesh::links(&[true], None).remove(0);
    let result = engine.step_in_group(9, &mut link, &mut |event| panic!("{event:?}"));
    assert_eq!(result, Err(StepDropped));
    assert!(link.calls.is_empty());
    assert_eq!(engine.demand(), 3, "it waits");
}

/// An idle group need not compute for a rank to find pages that a peer can fill.
#[test]
fn pages_are_reserved_in_a_step_without_rows() {
    let mut group = Group::load(&checkpoint(FAMILY), &float_config(), 1, 0);
    let engine = &mut group.engines[0];
    assert_eq!((engine.demand(), engine.pending()), (0, Pending::Idle));
    let split = Request {
        kind: Kind::Decode,
        ..request(0, &[7; 100], greedy(2))
    };
    engine.submit(split).expect("accepted");
    let (mut reserved, pool) = (0, engine.pool().clone());
    let mut link = mesh::links(&[true], None).remove(0);
    let step = engine.step_in_group(0, &mut link, &mut |event| match event {
        Event::Reserved { lease, .. } => {
            reserved += lease.indexes().len();
            let pages = lease.indexes();
            drop(lease.settle(proof(&pool, &pages)));
        }
        event => panic!("{event:?}"),
    });
    step.expect("nobody else is there");
    assert_eq!((reserved, link.calls.len()), (2, 3 * 4));
    assert_eq!(engine.demand(), 0);
}
