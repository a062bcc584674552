//! Which experts a model's text goes to, by domain: what planners of placements are measured with.
//!
//! ```text
//! cargo run --release -p millrace-engine --example expert_loads -- DIR DOMAIN=PATH... [--tokens N] [--threads N]
//! ```
//! A PATH that ends in `.json` is a list of prompts, each a list of token ids or a text with its
//! special tokens written out; any other is a text, read in stretches of 512 tokens that each follow
//! a bos. A domain may have several. At most N tokens a domain (default 100000) are computed, as
//! prefills, MTP layer included.
//!
//! Prints `{DOMAIN: {"layers", "experts", "counts": [layer][expert]}}`, layers counted over MoE layers
//! alone, the MTP layer's last.

use std::path::Path;

use millrace_engine::{
    Engine, EngineConfig, Kind, Request, RequestId, SamplingParams, engine::Pending,
};
use millrace_kernels::cpu::CpuBackend;
use millrace_model::{checkpoint::Checkpoint, tokenizer::Tokenizer};
use serde_json::{Map, Value, json};

const STRETCH: usize = 512;
const LONGEST: usize = 2048;

fn main() {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let tokens = option(&mut arguments, "--tokens").unwrap_or(100_000);
    let threads = option(&mut arguments, "--threads").unwrap_or(2);
    let [dir, domains @ ..] = &arguments[..] else {
        panic!("the checkpoint's folder and DOMAIN=PATH...")
    };
    let dir = Path::new(dir);
    let tokenizer = Tokenizer::from_dir(dir).expect("a tokenizer");

    let mut prompts: Vec<(&str, Vec<Vec<u32>>)> = Vec::new();
    for argument in domains {
        let (domain, path) = argument.split_once('=').expect("DOMAIN=PATH");
        let more = read(&tokenizer, Path::new(path));
        match prompts.iter_mut().find(|(name, _)| *name == domain) {
            Some((_, prompts)) => prompts.extend(more),
            None => prompts.push((domain, more)),
        }
    }
    let mut loads = Map::new();
    for (domain, prompts) in prompts {
        loads.insert(domain.to_string(), measure(dir, threads, prompts, tokens));
    }
    println!("{}", Value::Object(loads));
}

/// Takes `name N` out of the arguments.
fn option(arguments: &mut Vec<String>, name: &str) -> Option<usize> {
    let at = arguments.iter().position(|argument| argument == name)?;
    let value = arguments.drain(at..at + 2).nth(1);
    Some(value?.parse().expect("a number"))
}

fn read(tokenizer: &Tokenizer, path: &Path) -> Vec<Vec<u32>> {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let text = String::from_utf8_lossy(&bytes);
    let encode = |text: &str| tokenizer.encode(text, false).expect("text becomes tokens");
    if path
        .extension()
        .is_some_and(|extension| extension == "json")
    {
        let prompts: Vec<Value> = serde_json::from_str(&text).expect("a list of prompts");
        return prompts
            .into_iter()
            .map(|prompt| match prompt {
                Value::String(text) => encode(&text),
                ids => serde_json::from_value(ids).expect("token ids"),
            })
            .collect();
    }
    let bos = tokenizer.special().bos;
    encode(&text)
        .chunks(STRETCH)
        .map(|stretch| bos.into_iter().chain(stretch.iter().copied()).collect())
        .collect()
}

/// Prefills prompts until `tokens` are computed.
fn measure(dir: &Path, threads: usize, prompts: Vec<Vec<u32>>, tokens: usize) -> Value {
    let config = EngineConfig {
        max_model_len: Some(LONGEST),
        kv_pages: LONGEST / 64,
        max_running: 1,
        max_batch_tokens: STRETCH + 1,
        // Every row is to be counted.
        prefix_cache: false,
        ..EngineConfig::default()
    };
    let checkpoint = Checkpoint::open(dir).expect("a checkpoint");
    let backend = CpuBackend::new(threads);
    let mut engine = Engine::load(backend, &checkpoint, config, &mut |_| {}).expect("it loads");
    let mut left = tokens;
    for (id, mut prompt) in prompts.into_iter().enumerate() {
        prompt.truncate(left.min(LONGEST - 1));
        if prompt.is_empty() {
            continue;
        }
        left -= prompt.len();
        let request = Request {
            id: RequestId(id as u64),
            prompt_tokens: prompt.len(),
            tokens: prompt,
            sampling: SamplingParams {
                max_tokens: 1,
                ..SamplingParams::default()
            },
            cache_salt: String::new(),
            kind: Kind::Whole,
        };
        engine.submit(request).expect("accepted");
        while engine.pending() == Pending::Runnable {
            engine.step(&mut |_| {});
        }
    }
    let counts = engine.expert_counts().expect("a model with experts");
    let loads = counts.chosen();
    let layers: Vec<&[u64]> = (0..loads.layers())
        .map(|layer| loads.layer(layer))
        .collect();
    json!({ "layers": loads.layers(), "experts": loads.experts, "counts": layers })
}
