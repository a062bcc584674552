//! Several revisions of a deployment at once.

use super::*;

/// A worker of a revision whose model is named as it is.
fn of(fleet: &mut Fleet, role: Role, revision: &str, load: Load) -> WorkerKey {
    let mut description = describe(fleet, role);
    description.revision = revision.into();
    description.compatibility.model_revision = format!("model of {revision}");
    let key = fleet.attach(description).unwrap();
    fleet.snapshot(key, load, Vec::new(), Instant::now());
    key
}

fn busy(running: u32) -> Load {
    Load { running, ..idle() }
}

fn why(fleet: &Fleet, key: WorkerKey) -> String {
    let worker = fleet.get(key).unwrap();
    Reasons::of(fleet).against(worker).unwrap_or_default()
}

#[test]
fn a_half_up_revision_gets_nothing_while_another_is_whole() {
    let mut fleet = fleet();
    let old_decode = of(&mut fleet, Role::Decode, "old", busy(30));
    let old_prefill = of(&mut fleet, Role::Prefill, "old", idle());
    let new_decode = of(&mut fleet, Role::Decode, "new", idle());
    let decode = |fleet: &Fleet| choose(fleet, &ask(100, &NONE)).unwrap().decode.worker;
    assert_eq!(decode(&fleet), old_decode, "busy, but whole");
    assert_eq!(
        why(&fleet, new_decode),
        "no prefill worker of its revision is attached, and another revision has both"
    );

    // Attached, but it has not said yet how busy it is.
    let mut description = describe(&fleet, Role::Prefill);
    description.revision = "new".into();
    description.compatibility.model_revision = "model of new".into();
    let new_prefill = fleet.attach(description).unwrap();
    assert_eq!(decode(&fleet), old_decode);
    assert!(why(&fleet, new_decode).starts_with("no prefill worker of its revision is available"));
    assert_eq!(why(&fleet, new_prefill), "no snapshot yet");

    fleet.snapshot(new_prefill, idle(), Vec::new(), Instant::now());
    let pair = choose(&fleet, &ask(100, &NONE)).unwrap();
    assert_eq!(pair.decode.worker, new_decode, "idle, and whole");
    assert_eq!(pair.prefill.unwrap().worker, new_prefill);
    for key in [old_decode, old_prefill, new_decode, new_prefill] {
        assert_eq!(why(&fleet, key), "");
    }

    // The rollout is reverted: what is left of the new one is not asked again.
    fleet.drain(new_prefill);
    assert_eq!(decode(&fleet), old_decode);
    // Or it goes on, and the old one's decode workers go first.
    fleet.drain(old_decode);
    assert_eq!(decode(&fleet), new_decode, "rather half up than none");
    assert_eq!(why(&fleet, new_decode), "");
    assert_eq!(
        why(&fleet, old_prefill),
        "no decode worker of its revision is available"
    );
    fleet.detach(old_decode);
    assert_eq!(
        why(&fleet, old_prefill),
        "no decode worker of its revision is attached"
    );
}

#[test]
fn a_revision_that_is_meant_to_be_aggregated_is_whole() {
    let mut fleet = fleet();
    let old = of(&mut fleet, Role::Decode, "old", busy(30));
    of(&mut fleet, Role::Prefill, "old", idle());
    let mut description = describe(&fleet, Role::Decode);
    description.revision = "new".into();
    description.aggregated = true;
    let new = fleet.attach(description).unwrap();
    fleet.snapshot(new, idle(), Vec::new(), Instant::now());
    let pair = choose(&fleet, &ask(100, &NONE)).unwrap();
    assert_eq!((pair.decode.worker, pair.prefill), (new, None));
    assert_eq!((why(&fleet, old), why(&fleet, new)), Default::default());
}

#[test]
fn a_revision_whose_prefill_is_busy_costs_what_it_takes() {
    let mut fleet = fleet();
    let queue = Load {
        waiting_tokens: 5000,
        ..idle()
    };
    of(&mut fleet, Role::Decode, "old", idle());
    of(&mut fleet, Role::Prefill, "old", queue);
    let new = of(&mut fleet, Role::Decode, "new", busy(4));
    of(&mut fleet, Role::Prefill, "new", idle());
    let pair = choose(&fleet, &ask(100, &NONE)).unwrap();
    assert_eq!(pair.decode.worker, new);
}

#[test]
fn a_begun_sequence_stays_with_its_model_while_any_worker_of_it_may_come_back() {
    let mut fleet = fleet();
    let old = of(&mut fleet, Role::Decode, "old", busy(30));
    let new = of(&mut fleet, Role::Decode, "new", idle());
    of(&mut fleet, Role::Prefill, "new", idle());
    let begun = Ask {
        model: Some("model of old"),
        ..ask(100, &NONE)
    };
    let decode = |fleet: &Fleet, ask: &Ask| Some(choose(fleet, ask)?.decode.worker);
    assert_eq!(decode(&fleet, &begun), Some(old), "although it is half up");
    let failed = Ask {
        not_decode: &[old],
        ..begun
    };
    assert_eq!(decode(&fleet, &failed), None, "it waits");
    fleet.leave_out(old, true);
    assert_eq!(
        decode(&fleet, &begun),
        None,
        "its group may take it in again"
    );
    fleet.drain(old);
    assert_eq!(decode(&fleet, &begun), Some(new), "it never will");
    fleet.detach(old);
    assert_eq!(decode(&fleet, &begun), Some(new));
}

#[test]
fn each_models_prefix_is_looked_for_under_its_own_name() {
    let mut fleet = fleet();
    let tokens: Vec<u32> = (0..650).collect();
    let mut blocks = Blocks::default();
    let mut workers = Vec::new();
    for revision in ["old", "new"] {
        let worker = of(&mut fleet, Role::Decode, revision, idle());
        let model = format!("model of {revision}");
        blocks.add(model.clone(), "", &tokens);
        workers.push((worker, BlockHash::root(&model, "")));
    }
    let (old, new) = (workers[0], workers[1]);
    let hold = |fleet: &mut Fleet, worker, root, tokens: &[u32]| {
        let blocks = millrace_model::blocks::block_hashes(root, tokens);
        fleet.snapshot(worker, idle(), blocks, Instant::now());
    };
    hold(&mut fleet, old.0, old.1, &tokens[..128]);
    hold(&mut fleet, new.0, new.1, &tokens[..640]);
    let chosen = choose(&fleet, &ask(650, &blocks)).unwrap().decode;
    assert_eq!((chosen.worker, chosen.overlap), (new.0, 640));
    // What the other model computed is worth nothing here.
    hold(&mut fleet, new.0, old.1, &tokens[..640]);
    let chosen = choose(&fleet, &ask(650, &blocks)).unwrap().decode;
    assert_eq!((chosen.worker, chosen.overlap), (old.0, 128));
}

#[derive(Debug, Clone)]
struct Any {
    role: Role,
    revision: u8,
    load: Load,
    aggregated: bool,
    silent: bool,
    draining: bool,
    failed: bool,
}

fn any_worker() -> impl Strategy<Value = Any> {
    let load =
        (0..40u32, 0..5000u64, 0..100u64).prop_map(|(running, waiting_tokens, free_pages)| Load {
            running,
            waiting_tokens,
            free_pages,
            ..Load::default()
        });
    let flags = prop::array::uniform4(prop::bool::weighted(0.2));
    (any::<bool>(), 0..3u8, load, flags).prop_map(|(prefill, revision, load, flags)| Any {
        role: if prefill { Role::Prefill } else { Role::Decode },
        revision,
        load,
        aggregated: flags[0],
        silent: flags[1],
        draining: flags[2],
        failed: flags[3],
    })
}

proptest! {
    /// Whatever is attached: both halves of a pair are of one revision and layout, both take requests,
    /// nothing half up is asked while there is something whole, and what the operator is told is
    /// what is done.
    #[test]
    fn no_pair_is_of_two_revisions(
        workers in prop::collection::vec(any_worker(), 0..12),
        tokens in 1..2000u32,
        model in prop::option::of(0..3u8),
    ) {
        let mut fleet = fleet();
        let (mut not_decode, mut not_prefill) = (Vec::new(), Vec::new());
        for (n, any) in workers.iter().enumerate() {
            let mut description = describe(&fleet, any.role);
            description.worker_id = n.to_string();
            description.revision = any.revision.to_string();
            description.aggregated = any.aggregated;
            // Two revisions of one model, and one of another.
            description.compatibility.model_revision = (any.revision / 2).to_string();
            description.compatibility.kv_dtype = any.revision.to_string();
            let key = fleet.attach(description).unwrap();
            if !any.silent {
                fleet.snapshot(key, any.load, Vec::new(), Instant::now());
            }
            if any.draining {
                fleet.drain(key);
            }
            if any.failed {
                match any.role {
                    Role::Decode => not_decode.push(key),
                    Role::Prefill => not_prefill.push(key),
                }
            }
        }
        let model = model.map(|model| model.to_string());
        let ask = Ask {
            model: model.as_deref(),
            not_decode: &not_decode,
            not_prefill: &not_prefill,
            ..ask(tokens, &NONE)
        };
        let description = |key| &fleet.get(key).unwrap().description;
        let reasons = Reasons::of(&fleet);
        for ask in [ask, Ask { model: None, not_decode: &[], not_prefill: &[], ..ask }] {
            let Some(pair) = choose(&fleet, &ask) else { continue };
            let decode = description(pair.decode.worker);
            prop_assert!(!ask.not_decode.contains(&pair.decode.worker));
            if let Some(prefill) = pair.prefill {
                prop_assert!(!ask.not_prefill.contains(&prefill.worker));
                let prefill = description(prefill.worker);
                prop_assert_eq!((decode.role, prefill.role), (Role::Decode, Role::Prefill));
                prop_assert_eq!(&decode.revision, &prefill.revision);
                prop_assert_eq!(&decode.compatibility, &prefill.compatibility);
            }
            if let Some(model) = ask.model {
                let left = fleet.workers(Role::Decode).any(|(_, w)| {
                    !w.draining && w.model_revision() == model
                });
                prop_assert_eq!(decode.compatibility.model_revision == model, left);
            }
        }

        let free = choose(&fleet, &Ask { model: None, not_decode: &[], not_prefill: &[], ..ask });
        let told = |role| {
            let mut all = fleet.workers(role);
            all.any(|(_, worker)| reasons.against(worker).is_none())
        };
        prop_assert_eq!(free.is_some(), told(Role::Decode));
        prop_assert_eq!(free.is_some(), fleet.available(Role::Decode).next().is_some());
        if let Some(pair) = free {
            for chosen in [Some(pair.decode), pair.prefill].into_iter().flatten() {
                prop_assert_eq!(reasons.against(fleet.get(chosen.worker).unwrap()), None);
            }
        }
    }
}
