//! What one pairing decision costs, by workers: `cargo run --release -p millrace-router --example pairing`.
//!
//! Nothing but the decision and the state it is taken from: no sockets, no locks. Half of the workers
//! prefill. A decision is the choice of a pair and counting the sequence into both workers' load; an
//! earlier sequence ends for each. Reports of load are timed apart: a busy worker sends up to 50 a second.
//!
//! The prompt has 4,000 tokens. Its blocks are cached by nobody (`new`), by one worker of each role
//! (`session`), or its first 3,072 tokens by every worker and 900 more by one of each role (`common`).
//! With `full`, nobody has pages left for it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use millrace_model::blocks::{BLOCK_TOKENS, BlockHash};
use millrace_router::dispatch::pairing::{Ask, Blocks, Chosen, choose};
use millrace_router::fleet::{
    Compatibility, Delta, Description, Fleet, Load, Role, SETTLE, Served, Ticket, WorkerKey,
};

const TOKENS: u32 = 4000;
const COMMON: u128 = 48;
const BLOCKS: u128 = 62;
const REVISION: &str = "a revision of the model";
/// Of each batch that is timed. The median of many short ones is printed: the machine has other work.
const DECISIONS: u32 = 20;
const BATCHES: usize = 1001;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Case {
    New,
    Session,
    Common,
    Full,
}

fn main() {
    println!("us, median of {BATCHES} batches of {DECISIONS}");
    println!("workers      new  session   common     full   report");
    for workers in [8, 80, 800, 2000] {
        let [new, session, common, full] = [Case::New, Case::Session, Case::Common, Case::Full]
            .map(|case| decision(case, workers));
        let report = report(workers);
        println!("{workers:7} {new:8.2} {session:8.2} {common:8.2} {full:8.2} {report:8.2}");
    }
}

/// Microseconds of a decision.
fn decision(case: Case, workers: usize) -> f64 {
    let (mut fleet, keys, begun) = fleet(case, workers);
    let blocks = Blocks::named(REVISION, (0..BLOCKS).map(block).collect());
    let ask = Ask {
        tokens: TOKENS,
        blocks: &blocks,
        max_output: 300,
        model: None,
        not_decode: &[],
        not_prefill: &[],
    };
    // As many as a busy fleet has sent and not heard of yet.
    let mut sent: VecDeque<(WorkerKey, Ticket)> = VecDeque::new();
    let mut place = |fleet: &mut Fleet, Chosen { worker, demand, .. }: Chosen| {
        sent.push_back((worker, fleet.assign(worker, demand, begun)));
        if sent.len() > 2 * keys.len()
            && let Some((worker, ticket)) = sent.pop_front()
        {
            fleet.release(worker, ticket);
        }
    };
    median(|| {
        for _ in 0..DECISIONS {
            let pair = choose(&fleet, &ask).expect("all workers are available");
            place(&mut fleet, pair.decode);
            place(&mut fleet, pair.prefill.expect("half of them prefill"));
        }
    })
}

/// Microseconds of a report of a worker's load.
fn report(workers: usize) -> f64 {
    let (mut fleet, keys, begun) = fleet(Case::New, workers);
    let mut random = Random(7);
    let mut sequence = vec![0; keys.len()];
    let now = begun + SETTLE;
    median(|| {
        for _ in 0..DECISIONS {
            let worker = random.below(keys.len() as u64) as usize;
            sequence[worker] += 1;
            let delta = Delta {
                sequence: sequence[worker],
                load: load(&mut random, Case::New),
                ..Delta::default()
            };
            let followed = fleet.delta(keys[worker], delta, now);
            followed.expect("no delta is left out");
        }
    })
}

fn fleet(case: Case, workers: usize) -> (Fleet, Vec<WorkerKey>, Instant) {
    let served = Served {
        model_revision: REVISION.into(),
        text_revision: "text".into(),
        vocab_size: 129_280,
        max_model_len: 32_768,
    };
    let (mut fleet, now) = (Fleet::new(served, 4 << 20), Instant::now());
    let mut random = Random(1);
    let mut keys = Vec::new();
    for number in 0..workers {
        let role = Role::ALL[number % 2];
        let key = fleet.attach(description(number, role));
        let key = key.expect("all workers are alike");
        let cached = match case {
            // In the middle, so that neither the order of attachment nor its reverse finds it first.
            Case::Session | Case::Common if number / 2 == workers / 4 => BLOCKS,
            Case::Common => COMMON,
            _ => 0,
        };
        let blocks = (0..cached).map(block).collect();
        fleet.snapshot(key, load(&mut random, case), blocks, now);
        keys.push(key);
    }
    (fleet, keys, now)
}

fn load(random: &mut Random, case: Case) -> Load {
    let free_pages = match case {
        Case::Full => random.below(60),
        _ => 1000 + random.below(8000),
    };
    Load {
        running: random.below(64) as u32,
        waiting: 0,
        waiting_tokens: random.below(8000),
        free_pages,
        ..Load::default()
    }
}

fn description(number: usize, role: Role) -> Description {
    Description {
        worker_id: format!("worker-{number}"),
        role,
        address: "127.0.0.1:1".into(),
        revision: "deployment-5d8c7f".into(),
        aggregated: false,
        compatibility: Compatibility {
            model_revision: REVISION.into(),
            page_tokens: BLOCK_TOKENS as u32,
            ..Compatibility::default()
        },
        text_revision: "text".into(),
        max_model_len: 32_768,
        vocab_size: 129_280,
        kv_pages: 10_000,
        max_running: 256,
        group: None,
    }
}

fn block(number: u128) -> BlockHash {
    BlockHash((number + 1) * 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c834)
}

/// Microseconds that one of a batch takes, of the median batch.
fn median(mut batch: impl FnMut()) -> f64 {
    let mut times: Vec<Duration> = (0..BATCHES)
        .map(|_| {
            let begun = Instant::now();
            batch();
            begun.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[BATCHES / 2].as_secs_f64() * 1e6 / f64::from(DECISIONS)
}

/// Splitmix: the same numbers in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}
