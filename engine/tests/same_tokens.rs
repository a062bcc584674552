//! The same tokens, however they come to be computed: alone, in a batch, in chunks, after a prefix
//! hit, after preemption, split between two engines, with MTP on or off. Bit for bit, so sampled
//! requests are held to it as well as greedy ones.

mod common;

use std::collections::HashMap;

use common::*;
use millrace_engine::{
    Engine, EngineConfig, EngineError, Event, Kind, Request, RequestId, SamplingParams,
    engine::Pending,
};
use millrace_kernels::KvDtype;
use millrace_model::checkpoint::Checkpoint;

type TestEngine = Engine<TestBackend>;

const OUTPUT: usize = 40;

fn prompts(golden: &Golden) -> Vec<Vec<u32>> {
    PROMPTS
        .iter()
        .map(|prompt| golden.ids(&format!("{prompt}.tokens")))
        .collect()
}

/// With all that may change a row before a token is chosen from it.
fn sampled(seed: u64) -> SamplingParams {
    SamplingParams {
        temperature: 0.8,
        top_p: 0.95,
        repetition_penalty: 1.1,
        frequency_penalty: 0.2,
        presence_penalty: 0.1,
        logit_bias: vec![(11, 2.0), (205, -1.0)],
        min_tokens: OUTPUT,
        stop_token_ids: vec![24],
        seed,
        ..greedy(OUTPUT)
    }
}

/// Greedy and sampled, with log-probs: equal only if every logit is.
fn params(number: usize) -> SamplingParams {
    let params = if number.is_multiple_of(2) {
        greedy(OUTPUT)
    } else {
        sampled(number as u64)
    };
    SamplingParams {
        logprobs: Some(3),
        ..params
    }
}

/// Each prompt alone, in an engine without MTP and with chunks that hold any prompt whole.
fn alone(family: &str, prompts: &[Vec<u32>]) -> Vec<Answer> {
    let config = EngineConfig {
        mtp: false,
        prefix_cache: false,
        max_batch_tokens: 1024,
        ..float_config()
    };
    let mut engine = engine(family, config);
    (0..prompts.len())
        .map(|number| run_one(&mut engine, number as u64, &prompts[number], params(number)))
        .collect()
}

fn assert_same(what: &str, family: &str, expected: &[Answer], found: &HashMap<u64, Answer>) {
    for (number, expected) in expected.iter().enumerate() {
        let found = &found[&(number as u64)];
        assert_eq!(
            expected.tokens, found.tokens,
            "{family}, prompt {number}: {what}"
        );
    }
}

/// An engine of this family with 8-bit pages, or why there is none.
fn eight_bits(family: &str) -> Result<TestEngine, EngineError> {
    let checkpoint = Checkpoint::open(&golden_dir(family)).expect("a golden checkpoint opens");
    let config = EngineConfig {
        kv_dtype: KvDtype::Fp8,
        ..float_config()
    };
    Engine::load(backend(2), &checkpoint, config, &mut |_| {})
}

/// Rows are rounded once, when they are written, so how a prompt was cut cannot matter either.
#[test]
fn eight_bit_pages_give_the_same_tokens_in_a_batch_as_alone() {
    let family = "deepseek_v3";
    let prompts = prompts(&Golden::open(family));
    let mut engine = eight_bits(family).expect("it loads");
    let alone: Vec<Answer> = (0..prompts.len())
        .map(|number| run_one(&mut engine, number as u64, &prompts[number], params(number)))
        .collect();
    let mut engine = eight_bits(family).expect("it loads");
    submit_all(&mut engine, &prompts);
    assert_same("8-bit pages, in a batch", family, &alone, &run(&mut engine));
}

#[test]
fn eight_bit_pages_are_refused_without_latent_attention() {
    let refused = eight_bits("qwen3").err().expect("refused");
    assert!(matches!(refused, EngineError::NotLatent), "{refused}");
}

fn submit_all(engine: &mut TestEngine, prompts: &[Vec<u32>]) {
    for (number, prompt) in prompts.iter().enumerate() {
        engine
            .submit(request(number as u64, prompt, params(number)))
            .expect("accepted");
    }
}

#[test]
fn in_a_batch_of_sixteen_with_small_chunks_and_mtp() {
    for family in FAMILIES {
        let golden = Golden::open(family);
        // Sixteen of mixed lengths: each prompt three times, with other sampling, and one more.
        let base = prompts(&golden);
        let prompts: Vec<Vec<u32>> = base.iter().cycle().take(16).cloned().collect();
        let expected = alone(family, &prompts);
        for mtp in [false, true] {
            let config = EngineConfig {
                mtp,
                max_batch_tokens: 64,
                ..float_config()
            };
            let mut engine = engine(family, config);
            submit_all(&mut engine, &prompts);
            let found = run(&mut engine);
            assert_same(
                &format!("batch of 16, chunks of 64, mtp {mtp}"),
                family,
                &expected,
                &found,
            );
            if mtp && engine.drafts() {
                assert!(engine.counters().drafts > 0);
            }
            assert_eq!(engine.status().free_pages, engine.status().total_pages);
        }
    }
}

/// Fewer rows of logits at a time than a step wants, down to one row's own.
#[test]
fn with_little_room_for_logits() {
    let family = "deepseek_v3";
    let prompts: Vec<Vec<u32>> = prompts(&Golden::open(family)).into_iter().take(4).collect();
    let expected = alone(family, &prompts);
    for max_running in [1, 3] {
        let config = EngineConfig {
            max_running,
            max_batch_tokens: 2 * max_running,
            ..float_config()
        };
        let mut engine = engine(family, config);
        submit_all(&mut engine, &prompts);
        let found = run(&mut engine);
        let what = format!("{max_running} at a time");
        assert_same(&what, family, &expected, &found);
    }
}

#[test]
fn after_a_prefix_hit() {
    for family in FAMILIES {
        let prompts = prompts(&Golden::open(family));
        let expected = alone(family, &prompts);
        let mut engine = engine(family, float_config());
        for round in 0..2u64 {
            for (number, prompt) in prompts.iter().enumerate() {
                let answer = run_one(
                    &mut engine,
                    100 * round + number as u64,
                    prompt,
                    params(number),
                );
                assert_eq!(
                    expected[number].tokens, answer.tokens,
                    "{family} round {round}"
                );
                let cached = answer.start.expect("a first output").cached_tokens;
                let most = (prompt.len() - 1) / 64 * 64;
                if round == 1 {
                    assert_eq!(cached, most, "{family}: everything but the last part");
                }
            }
        }
    }
}

#[test]
fn after_preemption() {
    for family in FAMILIES {
        let base = prompts(&Golden::open(family));
        // Eight sequences that start on two pages' edge and want a third, in a pool of 18 pages.
        let prompts: Vec<Vec<u32>> = (0..8)
            .map(|i| base[4][i * 100..i * 100 + 100 + i].to_vec())
            .collect();
        let expected = alone(family, &prompts);
        let config = EngineConfig {
            kv_pages: 18,
            max_model_len: Some(1024),
            prefix_cache: false,
            ..float_config()
        };
        let mut engine = engine(family, config);
        submit_all(&mut engine, &prompts);
        let found = run(&mut engine);
        assert_same("after preemption", family, &expected, &found);
        assert!(engine.counters().preemptions > 0, "the test must preempt");
        assert_eq!(engine.status().free_pages, 18);
    }
}

#[test]
fn when_replayed_after_any_token() {
    let family = "deepseek_v3";
    let prompt = Golden::open(family).ids("p65.tokens");
    let mut engine = engine(family, float_config());
    for params in [params(0), params(1)] {
        let whole = run_one(&mut engine, 0, &prompt, params.clone());
        for cut in [1, 2, 17, OUTPUT - 1] {
            let mut tokens = prompt.clone();
            tokens.extend(&whole.ids()[..cut]);
            let replay = Request {
                prompt_tokens: prompt.len(),
                ..request(1, &tokens, params.clone())
            };
            engine.submit(replay).expect("accepted");
            let rest = run(&mut engine).remove(&1).expect("answered");
            assert_eq!(rest.tokens, whole.tokens[cut..], "cut after {cut}");
        }
    }
}

/// What the transfer layer does between two processes, here with a plain copy.
fn split(
    prefill: &mut TestEngine,
    decode: &mut TestEngine,
    id: u64,
    prompt: &[u32],
    params: SamplingParams,
) -> Answer {
    let mut reserved = None;
    let whole = request(id, prompt, params);
    decode
        .submit(Request {
            kind: Kind::Decode,
            ..whole.clone()
        })
        .expect("accepted");
    decode.step(&mut |event| match event {
        Event::Reserved {
            lease, first_page, ..
        } => reserved = Some((lease, first_page)),
        event => panic!("{event:?}"),
    });
    let (lease, first_page) = reserved.expect("every prompt goes to the peer here");
    let (targets, memory) = (lease.indexes(), decode.pool().memory().clone());
    prefill
        .submit(Request {
            kind: Kind::Prefill { first_page },
            ..whole
        })
        .expect("accepted");
    let mut done = None;
    let from = prefill.pool().clone();
    while prefill.pending() == Pending::Runnable {
        prefill.step(&mut |event| match event {
            Event::PageFinished { index, page, .. } => {
                let target = targets[index - first_page];
                // SAFETY: a finished page is not written again, and a leased one is nobody's else.
                unsafe { copy_page(&page, &from, &memory, target) };
            }
            Event::Prefilled { first, draft, .. } => done = Some((first, draft)),
            Event::Started { .. } => {}
            event => panic!("{event:?}"),
        });
    }
    let (first, draft) = done.expect("prefilled");
    let pages = lease.settle(proof(decode.pool(), &targets));
    let mut answer = Answer::default();
    for event in decode.prefilled(RequestId(id), pages, first, draft) {
        let Event::Output { output, .. } = event else {
            panic!("{event:?}")
        };
        answer.tokens.extend(output.tokens);
    }
    let rest = run(decode).remove(&id).expect("it goes on");
    answer.tokens.extend(rest.tokens);
    answer
}

#[test]
fn split_between_two_engines() {
    for family in FAMILIES {
        let prompts = prompts(&Golden::open(family));
        let expected = alone(family, &prompts);
        for mtp in [false, true] {
            let config = EngineConfig {
                mtp,
                max_batch_tokens: 96,
                local_prefill_tokens: 0,
                ..float_config()
            };
            let mut prefill = engine(family, config.clone());
            let mut decode = engine(family, config);
            for (number, prompt) in prompts.iter().enumerate() {
                let id = number as u64;
                let answer = split(&mut prefill, &mut decode, id, prompt, params(number));
                assert_eq!(
                    expected[number].tokens, answer.tokens,
                    "{family}, prompt {number}, mtp {mtp}"
                );
            }
            for engine in [&prefill, &decode] {
                assert_eq!(engine.status().leased_pages, 0);
                assert_eq!(engine.status().free_pages, engine.status().total_pages);
            }
        }
    }
}
