//! A look at all workers, by the formula alone, must choose the same pair.

use std::collections::HashSet;

use super::*;
use crate::fleet::{SETTLE, Ticket, Worker};

/// The rank of a worker for a sequence that finds `overlap` of its tokens there.
fn cost(worker: &Worker, ask: &Ask, overlap: u32, remote: bool) -> u64 {
    let load = worker.load();
    let uncached = u64::from(ask.tokens - overlap);
    let sequences = u64::from(load.running + load.waiting);
    let (own, output, batch) = match worker.description.role {
        Role::Prefill => (uncached, 0, 0),
        Role::Decode => {
            let over = (sequences + 1).saturating_sub(u64::from(worker.description.max_running));
            let own = if remote { uncached / 16 } else { uncached };
            (own, ask.max_output.min(256), 16 * sequences + 1024 * over)
        }
    };
    let pages = (uncached + u64::from(output)).div_ceil(64);
    load.waiting_tokens + own + batch + 64 * pages.saturating_sub(load.free_pages)
}

type Held = Vec<(WorkerKey, HashSet<BlockHash>)>;

fn choose_of_all(
    fleet: &Fleet,
    ask: &Ask,
    held: &Held,
    hashes: &[BlockHash],
) -> Option<(WorkerKey, Option<WorkerKey>)> {
    let overlap = |key: WorkerKey| {
        let (_, held) = held.iter().find(|(of, _)| *of == key).unwrap();
        let blocks = hashes.iter().take_while(|hash| held.contains(hash)).count();
        ((64 * blocks) as u32).min(ask.tokens - 1)
    };
    let prefill = |revision: &str| {
        let of = fleet.available(Role::Prefill);
        of.filter(|(key, w)| w.description.revision == revision && !ask.not_prefill.contains(key))
            .map(|(key, w)| (cost(w, ask, overlap(key), false), w.assigned, key))
            .min()
    };
    let decode = fleet.available(Role::Decode);
    decode
        .filter(|(key, _)| !ask.not_decode.contains(key))
        .map(|(key, w)| {
            let prefill = prefill(&w.description.revision);
            let half = prefill.is_none() && !w.description.aggregated;
            let own = cost(w, ask, overlap(key), prefill.is_some());
            let cost = own + prefill.map_or(0, |(cost, ..)| cost);
            ((half, cost, w.assigned, key), prefill.map(|(.., key)| key))
        })
        .min()
        .map(|((.., key), prefill)| (key, prefill))
}

/// What happens to a fleet.
#[derive(Debug, Clone)]
enum Step {
    Report(usize, (u32, u32, u64, u64)),
    Ask { tokens: u32, end: Option<usize> },
    End(usize),
    Drain(usize),
    LeaveOut(usize, bool),
    Detach(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let load = (0..40u32, 0..4u32, 0..3000u64, 0..40u64);
    let worker = 0..60usize;
    prop_oneof![
        8 => (worker.clone(), load).prop_map(|(w, load)| Step::Report(w, load)),
        20 => (1..2000u32, prop::option::of(0..60usize)).prop_map(|(tokens, end)| Step::Ask { tokens, end }),
        4 => (0..1000usize).prop_map(Step::End),
        1 => worker.clone().prop_map(Step::Drain),
        1 => (worker.clone(), any::<bool>()).prop_map(|(w, out)| Step::LeaveOut(w, out)),
        1 => worker.prop_map(Step::Detach),
    ]
}

proptest! {
    #[test]
    fn the_choice_is_that_of_a_look_at_all_workers(
        // Role, revision, aggregated, and how many leading blocks of a common prompt are cached, with a gap.
        workers in prop::collection::vec(
            (any::<bool>(), 0..10u8, prop::bool::weighted(0.1), 0..30u128, prop::option::of(0..30u128)), 1..60),
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let mut fleet = fleet();
        let now = Instant::now();
        let mut held: Held = Vec::new();
        for (n, &(prefill, revision, aggregated, blocks, gap)) in workers.iter().enumerate() {
            let role = if prefill { Role::Prefill } else { Role::Decode };
            let mut description = describe(&fleet, role);
            description.worker_id = n.to_string();
            // Most are of one revision.
            description.revision = (revision / 9).to_string();
            description.aggregated = aggregated;
            let key = fleet.attach(description).unwrap();
            let blocks: Vec<BlockHash> = (1..=blocks).filter(|&b| Some(b) != gap).map(BlockHash).collect();
            held.push((key, blocks.iter().copied().collect()));
            fleet.snapshot(key, idle(), blocks, now);
        }
        let hashes: Vec<BlockHash> = (1..=30).map(BlockHash).collect();
        let mut sequence = vec![0; held.len()];
        let mut placed: Vec<(WorkerKey, Ticket)> = Vec::new();
        for step in steps {
            let key = |w: usize| held[w % held.len()].0;
            match step {
                Step::Report(w, (running, waiting, waiting_tokens, free_pages)) => {
                    let load = Load { running, waiting, waiting_tokens, free_pages, ..Load::default() };
                    sequence[w % held.len()] += 1;
                    let sequence = sequence[w % held.len()];
                    let delta = Delta { sequence, load, ..Delta::default() };
                    fleet.delta(key(w), delta, now + SETTLE).unwrap();
                }
                Step::Ask { tokens, end } => {
                    let known = (tokens as usize / 64).min(hashes.len());
                    let blocks = Blocks::named("r1", hashes[..known].to_vec());
                    let failed: Vec<WorkerKey> = end.into_iter().map(key).collect();
                    let ask = Ask { not_decode: &failed, not_prefill: &failed, ..ask(tokens, &blocks) };
                    let pair = choose(&fleet, &ask);
                    let chosen = pair.map(|pair| (pair.decode.worker, pair.prefill.map(|p| p.worker)));
                    prop_assert_eq!(chosen, choose_of_all(&fleet, &ask, &held, &hashes[..known]));
                    for chosen in pair.iter().flat_map(|pair| [Some(pair.decode), pair.prefill]).flatten() {
                        placed.push((chosen.worker, fleet.assign(chosen.worker, chosen.demand, now)));
                    }
                }
                Step::End(n) if !placed.is_empty() => {
                    let (key, ticket) = placed.swap_remove(n % placed.len());
                    fleet.release(key, ticket);
                }
                Step::End(_) => {}
                Step::Drain(w) => fleet.drain(key(w)),
                Step::LeaveOut(w, out) => drop(fleet.leave_out(key(w), out)),
                Step::Detach(w) => drop(fleet.detach(key(w))),
            }
        }
    }
}
