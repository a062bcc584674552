//! The scheduler and the page pool under random traffic, without a model: every sequence gets
//! done, no page has two owners, and none is lost.

mod common;

use std::{
    collections::{HashMap, HashSet},
    panic::AssertUnwindSafe,
};

use millrace_engine::{
    Event, Kind, LeasedPages, PrefillPlace, Request, RequestId, SamplingParams,
    pages::PagePool,
    scheduler::{Limits, Scheduler},
    sequence::Sequence,
};
use millrace_kernels::{KvDtype, PageLayout, PageMemory};
use proptest::prelude::*;

use common::proof;

const PAGES: usize = 12;

fn pool() -> PagePool {
    let layout = PageLayout {
        layers: 1,
        row_values: 4,
        latent: 0,
        dtype: KvDtype::F32,
    };
    PagePool::new(PageMemory::allocate(layout, PAGES).expect("a small pool"))
}

fn scheduler(pool: &PagePool, prefix_cache: bool) -> Scheduler {
    let limits = Limits {
        max_batch_tokens: 96,
        max_running: 4,
        local_prefill_tokens: 16,
        prefix_cache,
    };
    Scheduler::new(limits, pool.clone())
}

fn request(id: u64, tokens: Vec<u32>, max_tokens: usize, kind: Kind) -> Request {
    Request {
        id: RequestId(id),
        prompt_tokens: tokens.len(),
        tokens,
        sampling: SamplingParams {
            max_tokens,
            ..SamplingParams::default()
        },
        cache_salt: String::new(),
        kind,
    }
}

#[derive(Debug, Clone)]
struct Plan {
    /// Which of a few common prefixes the prompt starts with.
    prefix: u32,
    prompt: usize,
    output: usize,
    /// Aborted after this many steps, if it is still there.
    abort: Option<usize>,
    arrives: usize,
}

fn plans() -> impl Strategy<Value = Vec<Plan>> {
    let plan = (
        0..3u32,
        1..400usize,
        1..120usize,
        prop::option::weighted(0.2, 0..60usize),
        0..40usize,
    )
        .prop_map(|(prefix, prompt, output, abort, arrives)| Plan {
            prefix,
            prompt,
            output,
            abort,
            arrives,
        });
    prop::collection::vec(plan, 1..14)
}

/// Plays the engine's part: everything planned is computed, and every sampled token is the next
/// number.
fn play(plans: &[Plan], prefix_cache: bool) {
    let pool = pool();
    let mut scheduler = scheduler(&pool, prefix_cache);
    let mut output_left: HashMap<RequestId, usize> = HashMap::new();
    let mut started = HashSet::new();
    let mut finished = 0;
    for step in 0..20_000 {
        for (id, plan) in plans.iter().enumerate() {
            if plan.arrives == step {
                let tokens = (0..plan.prompt as u32)
                    .map(|i| plan.prefix * 1000 + i)
                    .collect();
                let request = request(id as u64, tokens, plan.output, Kind::Whole);
                output_left.insert(request.id, plan.output);
                scheduler.push(Sequence::new(request, "rev"));
            }
            if plan.abort.is_some_and(|after| plan.arrives + after == step)
                && output_left.remove(&RequestId(id as u64)).is_some()
            {
                scheduler.remove(RequestId(id as u64));
                finished += 1;
            }
        }
        let mut events = Vec::new();
        let shares = scheduler.schedule(usize::MAX, &mut events);
        for event in events {
            let Event::Started { id } = event else {
                panic!("nothing is remote here: {event:?}")
            };
            assert!(started.insert(id), "preempted ones do not begin anew");
        }
        let rows: usize = shares.iter().map(|s| s.tokens + usize::from(s.draft)).sum();
        assert!(rows <= 96);
        assert_no_page_is_written_by_two(&scheduler);
        for share in &shares {
            let sequence = &mut scheduler.running[share.sequence];
            sequence.computed += share.tokens;
            assert!(sequence.computed <= sequence.pages.len() * 64);
            let full = sequence.computed / 64;
            let hashes = sequence.hashes(full).to_vec();
            for (page, hash) in sequence.pages.iter().zip(hashes) {
                if prefix_cache {
                    pool.store(page, hash);
                }
            }
            if share.samples {
                sequence.tokens.push(7);
                sequence.started = true;
            }
        }
        let mut done = Vec::new();
        for share in shares.iter().filter(|share| share.samples) {
            let id = scheduler.running[share.sequence].id;
            let left = output_left.get_mut(&id).expect("it is alive");
            *left -= 1;
            if *left == 0 {
                done.push(id);
            }
        }
        for id in done {
            output_left.remove(&id);
            scheduler.remove(id);
            finished += 1;
        }
        if finished == plans.len() {
            assert_eq!(pool.available(), PAGES, "every page is back");
            return;
        }
    }
    panic!("{} of {} finished", finished, plans.len());
}

/// A page that several sequences hold must be full and cached for all of them: only the pages
/// behind a sequence's computed tokens are written.
fn assert_no_page_is_written_by_two(scheduler: &Scheduler) {
    let mut written = HashSet::new();
    for sequence in &scheduler.running {
        for page in &sequence.pages[sequence.computed / 64..] {
            assert!(
                written.insert(page.index()),
                "page {} has two writers",
                page.index()
            );
        }
    }
    for sequence in &scheduler.running {
        for page in &sequence.pages[..sequence.computed / 64] {
            assert!(
                !written.contains(&page.index()),
                "a full page is written again"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn all_sequences_finish_and_all_pages_return(plans in plans(), prefix_cache: bool) {
        play(&plans, prefix_cache);
    }
}

#[test]
fn decoding_goes_before_long_prompts() {
    let pool = pool();
    let mut scheduler = scheduler(&pool, false);
    scheduler.push(Sequence::new(
        request(0, vec![1; 200], 9, Kind::Whole),
        "rev",
    ));
    scheduler.push(Sequence::new(request(1, vec![2; 1], 9, Kind::Whole), "rev"));
    let first = scheduler.schedule(usize::MAX, &mut Vec::new());
    assert_eq!(
        first.iter().map(|share| share.tokens).collect::<Vec<_>>(),
        [96]
    );
    scheduler.running[0].computed = 96;
    // The prompt of one token waits no longer than until there is budget again; then it decodes.
    scheduler.running[0].computed = 190;
    let second = scheduler.schedule(usize::MAX, &mut Vec::new());
    assert_eq!(
        second
            .iter()
            .map(|s| (s.sequence, s.tokens))
            .collect::<Vec<_>>(),
        [(0, 10), (1, 1)]
    );
    scheduler.running[0].computed = 100;
    let third = scheduler.schedule(usize::MAX, &mut Vec::new());
    assert_eq!(
        third
            .iter()
            .map(|s| (s.sequence, s.tokens))
            .collect::<Vec<_>>(),
        [(1, 1), (0, 95)]
    );
}

#[test]
fn what_was_cut_off_elsewhere_goes_before_what_has_yet_to_begin() {
    let pool = pool();
    let mut scheduler = scheduler(&pool, false);
    let mut push = |id: u64, prompt_tokens: usize| {
        let mut request = request(id, vec![id as u32; 90], 200, Kind::Whole);
        request.prompt_tokens = prompt_tokens;
        scheduler.push(Sequence::new(request, "revision"));
    };
    // 3 and 4 bring output along; the rest are new.
    for (id, prompt_tokens) in [(1, 90), (2, 90), (3, 80), (4, 80), (5, 90)] {
        push(id, prompt_tokens);
    }
    let mut order = Vec::new();
    while order.len() < 4 {
        scheduler.schedule(usize::MAX, &mut Vec::new());
        for sequence in &mut scheduler.running {
            if !order.contains(&sequence.id.0) {
                order.push(sequence.id.0);
            }
            sequence.computed = sequence.tokens.len() - 1;
        }
    }
    assert_eq!(order, [3, 4, 1, 2]);
}

#[test]
fn split_requests_lease_their_pages_unless_little_is_left() {
    let pool = pool();
    let mut scheduler = scheduler(&pool, true);
    let place = |scheduler: &Scheduler| scheduler.running.last().and_then(|s| s.place);
    scheduler.push(Sequence::new(
        request(0, vec![1; 10], 9, Kind::Decode),
        "rev",
    ));
    let mut events = Vec::new();
    assert_eq!(scheduler.schedule(usize::MAX, &mut events).len(), 1);
    assert!(matches!(place(&scheduler), Some(PrefillPlace::Local(_))));
    scheduler.remove(RequestId(0));

    scheduler.push(Sequence::new(
        request(1, vec![1; 200], 9, Kind::Decode),
        "rev",
    ));
    assert!(scheduler.schedule(usize::MAX, &mut events).is_empty());
    let Some(Event::Reserved {
        lease,
        first_page: 0,
        ..
    }) = events.pop()
    else {
        panic!()
    };
    assert_eq!(lease.indexes().len(), 4);
    assert_eq!(pool.leased(), 4);
    scheduler.remove(RequestId(1));
    assert_eq!(
        pool.available(),
        PAGES - 4,
        "an aborted request's lease keeps its pages"
    );
    drop(lease);
    assert_eq!(
        pool.available(),
        PAGES - 4,
        "and so does a lease that is dropped unsettled"
    );
}

#[test]
fn a_settled_lease_gives_its_pages_back() {
    let pool = pool();
    let lease = LeasedPages::lease(pool.allocate(3).expect("free pages"));
    let proof = proof(&pool, &lease.indexes());
    drop(lease.settle(proof));
    assert_eq!((pool.leased(), pool.available()), (0, PAGES));
}

#[test]
fn a_proof_for_other_pages_frees_nothing() {
    let pool = pool();
    let lease = LeasedPages::lease(pool.allocate(2).expect("free pages"));
    let other = LeasedPages::lease(pool.allocate(2).expect("free pages"));
    let proof = proof(&pool, &other.indexes());
    let mixed_up = std::panic::catch_unwind(AssertUnwindSafe(|| lease.settle(proof)));
    assert!(mixed_up.is_err());
    assert_eq!(pool.available(), PAGES - 4);
}
