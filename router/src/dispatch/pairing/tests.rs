use std::time::Instant;

use millrace_model::blocks::BlockHash;
use proptest::prelude::*;

use super::blocks::NONE;
use super::*;
use crate::fleet::{Compatibility, Delta, Description, Load, Served};

fn fleet() -> Fleet {
    let served = Served {
        model_revision: "r1".into(),
        text_revision: "t1".into(),
        vocab_size: 100,
        max_model_len: 4096,
    };
    Fleet::new(served, 10_000)
}

fn idle() -> Load {
    Load {
        free_pages: 1000,
        ..Load::default()
    }
}

fn describe(fleet: &Fleet, role: Role) -> Description {
    Description {
        worker_id: format!("{role}-{}", fleet.workers(role).count()),
        role,
        address: "127.0.0.1:1".into(),
        revision: String::new(),
        aggregated: false,
        compatibility: Compatibility {
            model_revision: "r1".into(),
            page_tokens: BLOCK_TOKENS as u32,
            ..Compatibility::default()
        },
        text_revision: "t1".into(),
        max_model_len: 4096,
        vocab_size: 100,
        kv_pages: 1000,
        max_running: 32,
        group: None,
    }
}

fn add(fleet: &mut Fleet, role: Role, load: Load, blocks: &[u128]) -> WorkerKey {
    let description = describe(fleet, role);
    let key = fleet.attach(description).unwrap();
    let blocks = blocks.iter().map(|&b| BlockHash(b)).collect();
    fleet.snapshot(key, load, blocks, Instant::now());
    key
}

fn ask(tokens: u32, blocks: &Blocks) -> Ask<'_> {
    Ask {
        tokens,
        blocks,
        max_output: 64,
        model: None,
        not_decode: &[],
        not_prefill: &[],
    }
}

#[test]
fn a_cached_prefix_outweighs_a_shorter_queue_until_the_queue_is_longer() {
    let hashes: Vec<BlockHash> = (1..=10).map(BlockHash).collect();
    let blocks = Blocks::named("r1", hashes);
    let held: Vec<u128> = (1..=8).collect();
    for (queue, expect_cached) in [(400, true), (600, false)] {
        let mut fleet = fleet();
        add(&mut fleet, Role::Decode, idle(), &[]);
        let idle = add(&mut fleet, Role::Prefill, idle(), &[]);
        let busy = Load {
            waiting_tokens: queue,
            free_pages: 1000,
            ..Load::default()
        };
        let cached = add(&mut fleet, Role::Prefill, busy, &held);
        let chosen = choose(&fleet, &ask(650, &blocks)).unwrap().prefill.unwrap();
        assert_eq!(chosen.worker, if expect_cached { cached } else { idle });
        assert_eq!(chosen.overlap, if expect_cached { 512 } else { 0 });
    }
}

#[test]
fn a_fully_cached_prompt_still_computes_its_last_token() {
    let mut fleet = fleet();
    add(&mut fleet, Role::Decode, idle(), &[1, 2]);
    let blocks = Blocks::named("r1", vec![BlockHash(1), BlockHash(2)]);
    let pair = choose(&fleet, &ask(128, &blocks)).unwrap();
    assert_eq!((pair.decode.overlap, pair.decode.demand.tokens), (127, 1));
    assert_eq!(pair.prefill, None, "nobody else is there to prefill");
}

#[test]
fn decode_balances_sequences_pages_and_cache() {
    let with = |load: Load, blocks: &[u128]| {
        let mut fleet = fleet();
        add(&mut fleet, Role::Prefill, idle(), &[]);
        let other = Load {
            running: 4,
            free_pages: 1000,
            ..Load::default()
        };
        let other = add(&mut fleet, Role::Decode, other, &[]);
        let subject = add(&mut fleet, Role::Decode, load, blocks);
        let hashes: Vec<BlockHash> = (1..=16).map(BlockHash).collect();
        let blocks = Blocks::named("r1", hashes);
        let chosen = choose(&fleet, &ask(1030, &blocks)).unwrap().decode.worker;
        assert!(chosen == subject || chosen == other);
        chosen == subject
    };
    let all: Vec<u128> = (1..=16).collect();
    let busy = |running| Load {
        running,
        free_pages: 1000,
        ..Load::default()
    };
    assert!(with(busy(3), &[]), "fewer sequences");
    assert!(!with(busy(5), &[]), "more sequences");
    assert!(with(busy(7), &all), "the prefix need not be moved");
    assert!(
        !with(busy(20), &all),
        "but a full batch costs more than moving it"
    );
    assert!(
        !with(
            Load {
                free_pages: 2,
                ..Load::default()
            },
            &[]
        ),
        "no room"
    );
    assert!(
        !with(
            Load {
                waiting: 40,
                ..idle()
            },
            &[]
        ),
        "a queue"
    );
}

#[test]
fn workers_that_failed_are_left_out() {
    let mut fleet = fleet();
    let decode = add(&mut fleet, Role::Decode, idle(), &[]);
    let prefill = add(&mut fleet, Role::Prefill, idle(), &[]);
    let not_prefill = [prefill];
    let pair = choose(
        &fleet,
        &Ask {
            not_prefill: &not_prefill,
            ..ask(10, &NONE)
        },
    )
    .unwrap();
    assert_eq!((pair.decode.worker, pair.prefill), (decode, None));
    let not_decode = [decode];
    assert_eq!(
        choose(
            &fleet,
            &Ask {
                not_decode: &not_decode,
                ..ask(10, &NONE)
            }
        ),
        None
    );
    fleet.drain(decode);
    assert_eq!(choose(&fleet, &ask(10, &NONE)), None);
}

mod all;
mod revisions;

/// Sends `count` equal requests without any report in between.
fn burst(fleet: &mut Fleet, count: usize, tokens: u32) -> Vec<Pair> {
    let now = Instant::now();
    let mut pairs = Vec::new();
    for _ in 0..count {
        let pair = choose(fleet, &ask(tokens, &NONE)).unwrap();
        fleet.assign(pair.decode.worker, pair.decode.demand, now);
        if let Some(prefill) = pair.prefill {
            fleet.assign(prefill.worker, prefill.demand, now);
        }
        pairs.push(pair);
    }
    pairs
}

proptest! {
    /// Between two reports a burst spreads evenly over equal workers.
    #[test]
    fn a_burst_spreads(
        prefill in 1..5usize,
        decode in 1..5usize,
        count in 1..40usize,
        tokens in 1..3000u32,
    ) {
        let mut fleet = fleet();
        for _ in 0..prefill {
            add(&mut fleet, Role::Prefill, idle(), &[]);
        }
        for _ in 0..decode {
            add(&mut fleet, Role::Decode, idle(), &[]);
        }
        let pairs = burst(&mut fleet, count, tokens);
        let share = |key: WorkerKey, of: fn(&Pair) -> WorkerKey| {
            pairs.iter().filter(|pair| of(pair) == key).count()
        };
        for (role, workers) in [(Role::Prefill, prefill), (Role::Decode, decode)] {
            for (key, _) in fleet.workers(role) {
                let got = match role {
                    Role::Prefill => share(key, |p| p.prefill.unwrap().worker),
                    Role::Decode => share(key, |p| p.decode.worker),
                };
                prop_assert!(got.abs_diff(count / workers) <= 1, "{role} {key:?} got {got} of {count}");
            }
        }
    }

    /// The choice is a function of the state alone, and a worker that is better in one respect and
    /// equal in all others is never passed over.
    #[test]
    fn the_choice_is_deterministic_and_never_dominated(
        loads in prop::collection::vec((0..40u32, 0..10u32, 0..5000u64, 0..100u64), 2..6),
        tokens in 1..2000u32,
    ) {
        let mut fleet = fleet();
        for &(running, waiting, waiting_tokens, free_pages) in &loads {
            let load = Load { running, waiting, waiting_tokens, free_pages, leased_pages: 0, outside: false };
            add(&mut fleet, Role::Decode, load, &[]);
        }
        let chosen = choose(&fleet, &ask(tokens, &NONE)).unwrap();
        prop_assert_eq!(Some(chosen), choose(&fleet, &ask(tokens, &NONE)));
        let best = fleet.get(chosen.decode.worker).unwrap().load();
        for (key, worker) in fleet.workers(Role::Decode) {
            let load = worker.load();
            let dominates = key != chosen.decode.worker
                && load.running < best.running
                && load.waiting <= best.waiting
                && load.waiting_tokens <= best.waiting_tokens
                && load.free_pages >= best.free_pages;
            prop_assert!(!dominates, "{:?} is better than {:?}", load, best);
        }
    }
}
