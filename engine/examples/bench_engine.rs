//! Tokens per second of one engine, alone: prefill of a prompt, then decode.
//!
//! ```text
//! cargo run --release -p millrace-engine --example bench_engine -- DIR [--threads N] [--prompt N] \
//!     [--output N] [--batch N] [--repeat N] [--chunk N] [--seed N] [--mtp] [--tokens]
//! ```
//! Prints one JSON line. Best and median of the repetitions; prompts are random token ids.

use std::time::Instant;

use millrace_engine::{
    Engine, EngineConfig, Event, Kind, Request, RequestId, SamplingParams, engine::Pending,
};
use millrace_kernels::cpu::CpuBackend;
use millrace_model::checkpoint::Checkpoint;
use serde_json::json;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().expect("the checkpoint's folder");
    let rest: Vec<String> = arguments.collect();
    let number = |name: &str, default: usize| {
        let at = rest.iter().position(|argument| argument == name);
        at.map_or(default, |at| rest[at + 1].parse().expect("a number"))
    };
    let (threads, repeat) = (number("--threads", 1), number("--repeat", 5));
    let (prompt, output, batch) = (
        number("--prompt", 512),
        number("--output", 128),
        number("--batch", 1),
    );

    let checkpoint = Checkpoint::open(dir.as_ref()).expect("a checkpoint");
    let vocab = checkpoint.config().common.vocab_size as u32;
    let length = prompt + output + 1;
    let config = EngineConfig {
        max_batch_tokens: number("--chunk", 512),
        max_model_len: Some(length),
        kv_pages: batch * length.div_ceil(64) + 1,
        mtp: rest.iter().any(|argument| argument == "--mtp"),
        prefix_cache: false,
        ..EngineConfig::default()
    };
    let mut engine =
        Engine::load(CpuBackend::new(threads), &checkpoint, config, &mut |_| {}).expect("it loads");

    let (mut prefill, mut decode) = (Vec::new(), Vec::new());
    let mut tokens_out = Vec::new();
    for round in 0..repeat {
        for sequence in 0..batch {
            let mut state = (number("--seed", 1) + round * batch + sequence) as u32;
            let tokens = (0..prompt)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    10 + (state >> 8) % (vocab - 10)
                })
                .collect();
            let sampling = SamplingParams {
                max_tokens: output,
                ignore_eos: true,
                ..Default::default()
            };
            engine
                .submit(Request {
                    id: RequestId((round * batch + sequence) as u64),
                    tokens,
                    prompt_tokens: prompt,
                    sampling,
                    cache_salt: String::new(),
                    kind: Kind::Whole,
                })
                .expect("accepted");
        }
        let before = engine.counters().generated_tokens;
        let start = Instant::now();
        // Prefill ends when every sequence has its first token.
        while engine.status().waiting_tokens > batch || engine.status().waiting > 0 {
            engine.step(&mut |event| collect(event, &mut tokens_out));
        }
        let prefilled = start.elapsed();
        let generated = engine.counters().generated_tokens - before;
        let start = Instant::now();
        while engine.pending() == Pending::Runnable {
            engine.step(&mut |event| collect(event, &mut tokens_out));
        }
        let rest = engine.counters().generated_tokens - before - generated;
        prefill.push((batch * prompt) as f64 / prefilled.as_secs_f64());
        decode.push(rest as f64 / start.elapsed().as_secs_f64());
    }
    let summary = |values: &mut Vec<f64>| {
        values.sort_by(f64::total_cmp);
        json!({ "best": values[values.len() - 1], "median": values[values.len() / 2] })
    };
    let drafts = engine.counters();
    let tokens = rest
        .iter()
        .any(|argument| argument == "--tokens")
        .then_some(tokens_out);
    println!(
        "{}",
        json!({
            "tokens": tokens,
            "threads": threads, "batch": batch, "prompt": prompt, "output": output,
            "prefill_tokens_per_second": summary(&mut prefill),
            "decode_tokens_per_second": summary(&mut decode),
            "drafts": drafts.drafts, "drafts_accepted": drafts.drafts_accepted,
            "kv_bytes_per_token_and_layer": engine.pool().memory().layout().row_bytes(),
        })
    );
}

fn collect(event: Event, tokens: &mut Vec<u32>) {
    if let Event::Output { output, .. } = event {
        tokens.extend(output.tokens.iter().map(|token| token.id));
    }
}
